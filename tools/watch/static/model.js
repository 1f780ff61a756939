// What is known of the runs: answers of the server are merged into it, section by section.

export const model = { runs: [], now: 0, server: null };

const EMPTY = { size: 1, rows: 0, x: [], columns: {}, validation: [], not_finite: {} };

function newRun(index) {
  return {
    index,
    name: "",
    shown: true,
    more: true,
    tokens: {},
    metrics: structuredClone(EMPTY),
    window: null,
    events: [],
    topology: [],
    newest: [],
    samples: [],
    status: null,
    settings: {},
    memory: null,
    checkpoints: null,
    problems: [],
  };
}

export function have() {
  return Object.fromEntries(model.runs.map((run) => [run.index, run.tokens]));
}

// Returns the names of the sections that changed, by the number of the run.
export function merge(answer) {
  if (model.server !== null && model.server !== answer.server) {
    location.reload(); // another server: what it counts begins anew
    return [];
  }
  model.server = answer.server;
  model.now = answer.now;
  return answer.runs.map((news, index) => {
    const run = (model.runs[index] ??= newRun(index));
    run.name = news.name;
    run.more = news.more;
    const changed = new Set();
    for (const [name, section] of Object.entries(news)) {
      if (name === "name" || name === "more") continue;
      run.tokens[name] = section.token;
      changed.add(name);
      if (name === "metrics") mergeMetrics(run, section);
      else if ("content" in section) run[name] = section.content;
      else {
        run[name] = (section.anew ? [] : run[name]).concat(section.rows).slice(-2000);
        if (name === "topology") run.newest = section.newest;
      }
    }
    return changed;
  });
}

function mergeMetrics(run, news) {
  if (news.anew) run.metrics = structuredClone(EMPTY);
  const metrics = run.metrics;
  metrics.size = news.size;
  metrics.rows = news.rows;
  metrics.not_finite = news.not_finite;
  metrics.x.length = news.first;
  metrics.x.push(...news.x);
  for (const column of Object.values(metrics.columns)) {
    for (const line of Object.values(column)) line.length = news.first;
  }
  for (const [name, lines] of Object.entries(news.columns)) {
    const column = (metrics.columns[name] ??= {});
    for (const [line, values] of Object.entries(lines)) {
      column[line] ??= new Array(news.first).fill(null);
      column[line].push(...values);
    }
  }
  metrics.validation.push(...news.validation_loss);
}

export function shownRuns() {
  return model.runs.filter((run) => run.shown);
}

export function last(run, name) {
  const line = run.metrics.columns[name]?.mid;
  if (!line) return null;
  for (let at = line.length - 1; at >= 0; at--) if (line[at] !== null && line[at] !== undefined) return line[at];
  return null;
}

// The mean of the last values of a column that are known, at most `most` of them.
export function recent(run, name, most = 20) {
  const known = (run.metrics.columns[name]?.mid ?? [])
    .slice(-most)
    .filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

export function reached(run) {
  return run.metrics.x.at(-1) ?? 0;
}

// The place of a step on the axis of steps or tokens.
export function place(run, step, axis) {
  if (axis === "steps") return step;
  const { x, columns } = run.metrics;
  const tokens = columns.tokens?.mid;
  if (!tokens || !x.length) return null;
  let [low, high] = [0, x.length - 1];
  if (step >= x[high]) return (tokens[high] * step) / x[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= step) low = middle;
    else high = middle;
  }
  if (step <= x[low]) return (tokens[low] * step) / x[low];
  return tokens[low] + ((tokens[high] - tokens[low]) * (step - x[low])) / (x[high] - x[low]);
}

// The step at a place of the axis.
export function stepAt(run, at, axis) {
  if (axis === "steps") return at;
  const total = run.metrics.columns.tokens?.mid.at(-1);
  return total ? (at * reached(run)) / total : at;
}
