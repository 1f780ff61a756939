// The layers of a run as a grid of blocks and kinds, and the mask of one of them with the ages of its tiles.

import { change, view } from "./view.js";
import { colour, count, el, empty, fill, heads, percent, short } from "./words.js";

let rows = [];
let pictured = { key: "", picture: null };

// "model.layers.3.mlp.up_proj" stands in row 3, column "mlp.up_proj"; a name without a number has a row of its own.
function places(names) {
  const blocks = new Map();
  const kinds = new Map();
  for (const name of names) {
    const found = /^(.*?)(\d+)\.(.+)$/.exec(name);
    const [block, kind] = found ? [`${found[1]}${found[2]}`, found[3]] : [name, ""];
    if (!blocks.has(block)) blocks.set(block, { label: found ? found[2] : name, cells: new Map() });
    kinds.set(kind, true);
    blocks.get(block).cells.set(kind, name);
  }
  return { blocks: [...blocks.values()], kinds: [...kinds.keys()] };
}

export function drawLayers(run) {
  const panel = document.getElementById("layers");
  const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.layer : undefined;
  document.getElementById("by-density").setAttribute("aria-pressed", String(view.value === "density"));
  document.getElementById("by-moved").setAttribute("aria-pressed", String(view.value === "moved"));
  const told = run.newest.length > 0;
  const layers = told ? run.newest : (pictured.picture?.layers ?? []).map((name) => [name, null, null]);
  if (!layers.length) {
    const due = run.settings["sparsity.update_interval"];
    const why =
      run.settings["sparsity.method"] === "dense"
        ? "This run is dense: it has no masks."
        : `No topology update yet${due ? `: one comes every ${due} steps` : ""}.`;
    fill(panel, "", empty(why));
    return;
  }
  const values = new Map(layers.map(([name, density, moved]) => [name, view.value === "density" ? density : moved]));
  const most = view.value === "density" ? 1 : Math.max(1, ...[...values.values()].map((value) => value ?? 0));
  const last = run.topology.at(-1);
  const missing = told && view.value === "moved" && layers.every(([, , moved]) => moved === null);
  const what = view.value === "density" ? "share of tiles that are active" : "tiles grown at the newest update";
  const note = told
    ? `${what}, after update ${count(last?.update)} (step ${count(last?.step)})`
    : "no update is recorded yet; layers of the newest checkpoint";
  fill(
    panel,
    missing ? "this run does not record tiles moved by layer" : note,
    grid(
      layers.map(([name]) => name),
      values,
      most,
    ),
  );
  if (focused !== undefined) focusLayer(focused);
}

function grid(names, values, most) {
  const { blocks, kinds } = places(names);
  const chosen = view.layer ?? pictured.picture?.layer ?? names[0];
  const deep = colour("strong");
  rows = blocks.map((block) => kinds.map((kind) => block.cells.get(kind) ?? null));
  return el(
    "div",
    { class: "layers-box" },
    el(
      "table",
      { class: "grid", role: "grid", "aria-label": "Layers; arrow keys move, Enter shows the mask", onkeydown: move },
      heads(["block", ...kinds.map((kind) => kind.replace("self_attn.", "").replace("mlp.", ""))]),
      el(
        "tbody",
        {},
        blocks.map((block) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, block.label),
            kinds.map((kind) => cell(block.cells.get(kind), values, most, chosen, deep)),
          ),
        ),
      ),
    ),
  );
}

function cell(name, values, most, chosen, deep) {
  if (name === undefined) return el("td", {});
  const value = values.get(name) ?? null;
  const said = value === null ? "–" : view.value === "density" ? percent(value) : short(value);
  const button = el(
    "button",
    {
      type: "button",
      "data-layer": name,
      tabindex: name === chosen ? "0" : "-1",
      "aria-selected": String(name === chosen),
      role: "gridcell",
      "aria-label": `${name}: ${said} ${view.value === "density" ? "active" : "tiles moved"}`,
      title: name,
      onclick: () => change({ layer: name }),
    },
    said,
  );
  const share = value === null ? 0 : Math.min(1, value / most);
  button.style.background =
    deep +
    Math.round(6 + 74 * share)
      .toString(16)
      .padStart(2, "0");
  return el("td", {}, button);
}

function move(event) {
  const name = document.activeElement?.dataset?.layer;
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (name === undefined || !by) return;
  event.preventDefault();
  let row = rows.findIndex((cells) => cells.includes(name));
  let at = rows[row].indexOf(name);
  do [row, at] = [row + by[0], at + by[1]];
  while (rows[row]?.[at] === null);
  const target = rows[row]?.[at];
  if (target) focusLayer(target);
}

function focusLayer(name) {
  for (const button of document.querySelectorAll("#layers [data-layer]")) {
    button.tabIndex = button.dataset.layer === name ? 0 : -1;
    if (button.dataset.layer === name) button.focus();
  }
}

// The layer before or behind the one that is shown.
export function neighbour(step) {
  const names = rows.flat().filter((name) => name !== null);
  const at = names.indexOf(view.layer ?? pictured.picture?.layer);
  return names[(at + step + names.length) % names.length] ?? null;
}

// Fetches the picture if the layer, or the newest checkpoint, is another one than before.
export async function showMask(run) {
  const newest = run.checkpoints?.rows.at(-1);
  const key = JSON.stringify([run.index, view.layer, newest?.name, newest?.time]);
  if (pictured.key === key) return false;
  pictured = { key, picture: null };
  const panel = document.getElementById("mask");
  if (!run.checkpoints) return false;
  if (!newest) {
    fill(panel, "", empty(`No checkpoint is published yet: masks are read from the newest one${every(run)}.`));
    return false;
  }
  fill(panel, "reading the newest checkpoint");
  const query = new URLSearchParams({ run: run.index, ...(view.layer ? { layer: view.layer } : {}) });
  let picture;
  try {
    picture = await (await fetch(`/mask?${query}`)).json();
  } catch {
    pictured.key = ""; // tried again with the next news
    return false;
  }
  if (pictured.key !== key) return false;
  if (picture.problem) {
    fill(panel, "", empty(picture.problem));
    return false;
  }
  pictured.picture = picture;
  drawMask();
  return true;
}

function every(run) {
  const interval = run.settings["checkpoint.interval"];
  return interval && interval !== "0" ? `, every ${interval} steps` : "";
}

export function drawMask() {
  const { picture } = pictured;
  if (!picture) return;
  const canvas = el("canvas", { class: "picture", width: picture.width, height: picture.height, role: "img" });
  const [active, age] = [decoded(picture.active), decoded(picture.age)];
  const [ground, young, old] = [rgb(colour("panel")), rgb(colour("young")), rgb(colour("old"))];
  const image = new ImageData(picture.width, picture.height);
  for (let at = 0; at < active.length; at++) {
    const [share, years] = [active[at] / 255, age[at] / 255];
    for (let c = 0; c < 3; c++) {
      const ink = young[c] + (old[c] - young[c]) * Math.sqrt(years);
      image.data[4 * at + c] = ground[c] + (ink - ground[c]) * Math.min(1, 0.15 * (share > 0) + 0.95 * share);
    }
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const down = picture.outputs / picture.height;
  const across = picture.inputs / picture.width;
  const whole = down <= 1 && across <= 1;
  if (picture.width > 420) canvas.classList.add("smooth");
  const share = percent(picture.open / picture.tiles);
  const each = whole ? "a pixel is a tile" : `a pixel is about ${trim(down)} x ${trim(across)} tiles`;
  canvas.setAttribute("aria-label", `Mask of ${picture.layer}: ${share} of ${count(picture.tiles)} tiles active`);
  const order = picture.permuted ? " · features permuted, as tiles lie over them" : "";
  const note = `${picture.layer} · step ${count(picture.step)} · ${count(picture.outputs)} x ${count(picture.inputs)} tiles of ${picture.tile.join(" x ")} · ${share} active · ${each}${order}`;
  fill(
    document.getElementById("mask"),
    note,
    el(
      "div",
      { class: "frame" },
      el("span", { class: "up" }, "outputs"),
      canvas,
      el("span", { class: "across" }, "inputs"),
    ),
    picture.aged ? ramp(young, old) : null,
    el("p", { class: "note" }, ages(picture)),
  );
}

function trim(value) {
  return String(Number(value.toPrecision(2)));
}

function ages(picture) {
  if (!picture.aged) return "This layer's topology never changes: all its tiles are as old as the run.";
  const total = picture.open || 1;
  const from = (born) =>
    picture.births.filter(([step]) => born(step)).reduce((sum, [, tiles]) => sum + tiles, 0) / total;
  const newest = picture.births.at(-1)?.[0] ?? 0;
  const first = `${percent(from((step) => step === 0))} of its active tiles are there from the start (or long settled)`;
  return newest > 0
    ? `${first}, ${percent(from((step) => step === newest))} were grown at step ${count(newest)}.`
    : `${first}.`;
}

function ramp(young, old) {
  const canvas = el("canvas", { width: 100, height: 1, "aria-hidden": "true" });
  const image = new ImageData(100, 1);
  for (let at = 0; at < 100; at++) {
    for (let c = 0; c < 3; c++) image.data[4 * at + c] = young[c] + (old[c] - young[c]) * Math.sqrt(at / 99);
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return el("p", { class: "ramp" }, "grown just now", canvas, "as old as the run");
}

function decoded(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function rgb(hex) {
  const full = hex.length === 4 ? [...hex.slice(1)].map((letter) => letter + letter).join("") : hex.slice(1);
  return [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16));
}
