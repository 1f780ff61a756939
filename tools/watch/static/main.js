// Asks the server for what is new, and draws what has changed.

import { drawCards, drawChoice } from "./cards.js";
import { buildCharts, drawCharts, repaint, zoomedSteps } from "./charts.js";
import { listen, tellButtons } from "./keys.js";
import { drawLayers, drawMask, showMask } from "./layers.js";
import { have, merge, model } from "./model.js";
import { drawRanks } from "./ranks.js";
import { drawCheckpoints, drawEvents, drawMemory, drawSamples } from "./tables.js";
import { applyTheme, onChange, onSystemTheme, restore, view } from "./view.js";

const EVERY_MS = 1000;
const PANELS = {
  events: drawEvents,
  samples: drawSamples,
  memory: drawMemory,
  checkpoints: drawCheckpoints,
  status: drawRanks,
  topology: drawLayers,
};
let failures = 0;

restore();
applyTheme();
buildCharts(document.getElementById("charts"));
listen();
tellButtons();
onChange(react);
onSystemTheme(repaintAll);
poll();

async function poll() {
  if (!view.paused && !document.hidden) {
    try {
      const query = new URLSearchParams({ have: JSON.stringify(have()) });
      const answer = await fetch(`/news?${query}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(await answer.text());
      await show(merge(await answer.json()));
      failures = 0;
    } catch (error) {
      failures += 1;
      if (!(error instanceof TypeError && /fetch/i.test(error.message))) console.error(error);
    }
  }
  tellLive();
  const reading = !failures && model.runs.some((run) => run.more) && !view.paused;
  setTimeout(poll, reading ? 0 : Math.min(10, 1 + failures) * EVERY_MS);
}

function tellLive() {
  const live = document.getElementById("live");
  const state = failures ? "lost" : view.paused ? "paused" : "live";
  live.dataset.state = state;
  const words = { lost: "the server does not answer; trying again", paused: "paused", live: "live" };
  const text = live.querySelector("span");
  if (text.textContent !== words[state]) text.textContent = words[state];
}

async function show(changes) {
  const chosen = model.runs[view.chosen];
  const own = changes[view.chosen] ?? new Set();
  const all = own.has("settings"); // what is missing is explained by them
  for (const section of ["status", "checkpoints"]) {
    if (chosen && !all && !own.has(section)) PANELS[section](chosen); // they tell how long ago things were
  }
  const changed = new Set(changes.flatMap((sections) => [...sections]));
  if (!changed.size) return;
  drawCards(document.getElementById("runs"));
  drawChoice(document.getElementById("chosen"));
  if (["metrics", "topology", "events"].some((name) => changed.has(name))) {
    if (view.zoom) await readWindows();
    drawCharts();
  }
  for (const [section, draw] of Object.entries(PANELS)) if (all || own.has(section)) draw(chosen);
  if (own.has("checkpoints")) await newMask();
}

async function newMask() {
  const run = model.runs[view.chosen];
  if (run && (await showMask(run))) drawLayers(run);
}

function drawPanels() {
  const run = model.runs[view.chosen];
  if (run) for (const draw of Object.values(PANELS)) draw(run);
}

// Of the steps that the zoom shows, more points than of the whole run.
async function readWindows() {
  const { zoom } = view;
  await Promise.all(
    model.runs.map(async (run) => {
      const [from, to] = zoomedSteps(run);
      const answer = await fetch(`/window?${new URLSearchParams({ run: run.index, from, to })}`);
      if (answer.ok && view.zoom === zoom) run.window = await answer.json();
    }),
  );
}

async function react(changes) {
  tellButtons(changes);
  if ("theme" in changes) {
    applyTheme();
    repaintAll();
    return;
  }
  if ("zoom" in changes) {
    for (const run of model.runs) run.window = null;
    if (view.zoom) await readWindows();
  }
  if ("shown" in changes) drawCards(document.getElementById("runs"));
  if ("chosen" in changes) {
    drawChoice(document.getElementById("chosen"));
    drawPanels();
    await newMask();
  }
  if ("layer" in changes) {
    if (view.layer !== null) await newMask();
    drawLayers(model.runs[view.chosen]);
  }
  if ("value" in changes) drawLayers(model.runs[view.chosen]);
  if (["axis", "smoothing", "scale", "zoom", "shown"].some((name) => name in changes)) drawCharts();
}

function repaintAll() {
  // A style sheet whose medium has changed is in force when the next frame is drawn.
  requestAnimationFrame(() => {
    repaint();
    drawCards(document.getElementById("runs"));
    drawPanels();
    drawMask();
  });
}
