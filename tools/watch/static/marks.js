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
  ctx.setLineDash([]);
  for (const run of runs) {
    const visible = marksOf(run)
      .map((mark) => ({ ...mark, at: place(run, mark.step, axis) }))
      .filter((mark) => mark.at !== null && mark.at >= min && mark.at <= max);
    for (const [name, kind] of Object.entries(KINDS)) {
      const marks = visible.filter((mark) => mark.kind === name);
      if (!marks.length) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(kind.tint ?? `run${run.index % 8}`);
      const pixel = (value) => chart.valToPos(value, "x", true);
      if (kind.shape === "tick") {
        const places = new Set(marks.map((mark) => Math.round(pixel(mark.at)))); // of thousands many are the same
        drawTicks(ctx, bbox, places, runs.length === 1 && marks.length <= LINES_UP_TO, ratio);
        continue;
      }
      for (const mark of marks) {
        const back = mark.to === null ? null : pixel(place(run, mark.to, axis) ?? mark.at);
        drawMark(ctx, bbox, Math.round(pixel(mark.at)), back, kind, ratio);
      }
    }
  }
  ctx.restore();
}

function drawTicks(ctx, box, places, tall, ratio) {
  const bottom = box.top + box.height;
  const lines = (top, alpha) => {
    ctx.globalAlpha = alpha;
    ctx.beginPath();
    for (const at of places) {
      ctx.moveTo(at, top);
      ctx.lineTo(at, bottom);
    }
    ctx.stroke();
  };
  ctx.lineWidth = ratio;
  if (tall) lines(box.top, 0.22);
  lines(bottom - 7 * ratio, 0.8);
  ctx.globalAlpha = 1;
}

function drawMark(ctx, box, at, back, kind, ratio) {
  const [top, bottom, unit] = [box.top, box.top + box.height, 5 * ratio];
  if (kind.shape === "down" || kind.shape === "up") {
    const [base, tip] = kind.shape === "down" ? [top + ratio, top + 1.5 * unit] : [top + 1.5 * unit, top + ratio];
    triangle(ctx, [at - 0.8 * unit, base], [at + 0.8 * unit, base], [at, tip]);
    return;
  }
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
