// Buttons and shortcuts: whatever the mouse can do, keys can.

import { toggle } from "./cards.js";
import { neighbour } from "./layers.js";
import { model } from "./model.js";
import { change, next, view } from "./view.js";
import { el, say } from "./words.js";

const SHORTCUTS = [
  ["1 to 9", "show or hide a run in the charts", null],
  [
    "d",
    "details of the next run",
    () => change({ chosen: (view.chosen + 1) % Math.max(1, model.runs.length), layer: null }),
  ],
  ["x", "steps or tokens on the horizontal axis", () => change({ axis: next("axis"), zoom: null })],
  ["s", "smoothing: off, light, medium, strong", () => change({ smoothing: next("smoothing") })],
  ["l", "loss on a linear or a logarithmic scale", () => change({ scale: next("scale") })],
  ["r", "show all steps again, after a part was chosen with the mouse", () => change({ zoom: null })],
  ["[ and ]", "mask of the layer before, of the next one", null],
  ["v", "layers by density or by tiles moved", () => change({ value: view.value === "density" ? "moved" : "density" })],
  ["p", "pause, and go on", () => change({ paused: !view.paused })],
  ["t", "theme: as the system, light, dark", () => change({ theme: next("theme") })],
  ["arrow keys", "on a chart: read its values; on the layers: move", null],
  ["?", "this list", () => document.getElementById("keys").showModal()],
];

const BUTTONS = { axis: "x", smooth: "s", scale: "l", reset: "r", pause: "p", theme: "t", help: "?" };

export function listen() {
  const act = Object.fromEntries(SHORTCUTS.filter(([, , what]) => what).map(([key, , what]) => [key, what]));
  act["["] = () => change({ layer: neighbour(-1) });
  act["]"] = () => change({ layer: neighbour(1) });
  for (const [id, key] of Object.entries(BUTTONS)) document.getElementById(id).addEventListener("click", act[key]);
  document.getElementById("by-density").addEventListener("click", () => change({ value: "density" }));
  document.getElementById("by-moved").addEventListener("click", () => change({ value: "moved" }));
  document
    .querySelector("#keys dl")
    .append(...SHORTCUTS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open) return;
    const what = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : act[event.key];
    if (!what) return;
    event.preventDefault();
    what();
  });
}

// What the buttons say follows what is set, whoever set it.
export function tellButtons(changes = {}) {
  const words = {
    axis: `axis: ${view.axis}`,
    smooth: `smoothing: ${view.smoothing}`,
    scale: `loss: ${view.scale}`,
    pause: view.paused ? "go on" : "pause",
    theme: `theme: ${view.theme}`,
  };
  for (const [id, text] of Object.entries(words)) document.getElementById(id).textContent = text;
  document.getElementById("pause").setAttribute("aria-pressed", String(view.paused));
  document.getElementById("reset").hidden = view.zoom === null;
  const said = Object.keys(changes).map((key) => words[{ smoothing: "smooth", paused: "pause" }[key] ?? key]);
  if (said.some(Boolean)) say(said.filter(Boolean).join(", "));
}
