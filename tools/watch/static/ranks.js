// The ranks of a run: who is in which phase, who shows no sign of life, and for whom the others wait.

import { model } from "./model.js";
import { colour, count, duration, el, empty, fill, heads, plural } from "./words.js";

const ALIVE_SECONDS = 60; // as in `launch status`
const LISTED = 12;
const TINTS = ["run0", "run2", "run3", "run4", "run6", "run5", "run7"];

function described(status) {
  return status.ranks.map(([rank, host, step, phase, moved, alive]) => {
    const name = status.phases[phase];
    const ended = name === "ended";
    const silent = !ended && model.now - alive > ALIVE_SECONDS;
    return {
      rank,
      host: status.hosts[host],
      step,
      phase: name,
      moved: model.now - moved,
      alive: model.now - alive,
      ended,
      silent,
      lags: rank === status.laggard,
    };
  });
}

export function drawRanks(run) {
  const panel = document.getElementById("ranks");
  const { status } = run;
  if (!status?.ranks?.length) {
    fill(panel, "", empty(status ? "No rank has written a heartbeat yet." : "The run's state is not known yet."));
    return;
  }
  const ranks = described(status);
  const phases = [...new Set(ranks.filter((rank) => !rank.silent && !rank.ended).map((rank) => rank.phase))].sort();
  const [bad, edge] = [colour("bad"), colour("edge")];
  const tints = new Map(phases.map((phase, at) => [phase, colour(TINTS[at % TINTS.length])]));
  const tint = (rank) => (rank.silent ? bad : rank.ended ? edge : tints.get(rank.phase));
  const silent = ranks.filter((rank) => rank.silent);
  const slow = ranks.find((rank) => rank.lags);
  fill(
    panel,
    `${plural(ranks.length, "rank")} on ${plural(status.hosts.length, "host")}`,
    slow ? el("p", { class: slow.silent ? "bad" : "warn" }, lagging(slow)) : null,
    silent.length && !slow
      ? el("p", { class: "bad" }, `${plural(silent.length, "rank")} without a sign of life for over a minute`)
      : null,
    legend(ranks, phases, tint),
    ranks.length > LISTED ? map(ranks, tint) : null,
    table(ranks),
  );
}

function lagging(rank) {
  const life = rank.silent ? `, no sign of life for ${duration(rank.alive)}` : "";
  return `Rank ${rank.rank} on ${rank.host} lags: step ${count(rank.step)}, ${rank.phase}, moved ${duration(rank.moved)} ago${life}.`;
}

function legend(ranks, phases, tint) {
  const groups = phases.map((phase) => [
    phase,
    ranks.filter((rank) => !rank.silent && !rank.ended && rank.phase === phase),
  ]);
  groups.push(["no sign of life", ranks.filter((rank) => rank.silent)], ["ended", ranks.filter((rank) => rank.ended)]);
  return el(
    "p",
    { class: "phases" },
    groups
      .filter(([, found]) => found.length)
      .map(([name, found]) =>
        el("span", {}, el("i", { background: tint(found[0]) }), `${name} ${count(found.length)}`),
      ),
  );
}

// A square per rank, in their order; a ring marks the laggard, a cross who is silent.
function map(ranks, tint) {
  const across = Math.min(50, Math.ceil(Math.sqrt(ranks.length * 2.5)));
  const [side, gap] = [14, 3];
  const canvas = el("canvas", {
    class: "rank-map",
    role: "img",
    width: across * (side + gap),
    height: Math.ceil(ranks.length / across) * (side + gap),
    "aria-label": `${ranks.length} ranks in their order, coloured by phase`,
  });
  const ctx = canvas.getContext("2d");
  const [panel, text] = [colour("panel"), colour("text")];
  ctx.lineWidth = 2;
  ranks.forEach((rank, at) => {
    const [x, y] = [(at % across) * (side + gap) + 1, Math.floor(at / across) * (side + gap) + 1];
    ctx.fillStyle = tint(rank);
    ctx.fillRect(x, y, side, side);
    ctx.strokeStyle = rank.silent && !rank.lags ? panel : text;
    if (rank.lags) {
      ctx.strokeRect(x, y, side, side);
    }
    if (rank.silent) {
      ctx.beginPath();
      ctx.moveTo(x + 3, y + 3);
      ctx.lineTo(x + side - 3, y + side - 3);
      ctx.moveTo(x + side - 3, y + 3);
      ctx.lineTo(x + 3, y + side - 3);
      ctx.stroke();
    }
  });
  return canvas;
}

function table(ranks) {
  const weight = (rank) => (rank.lags ? 4e9 : 0) + (rank.silent ? 2e9 : 0) + (rank.ended ? -1e9 : 0);
  const order =
    ranks.length > LISTED
      ? [...ranks].sort((a, b) => weight(b) - weight(a) || a.step - b.step || b.moved - a.moved)
      : ranks;
  const rest = order.length - LISTED;
  return [
    el(
      "table",
      {},
      heads(["rank", "host", "phase", "step", "moved", "alive"], ["step", "moved", "alive"]),
      el(
        "tbody",
        {},
        order
          .slice(0, LISTED)
          .map((rank) =>
            el(
              "tr",
              { class: rank.silent ? "bad" : rank.lags ? "warn" : null },
              el("td", {}, count(rank.rank)),
              el("td", {}, rank.host),
              el("td", {}, rank.phase),
              el("td", { class: "n" }, count(rank.step)),
              el("td", { class: "n" }, `${duration(rank.moved)} ago`),
              el("td", { class: "n" }, `${duration(rank.alive)} ago`),
            ),
          ),
      ),
    ),
    rest > 0 ? el("p", { class: "note" }, `and ${plural(rest, "rank")} more, who got at least as far`) : null,
  ];
}
