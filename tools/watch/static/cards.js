// One card per run, which is the legend of the charts too: how it does, how far it is, what went wrong.

import { marksOf } from "./marks.js";
import { last, model, reached, recent } from "./model.js";
import { change, view } from "./view.js";
import { colour, count, duration, el, figure, percent, plural, short } from "./words.js";

const STATES = { waiting: "waiting for the run", "not running": "not running" };

export function drawCards(root) {
  model.runs.forEach((run, at) => {
    const [made, old] = [card(run), root.children[at]];
    if (!old) root.append(made);
    else if (old.outerHTML !== made.outerHTML) replace(old, made); // else what is selected in it would be lost
  });
  const [first] = model.runs;
  document.title = first?.metrics.rows
    ? `${count(reached(first))} · ${figure(last(first, "loss"))} · ${first.name}`
    : "SMET watch";
}

function replace(old, made) {
  const isFocused = old.contains(document.activeElement);
  old.replaceWith(made);
  if (isFocused) made.querySelector("button").focus();
}

function card(run) {
  const { status } = run;
  const state = status?.state ?? "reading";
  const steps = status?.steps ?? null;
  const tint = colour(`run${run.index % 8}`);
  const swatch = el("span", { class: `swatch${run.index % 4 ? " dash" : ""}`, "aria-hidden": "true" });
  swatch.style.borderTopColor = tint;
  const name = el(
    "button",
    {
      type: "button",
      class: "name",
      "data-run": run.index,
      "aria-pressed": String(run.shown),
      title: `${run.shown ? "Hide" : "Show"} in the charts (${run.index + 1})`,
      onclick: () => toggle(run.index),
    },
    run.name,
  );
  return el(
    "article",
    { class: `run${run.shown ? "" : " off"}`, "aria-label": `Run ${run.name}` },
    el(
      "div",
      { class: "head" },
      swatch,
      name,
      el("span", { class: "pill", "data-state": state }, STATES[state] ?? state),
    ),
    steps ? progress(reached(run) || status.step, steps, tint) : null,
    el(
      "dl",
      { class: "facts" },
      facts(run).map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))),
    ),
    words(run).map((line) => el("p", { class: "words" }, line)),
    run.problems.map((line) => el("p", { class: "problem" }, line)),
  );
}

export function toggle(index) {
  const run = model.runs[index];
  if (!run) return;
  run.shown = !run.shown;
  change({ shown: true });
}

function progress(step, steps, tint) {
  const share = Math.min(1, step / Math.max(1, steps));
  const bar = el("svg:rect", { width: 100 * share, height: 5, rx: 1 });
  bar.style.fill = tint;
  return el(
    "svg:svg",
    {
      class: "progress",
      viewBox: "0 0 100 5",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${percent(share)} done`,
    },
    el("svg:rect", { width: 100, height: 5, rx: 1 }),
    bar,
  );
}

// As `so_far` of pretrain/numbers.py: train.steps may have been lowered below what is done.
function soFar(step, steps) {
  return step <= steps ? `${count(step)} of ${count(steps)}` : `${count(step)}, beyond ${count(steps)}`;
}

function facts(run) {
  const { status, metrics } = run;
  const found = [];
  const step = reached(run);
  if (status?.steps) found.push(["step", soFar(step || status.step, status.steps)]);
  else if (metrics.rows) found.push(["step", count(step)]);
  const losses = metrics.columns.loss?.mid;
  if (losses) found.push(["loss", figure(last(run, "loss"))]);
  if (metrics.validation.length) found.push(["validation", figure(metrics.validation.at(-1)[1])]);
  const speed = recent(run, "tokens_per_second");
  if (speed !== null) found.push(["tokens/s", count(speed)]);
  const mfu = recent(run, "mfu");
  if (mfu !== null) found.push(["MFU", percent(mfu)]);
  const tokens = last(run, "tokens");
  if (tokens !== null) found.push(["tokens", short(tokens)]);
  if (status?.state === "running" && status.seconds_left !== null) found.push(["left", duration(status.seconds_left)]);
  if (run.checkpoints?.rows.length) found.push(["saved", `step ${count(run.checkpoints.rows.at(-1).step)}`]);
  const marks = marksOf(run);
  for (const [kind, label] of [
    ["update", "updates"],
    ["skip", "skipped"],
    ["rollback", "rollbacks"],
    ["restart", "restarts"],
  ]) {
    const number = marks.filter((mark) => mark.kind === kind).length;
    if (number) found.push([label, count(number)]);
  }
  return found;
}

function words(run) {
  const { status, settings } = run;
  const found = [];
  const method = settings["sparsity.method"];
  if (method) {
    const falls = settings["sparsity.final_density"];
    const density = `density ${settings["sparsity.density"]}${falls && falls !== "None" ? ` falling to ${falls}` : ""}`;
    const block = (settings["sparsity.block"] ?? "").replace(/[[\]]/g, "").replace(", ", " x ");
    const ranks = status?.ranks?.length ? plural(status.ranks.length, "rank") : null;
    found.push(
      [method, density, block && `tiles of ${block}`, settings["train.precision"], ranks].filter(Boolean).join(" · "),
    );
  }
  if (status?.state === "waiting") found.push("The folder holds no run yet; the page begins as soon as it does.");
  if (status?.why) found.push(`Stopped: ${status.why}.`);
  if (status?.goes_on_with) found.push(el("span", {}, "To go on: ", el("code", {}, status.goes_on_with)));
  if (run.more) found.push("Reading the run's files.");
  return found;
}

// Which run the details are of.
export function drawChoice(root) {
  root.hidden = model.runs.length < 2;
  root.replaceChildren(
    "Details of",
    ...model.runs.map((run) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(run.index === view.chosen),
          onclick: () => change({ chosen: run.index, layer: null }),
        },
        run.name,
      ),
    ),
  );
}
