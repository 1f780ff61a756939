// What happened to a run, marked where it did: topology updates, skipped steps, rollbacks, restarts, jumps of the loss.

import { place } from "./model.js";
import { colour, count, el } from "./words.js";

export const KINDS = {
  update: { one: "topology update", many: "topology updates", shape: "tick", tint: null },
  skip: { one: "skipped step", many: "skipped steps", shape: "down", tint: "warn" },
  jump: { one: "loss jump after an update", many: "loss jumps after updates", shape: "up", tint: "warn" },
  rollback: { one: "rollback", many: "rollbacks", shape: "back", tint: "bad" },
  restart: { one: "restart", many: "restarts", shape: "dash", tint: "warn" },
  stuck: { one: "stop without progress", many: "stops without progress", shape: "dash", tint: "bad" },
};
const LINES_UP_TO = 60;

export function marksOf(run) {
  const found = run.topology
    .filter((row) => row.step !== null)
    .map((row) => ({ kind: "update", step: row.step, to: null }));
  for (const event of run.events) {
    if (event.kind in KINDS && event.kind !== "update" && event.step !== null) {
      found.push({ kind: event.kind, step: event.step, to: event.to });
    }
  }
  return found;
}

// Draws on the canvas of a chart, below its lines.
export function drawMarks(chart, runs, axis) {
  const { ctx, bbox } = chart;
  const ratio = devicePixelRatio;
  const { min, max } = chart.scales.x;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const run of runs) {
    const visible = marksOf(run)
      .map((mark) => ({ ...mark, at: place(run, mark.step, axis) }))
      .filter((mark) => mark.at !== null && mark.at >= min && mark.at <= max);
    const updates = visible.filter((mark) => mark.kind === "update").length;
    const tall = runs.length === 1 && updates <= LINES_UP_TO;
    for (const mark of visible) {
      const at = Math.round(chart.valToPos(mark.at, "x", true));
      const back = mark.to === null ? null : chart.valToPos(place(run, mark.to, axis) ?? mark.at, "x", true);
      drawMark(
        ctx,
        bbox,
        at,
        back,
        KINDS[mark.kind],
        colour(KINDS[mark.kind].tint ?? `run${run.index % 8}`),
        tall,
        ratio,
      );
    }
  }
  ctx.restore();
}

function drawMark(ctx, box, at, back, kind, tint, tall, ratio) {
  const [top, bottom, unit] = [box.top, box.top + box.height, 5 * ratio];
  ctx.strokeStyle = ctx.fillStyle = tint;
  ctx.lineWidth = ratio;
  ctx.setLineDash([]);
  if (kind.shape === "tick") {
    if (tall) {
      ctx.globalAlpha = 0.22;
      line(ctx, at, top, at, bottom);
    }
    ctx.globalAlpha = 0.8;
    line(ctx, at, bottom - 1.4 * unit, at, bottom);
    ctx.globalAlpha = 1;
  } else if (kind.shape === "down" || kind.shape === "up") {
    const [base, tip] = kind.shape === "down" ? [top + ratio, top + 1.5 * unit] : [top + 1.5 * unit, top + ratio];
    triangle(ctx, [at - 0.8 * unit, base], [at + 0.8 * unit, base], [at, tip]);
  } else {
    if (kind.shape === "dash") ctx.setLineDash([4 * ratio, 3 * ratio]);
    ctx.lineWidth = 1.5 * ratio;
    line(ctx, at, top, at, bottom);
    ctx.setLineDash([]);
    if (back !== null && kind.shape === "back") {
      const middle = top + 2 * unit;
      line(ctx, at, middle, back, middle);
      triangle(ctx, [back, middle], [back + unit, middle - 0.7 * unit], [back + unit, middle + 0.7 * unit]);
    }
  }
}

function line(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

function triangle(ctx, ...corners) {
  ctx.beginPath();
  corners.forEach(([x, y], at) => (at ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.fill();
}

const GLYPHS = {
  tick: [["svg:path", { d: "M7 1V10", "stroke-width": 1.5 }]],
  down: [["svg:path", { d: "M3 2H11L7 9Z", fill: "currentColor" }]],
  up: [["svg:path", { d: "M3 9H11L7 2Z", fill: "currentColor" }]],
  back: [["svg:path", { d: "M12 1V10M12 5H3M6 2.5L3 5L6 7.5", "stroke-width": 1.5 }]],
  dash: [["svg:path", { d: "M7 0V11", "stroke-width": 1.5, "stroke-dasharray": "3 2" }]],
};

// The legend: what is marked, and how often, in each run that is shown.
export function markLegend(runs) {
  return Object.entries(KINDS)
    .map(([name, kind]) => [kind, runs.map((run) => marksOf(run).filter((mark) => mark.kind === name).length)])
    .filter(([, counts]) => counts.some((number) => number > 0))
    .map(([kind, counts]) => {
      const total = counts.reduce((sum, number) => sum + number, 0);
      const glyph = el("svg:svg", {
        viewBox: "0 0 14 11",
        "aria-hidden": "true",
        fill: "none",
        stroke: "currentColor",
      });
      for (const [tag, properties] of GLYPHS[kind.shape]) glyph.append(el(tag, properties));
      glyph.style.color = colour(kind.tint ?? (runs.length === 1 ? `run${runs[0].index % 8}` : "muted"));
      return el("li", {}, glyph, `${counts.map(count).join(" + ")} ${total === 1 ? kind.one : kind.many}`);
    });
}
