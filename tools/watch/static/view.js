// How the reader wants to see it: axis, smoothing, scale, zoom, theme; remembered in this browser where it allows that.

// Shares of the steps that are shown.
const SMOOTHING = { off: 0, light: 1 / 100, medium: 1 / 30, strong: 1 / 10 };
const KEPT = ["axis", "smoothing", "scale", "theme", "value"];

export const view = {
  axis: "steps",
  smoothing: "medium",
  scale: "linear",
  theme: "system",
  value: "density",
  zoom: null,
  paused: false,
  chosen: 0,
  layer: null,
};

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export function change(changes) {
  Object.assign(view, changes);
  try {
    for (const key of KEPT) localStorage.setItem(`smet-watch-${key}`, view[key]);
  } catch {
    // A browser that keeps nothing shows the page all the same.
  }
  for (const listener of listeners) listener(changes);
}

export function restore() {
  const allowed = {
    axis: ["steps", "tokens"],
    smoothing: Object.keys(SMOOTHING),
    scale: ["linear", "log"],
    theme: ["system", "light", "dark"],
    value: ["density", "moved"],
  };
  try {
    for (const key of KEPT) {
      const kept = localStorage.getItem(`smet-watch-${key}`);
      if (allowed[key].includes(kept)) view[key] = kept;
    }
  } catch {
    // As above.
  }
}

export function next(key) {
  const order = {
    axis: ["steps", "tokens"],
    smoothing: Object.keys(SMOOTHING),
    scale: ["linear", "log"],
    theme: ["system", "light", "dark"],
  }[key];
  return order[(order.indexOf(view[key]) + 1) % order.length];
}

// Steps over which a line is smoothed that shows `steps` of them: 1, 2 or 5 times a power of ten; 0 = not at all.
export function span(steps) {
  const wanted = SMOOTHING[view.smoothing] * steps;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const found = Math.max(...[1, 2, 5].map((one) => one * power).filter((one) => one <= wanted * 1.000001));
  return wanted >= 2 ? found : 0;
}

export function applyTheme() {
  const media = { system: "(prefers-color-scheme: dark)", light: "not all", dark: "all" }[view.theme];
  document.getElementById("dark").media = media;
}

export function onSystemTheme(listener) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", listener);
}
