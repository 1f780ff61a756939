// Numbers and times as people read them, and elements made of text: nothing from a run folder is ever parsed as HTML.

export function el(tag, properties = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "colour") made.style.color = value;
    else if (name === "background") made.style.background = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

// Heads of a table's columns; those of numbers are named in `numbers`.
export function heads(names, numbers = []) {
  const head = (name) => el("th", { scope: "col", class: numbers.includes(name) ? "n" : null }, name);
  return el("thead", {}, el("tr", {}, names.map(head)));
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function count(value) {
  return value === null || value === undefined ? "unknown" : Math.round(value).toLocaleString("en-US");
}

export function short(value, digits = 3) {
  if (value === null || value === undefined) return "unknown";
  const units = [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ];
  for (const [size, letter] of units) {
    if (Math.abs(value) >= size) return trimmed(value / size, digits) + letter;
  }
  return trimmed(value, digits);
}

// Numbers of an axis, with as many digits as tell them apart.
export function ticks(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  let digits = 3;
  const worded = () => known.map((value) => short(value, digits));
  while (digits < 9 && new Set(worded()).size < new Set(known).size) digits += 1;
  return values.map((value) => (value === null || value === undefined ? "" : short(value, digits)));
}

export function figure(value) {
  if (value === null || value === undefined) return "not finite";
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(3) : trimmed(value, 4);
}

export function trimmed(value, digits) {
  return String(Number(value.toPrecision(digits)));
}

export function percent(share, digits = 3) {
  return share === null || share === undefined ? "unknown" : `${trimmed(100 * share, digits)} %`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${at ? trimmed(value, 3) : value} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  const two = (number) => String(number).padStart(2, "0");
  if (days) return `${days}d${two(hours)}h`;
  if (hours) return `${hours}h${two(minutes)}m`;
  return minutes ? `${minutes}m${two(whole % 60)}s` : `${whole}s`;
}

export function clock(seconds) {
  const date = new Date((seconds ?? NaN) * 1000);
  if (Number.isNaN(date.getTime())) return "";
  const two = (number) => String(number).padStart(2, "0");
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":")}`;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function fill(panel, note, ...content) {
  const body = panel.querySelector(".body");
  const [top, left] = [body.scrollTop, body.scrollLeft];
  panel.querySelector(".note").textContent = note;
  body.replaceChildren(...content.flat(Infinity).filter((child) => child !== null && child !== undefined));
  [body.scrollTop, body.scrollLeft] = [top, left];
}

export function empty(why) {
  return el("p", { class: "empty" }, why);
}

export function say(text) {
  document.getElementById("said").textContent = text;
}
