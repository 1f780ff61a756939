// From columns to what uPlot draws: tables of several runs joined on one axis, smoothed lines, validation points.

import { place } from "./model.js";
import { span, view } from "./view.js";

// The mean of what was measured within `steps` around each step, as in the figures of `smet plot`; at both ends of what
// there is of these. A step without a value has none.
export function smoothed(x, values, steps) {
  let [low, high, sum, known] = [0, 0, 0, 0];
  const isKnown = (value) => value !== null && value !== undefined;
  return values.map((value, at) => {
    for (; high < x.length && x[high] <= x[at] + steps / 2; high++) {
      if (isKnown(values[high])) [sum, known] = [sum + values[high], known + 1];
    }
    for (; x[low] <= x[at] - steps / 2; low++) {
      if (isKnown(values[low])) [sum, known] = [sum - values[low], known - 1];
    }
    return isKnown(value) && known ? sum / known : null;
  });
}

// How many steps there are, the first and the last one included.
export function covered(x) {
  return x.length > 1 ? ((x.at(-1) - x[0]) * x.length) / (x.length - 1) : x.length;
}

// What is drawn of one run in one chart: [{role, values}] over its own x.
function metricLines(run, chart) {
  const source = view.zoom && run.window ? run.window : run.metrics;
  const column = source.columns[chart.column];
  if (!column || !source.x.length) return null;
  const scaled = (values) => (chart.factor ? values.map((v) => (v === null ? null : v * chart.factor)) : values);
  const lines = [];
  const steps = chart.smooth ? span(covered(source.x)) : 0;
  const mid = scaled(column.mid);
  if (column.low)
    lines.push({ role: "low", values: scaled(column.low) }, { role: "high", values: scaled(column.high) });
  if (steps >= 2) {
    if (!column.low) lines.push({ role: "raw", values: mid });
    lines.push({ role: "smooth", values: smoothed(source.x, mid, steps) });
  } else lines.push({ role: "line", values: mid });
  return { x: xOf(run, source), lines };
}

function xOf(run, source) {
  const tokens = source.columns.tokens?.mid;
  return view.axis === "tokens" && tokens ? tokens : source.x;
}

function topologyLines(run, chart) {
  const rows = run.topology.filter((row) => row.step !== null);
  if (!rows.length) return null;
  return {
    x: rows.map((row) => place(run, row.step, view.axis)),
    lines: chart.rows.map(([role, key]) => ({
      role,
      values: rows.map((row) => (row[key] === null ? null : row[key] * (chart.factor ?? 1))),
    })),
  };
}

function validationLines(run) {
  const points = run.metrics.validation;
  if (!points.length) return null;
  return {
    x: points.map(([step]) => place(run, step, view.axis)),
    lines: [{ role: "validation", values: points.map(([, loss]) => loss) }],
  };
}

function isAscending(x) {
  return x.every((value, at) => value !== null && (at === 0 || value > x[at - 1]));
}

// {data, series: [{run, role}]} of all runs that have something to show in a chart; null if none has.
export function tableOf(runs, chart) {
  const tables = [];
  const series = [];
  for (const run of runs) {
    const found = chart.rows ? [topologyLines(run, chart)] : [metricLines(run, chart)];
    if (chart.validation) found.push(validationLines(run));
    for (const part of found) {
      if (!part || !isAscending(part.x)) continue;
      tables.push([part.x, ...part.lines.map((line) => line.values)]);
      series.push(...part.lines.map((line) => ({ run, role: line.role })));
    }
  }
  if (!tables.length) return null;
  return { data: tables.length === 1 ? tables[0] : uPlot.join(tables), series };
}
