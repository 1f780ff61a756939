// The charts: which there are, and how uPlot draws them.

import { drawMarks, markLegend } from "./marks.js";
import { place, shownRuns, stepAt } from "./model.js";
import { covered, tableOf } from "./lines.js";
import { change, span, view } from "./view.js";
import { colour, count, el, empty, figure, plural, short, ticks } from "./words.js";

const CHARTS = [
  { id: "loss", title: "Loss", unit: "nats per token", column: "loss", smooth: true, validation: true, main: true },
  { id: "lr", title: "Learning rate", unit: "no unit", column: "lr", zero: true },
  { id: "norm", title: "Gradient norm", unit: "L2, before clipping", column: "grad_norm", smooth: true },
  { id: "speed", title: "Throughput", unit: "tokens/s", column: "tokens_per_second", smooth: true, zero: true },
  {
    id: "mfu",
    title: "MFU",
    unit: "% of the devices' peak",
    column: "mfu",
    smooth: true,
    factor: 100,
    zero: true,
    instead: { title: "Active compute", unit: "TFLOP/s per device; no peak is known", column: "tflops", factor: 1 },
  },
  {
    id: "peak",
    title: "Peak memory",
    unit: "GB, fullest rank",
    column: "memory_peak_fullest",
    factor: 1e-9,
    zero: true,
  },
  {
    id: "density",
    title: "Density",
    unit: "% of tiles active",
    factor: 100,
    top: 100,
    zero: true,
    rows: [
      ["low", "low"],
      ["high", "high"],
      ["dots", "mean"],
    ],
  },
  { id: "moved", title: "Tiles moved", unit: "tiles per update", zero: true, rows: [["dots", "grown"]] },
];

const WHY_EMPTY = {
  mfu: "No peak of its devices is known to the run.",
  peak: "The run does not record it.",
  density: "No topology update yet: densities come with each.",
  moved: "No topology update yet.",
};
const built = new Map();

export function buildCharts(root) {
  for (const chart of CHARTS) {
    const readout = el("p", { class: "readout", "aria-hidden": "true" });
    const heading = el("h2", {}, chart.title, " ", el("span", { class: "unit" }, chart.unit));
    const plot = el("div", { class: "plot", tabindex: "0", role: "img", "aria-label": chart.title });
    const box = el(
      "article",
      { class: `chart${chart.main ? " main" : ""}`, id: `chart-${chart.id}` },
      el("header", {}, heading, readout),
      plot,
      chart.main ? el("ul", { class: "marks", "aria-label": "Marked in the charts" }) : null,
    );
    const made = { chart, first: chart, heading, box, plot, readout, drawn: null, key: "", series: [] };
    plot.addEventListener("keydown", (event) => readByKey(made, event));
    new ResizeObserver(() => resize(made)).observe(plot);
    built.set(chart.id, made);
    root.append(box);
  }
  root.append(el("article", { class: "chart", id: "chart-none" }, el("h2", {}, "Not there"), el("dl", {})));
}

export function drawCharts(only = null) {
  for (const made of built.values()) if (!only || only(made.chart)) draw(made);
  const runs = shownRuns();
  tellMissing();
  document.querySelector(".marks").replaceChildren(...markLegend(runs), ...lineLegend(runs));
}

// Charts without anything are not drawn: one place says which, and why.
function tellMissing() {
  const reasons = new Map();
  for (const { chart, drawn, why } of built.values()) {
    if (!chart.main && !drawn) reasons.set(why, [...(reasons.get(why) ?? []), chart.title]);
  }
  const box = document.getElementById("chart-none");
  box.hidden = !reasons.size;
  box
    .querySelector("dl")
    .replaceChildren(...[...reasons].flatMap(([why, titles]) => [el("dt", {}, titles.join(", ")), el("dd", {}, why)]));
}

// Colours are read again: of the theme, or of the runs.
export function repaint() {
  for (const made of built.values()) made.key = "";
  drawCharts();
}

function lineLegend(runs) {
  const found = [];
  const metrics = runs.map((run) => run.metrics);
  if (metrics.some((one) => one.size > 1)) {
    found.push(el("li", {}, `band: lowest to highest of ${Math.max(...metrics.map((one) => one.size))} steps`));
  }
  if (view.smoothing !== "off" && metrics.some((one) => one.rows)) found.push(el("li", {}, smoothing(metrics)));
  if (metrics.some((one) => one.validation.length)) found.push(el("li", {}, "rings: validation"));
  const odd = metrics.reduce((sum, one) => sum + (one.not_finite.loss ?? 0), 0);
  if (odd) found.push(el("li", { class: "warn" }, `${plural(odd, "loss", "losses")} not finite: gaps`));
  return found;
}

function smoothing(metrics) {
  const over = [...new Set(metrics.map((one) => span(covered(one.x))))].filter(Boolean);
  if (view.zoom || over.length !== 1) return `strong: mean of the steps around (${view.smoothing}), faint: as measured`;
  return `strong: mean of ${count(over[0])} steps around, faint: as measured`;
}

// Some figures are there only where another one can be reckoned from them.
function variant(made, runs) {
  const { first } = made;
  const has = (column) => runs.some((run) => run.metrics.columns[column]);
  const chart =
    first.instead && !has(first.column) && has(first.instead.column) ? { ...first, ...first.instead } : first;
  if (chart.column !== made.chart.column) {
    made.heading.replaceChildren(chart.title, " ", el("span", { class: "unit" }, chart.unit));
    made.chart = chart;
  }
}

function draw(made) {
  const runs = shownRuns();
  variant(made, runs);
  const { chart } = made;
  const table = tableOf(runs, chart);
  if (!table) {
    made.why = whyEmpty(chart, runs);
    forget(made);
    made.box.classList.add("bare");
    made.plot.replaceChildren(empty(made.why));
    made.readout.textContent = "";
    return;
  }
  const key = JSON.stringify([
    table.series.map(({ run, role }) => [run.index, role]),
    view.scale,
    view.axis,
    runs.length,
  ]);
  made.series = table.series;
  made.runs = runs;
  if (made.key === key && made.drawn) {
    made.drawn.setData(table.data);
  } else {
    forget(made);
    made.plot.replaceChildren();
    made.drawn = new uPlot(options(made, table), table.data, made.plot);
    made.key = key;
  }
  tell(made);
}

function whyEmpty(chart, runs) {
  if (!runs.length) return "No run is shown: press 1 to 9, or a run's name.";
  if (runs.some((run) => run.more)) return "Reading the run's files.";
  if (!runs.some((run) => run.metrics.rows)) return "No step is finished yet.";
  return WHY_EMPTY[chart.id] ?? "The run has recorded no finite value of it.";
}

function forget(made) {
  made.drawn?.destroy();
  made.drawn = null;
  made.key = "";
}

function resize(made) {
  const width = made.plot.clientWidth;
  if (made.drawn && width && width !== made.drawn.width) made.drawn.setSize({ width, height: made.drawn.height });
}

function options(made, table) {
  const { chart } = made;
  const isLog = chart.main && view.scale === "log";
  const font = "11px system-ui, sans-serif";
  const axis = {
    font,
    labelFont: font,
    labelSize: 15,
    stroke: () => colour("muted"),
    grid: { stroke: () => colour("grid"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: made.plot.clientWidth || 300,
    height: chart.main ? (innerWidth < 720 ? 240 : 330) : 172,
    legend: { show: false },
    padding: [8, 12, 0, 0],
    cursor: {
      sync: {
        key: "watch",
        setSeries: false,
        filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
      },
      drag: { x: true, y: false, setScale: false },
      points: { size: 6 },
      y: false,
      bind: { dblclick: () => () => (change({ zoom: null }), null) },
    },
    scales: {
      x: {
        time: false,
        range: (u, low, high) => view.zoom ?? whole(made.runs, low ?? 0, high ?? 0),
      },
      y: { distr: isLog ? 3 : 1, range: isLog ? undefined : (u, low, high) => yRange(chart, low, high) },
    },
    axes: [
      {
        ...axis,
        size: 26,
        gap: 4,
        space: 70,
        label: view.axis === "tokens" ? "tokens" : "optimizer step",
        values: (u, at) => ticks(at),
      },
      {
        ...axis,
        size: (u, values) => 16 + 6.5 * Math.max(2, ...(values ?? []).map((text) => text.length)),
        gap: 4,
        space: 28,
        values: (u, at) => ticks(at),
      },
    ],
    series: [{}, ...table.series.map((one) => lineStyle(one, made))],
    bands: bandsOf(table.series),
    hooks: {
      drawAxes: [(u) => drawMarks(u, made.runs, view.axis)],
      setCursor: [() => tell(made)],
      setSelect: [(u) => select(u)],
    },
  };
}

// All charts share the steps of the runs that are shown, so that what stands below each other happened together.
function whole(runs, low, high) {
  for (const run of runs) {
    const { x } = run.metrics;
    if (!x.length) continue;
    low = Math.min(low, place(run, x[0], view.axis) ?? low);
    high = Math.max(high, place(run, x.at(-1), view.axis) ?? high);
  }
  return high > low ? [low, high] : [low - 1, high + 1];
}

function yRange(chart, low, high) {
  if (low === null) return [0, 1];
  if (chart.top) return [0, Math.max(chart.top, high)];
  const gap = (high - low || Math.abs(high) || 1) * 0.06;
  return [chart.zero ? Math.min(0, low) : low - gap, high + gap];
}

function select(u) {
  if (u.select.width < 4) return;
  const zoom = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  change({ zoom });
}

function lineStyle({ run, role }, made) {
  const tint = () => colour(`run${run.index % 8}`);
  const pale = (strength) => () => faded(tint(), strength);
  const dash = run.index ? [[], [7, 3], [2, 3], [8, 3, 2, 3]][run.index % 4] : [];
  const base = { points: { show: false }, dash, spanGaps: false };
  const styles = {
    low: { stroke: pale(30), width: 0.5, dash: [] },
    high: { stroke: pale(30), width: 0.5, dash: [] },
    raw: { stroke: pale(38), width: 1, dash: [] },
    smooth: { stroke: tint, width: run.index ? 1.75 : 2.25 },
    line: { stroke: tint, width: run.index ? 1.25 : 1.6 },
    dots: { stroke: tint, width: 1.25, points: { show: true, size: 4.5, fill: tint, stroke: tint } },
    validation: {
      stroke: pale(70),
      width: 0,
      points: { show: true, size: 8, width: 2, stroke: tint, fill: () => colour("panel") },
    },
  };
  return { ...base, label: `${run.name} ${role}`, ...styles[role] };
}

function faded(tint, share) {
  return (
    tint +
    Math.round(2.55 * share)
      .toString(16)
      .padStart(2, "0")
  );
}

function bandsOf(series) {
  const found = [];
  series.forEach(({ run, role }, at) => {
    if (role === "high" && series[at - 1].role === "low") {
      found.push({ series: [at + 1, at], fill: () => faded(colour(`run${run.index % 8}`), 20) });
    }
  });
  return found;
}

// The values under the cursor, or the last ones; and for those who do not see it, the same as the chart's name.
function tell(made) {
  const { drawn, chart, readout } = made;
  if (!drawn) return;
  const idx = drawn.cursor.idx;
  const parts = [];
  for (const run of made.runs) {
    const values = made.series
      .map((one, at) => ({ ...one, value: valueAt(drawn.data[at + 1], idx) }))
      .filter((one) => one.run === run && one.value !== null && one.role !== "low" && one.role !== "high");
    if (!values.length) continue;
    const said = values.map(({ role, value }) => `${WORDS[role]}${figure(value)}`).join(" · ");
    parts.push({ run, said });
  }
  const x = drawn.data[0][idx ?? drawn.data[0].length - 1];
  const where = view.axis === "tokens" ? `${short(x)} tokens` : `step ${count(x)}`;
  const many = made.runs.length > 1;
  readout.replaceChildren(
    `${where} · `,
    ...parts.flatMap(({ run, said }, at) => {
      const value = el("b", many ? { colour: colour(`run${run.index % 8}`) } : {}, said);
      return at ? [" ", value] : [value];
    }),
  );
  const words = parts.map(({ run, said }) => (many ? `${run.name}: ${said}` : said)).join("; ");
  made.plot.setAttribute("aria-label", `${chart.title}, ${chart.unit}. ${where}: ${words}. Arrow keys read values.`);
}

const WORDS = { raw: "", smooth: "smoothed ", line: "", dots: "", validation: "validation " };

function valueAt(values, idx) {
  // Where runs are joined, a place of another run is undefined, and what counts is the one before.
  for (let at = idx ?? values.length - 1; at >= 0; at--) if (values[at] !== undefined) return values[at];
  return null;
}

function readByKey(made, event) {
  const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity }[event.key];
  if (move === undefined || !made.drawn) return;
  event.preventDefault();
  const { drawn } = made;
  const most = drawn.data[0].length - 1;
  const at = Math.min(most, Math.max(0, (drawn.cursor.idx ?? most) + move));
  drawn.setCursor({ left: drawn.valToPos(drawn.data[0][at], "x"), top: 10 });
  document.getElementById("said").textContent = made.readout.textContent;
}

// The steps that the zoom shows of a run.
export function zoomedSteps(run) {
  return view.zoom.map((at) => stepAt(run, at, view.axis));
}
