// Checkpoints, memory, events and samples of a run, as tables and lists.

import { model } from "./model.js";
import { KINDS } from "./marks.js";
import { bytes, clock, colour, count, duration, el, empty, fill, heads, percent, plural } from "./words.js";

export function drawCheckpoints(run) {
  const panel = document.getElementById("checkpoints");
  const found = run.checkpoints;
  if (!found?.rows.length) {
    const interval = run.settings["checkpoint.interval"];
    const when = interval && interval !== "0" ? `: one is published every ${interval} steps` : "";
    fill(
      panel,
      found?.writing ? `step ${count(found.writing)} is being written` : "",
      empty(`None is published yet${when}.`),
    );
    return;
  }
  const rows = [...found.rows].reverse();
  const writing = found.writing ? `; step ${count(found.writing)} is being written` : "";
  fill(
    panel,
    `${count(found.all)} published${writing}`,
    el(
      "table",
      {},
      heads(["after step", "size", "age", "health"], ["size", "age"]),
      el(
        "tbody",
        {},
        rows
          .slice(0, 12)
          .map((row) =>
            el(
              "tr",
              {},
              el("td", {}, count(row.step)),
              el("td", { class: "n" }, bytes(row.bytes)),
              el("td", { class: "n" }, row.time ? duration(model.now - row.time) : "unknown"),
              row.problem
                ? el("td", { class: "bad" }, `damaged: ${row.problem}`)
                : el("td", { class: "good" }, "whole"),
            ),
          ),
      ),
    ),
    rows.length > 12 ? el("p", { class: "note" }, `and ${plural(found.all - 12, "older one")}`) : null,
    el(
      "p",
      { class: "note" },
      "Whole: its manifest is sound, and all files have their sizes. Checksums are compared when a run goes on from it.",
    ),
  );
}

export function drawMemory(run) {
  const panel = document.getElementById("memory");
  const { memory } = run;
  if (!memory) {
    fill(panel, "", empty("Not measured yet: memory.json is written in the first step."));
    return;
  }
  const most = Math.max(
    memory.sparse ?? 0,
    memory.dense ?? 0,
    ...Object.values(memory.parts).map((kinds) => sum(kinds)),
  );
  const dense = memory.parts.dense;
  const rows = [
    ["sparse layers", memory.parts.sparse ?? {}],
    ["everything else", dense ?? {}],
  ].filter(([, kinds]) => sum(kinds) > 0);
  const kinds = [...new Set(rows.flatMap(([, found]) => Object.keys(found)))].filter((kind) =>
    rows.some(([, found]) => found[kind]),
  );
  const tint = (kind) => KIND_TINTS[kinds.indexOf(kind) % KIND_TINTS.length];
  fill(
    panel,
    `rank ${memory.rank}, the fullest of ${count(memory.ranks)}, as measured`,
    el(
      "div",
      { class: "bars" },
      rows.map(([name, found]) => [el("div", {}, `${name} `, el("b", {}, bytes(sum(found)))), bar(found, most, tint)]),
      memory.dense
        ? [
            el(
              "div",
              {},
              "the sparse layers, were they dense ",
              el("b", {}, bytes(memory.dense)),
              memory.sparse ? ` (sparse: ${percent(memory.sparse / memory.dense)} of it)` : "",
            ),
            bar({ dense: memory.dense }, most, () => ["muted", 0.45]),
          ]
        : null,
    ),
    el(
      "p",
      { class: "phases" },
      kinds.map((kind) => {
        const [name, alpha] = tint(kind);
        const square = el("i", { background: colour(name) });
        square.style.opacity = alpha;
        return el("span", {}, square, kind);
      }),
    ),
  );
}

const KIND_TINTS = [
  ["strong", 1],
  ["strong", 0.72],
  ["strong", 0.5],
  ["strong", 0.3],
  ["run2", 0.9],
  ["run3", 0.9],
  ["run4", 0.9],
  ["muted", 0.8],
];

function sum(kinds) {
  return Object.values(kinds).reduce((total, size) => total + (size ?? 0), 0);
}

function bar(kinds, most, tint) {
  const svg = el("svg:svg", { viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" });
  let at = 0;
  for (const [kind, size] of Object.entries(kinds)) {
    if (!size) continue;
    const width = (100 * size) / most;
    const [name, alpha] = tint(kind);
    const part = el("svg:rect", { x: at, width: Math.max(0.15, width - 0.25), height: 14 });
    part.style.fill = colour(name);
    part.style.opacity = alpha;
    part.append(el("svg:title", {}, `${kind} ${bytes(size)}`));
    svg.append(part);
    at += width;
  }
  return svg;
}

export function drawEvents(run) {
  const panel = document.getElementById("events");
  if (!run.events.length) {
    fill(panel, "", empty("None: no step was skipped, no restart, no end so far."));
    return;
  }
  const newest = [...run.events].reverse().slice(0, 300);
  const more = run.events.length - newest.length;
  fill(
    panel,
    `${plural(run.events.length, "event")}, newest first`,
    el(
      "ol",
      {},
      newest.map((event) =>
        el(
          "li",
          {},
          el("time", {}, clock(event.time)),
          el("b", { class: KINDS[event.kind]?.tint ?? null }, event.kind),
          event.step === null ? null : `step ${count(event.step)} `,
          event.text,
        ),
      ),
    ),
    more ? el("p", { class: "note" }, `and ${plural(more, "older one")}`) : null,
  );
}

export function drawSamples(run) {
  const panel = document.getElementById("samples");
  if (!run.samples.length) {
    fill(panel, "", empty("None: a run writes text on the way where evaluation.prompts names some beginnings."));
    return;
  }
  const newest = [...run.samples].reverse().slice(0, 40);
  fill(
    panel,
    `${plural(run.samples.length, "sample")}, newest first; what was given is grey`,
    newest.map((sample) => {
      const when = el("span", { class: "dim" }, `after step ${count(sample.step)}`);
      return el("p", { class: "sample" }, when, el("mark", {}, sample.prompt), sample.text.trimEnd());
    }),
  );
}
