// Numbers as people read them, and elements without markup: whatever a node
// says is text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Three digits at most, and the unit that fits. */
function scaled(value, units, step) {
  let at = 0;
  while (value >= step && at + 1 < units.length) { value /= step; at += 1; }
  const digits = value >= 100 || value === 0 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[at]}`;
}

export const time = (ns) => ns >= 1e9 ? `${(ns / 1e9).toFixed(ns >= 1e10 ? 1 : 2)} s` : scaled(ns, ["ns", "µs", "ms"], 1000);
export const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"], 1000);
export const speed = (bytesPerSecond) => scaled(bytesPerSecond * 8, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"], 1000);
export const share = (of) => `${(of * 100).toFixed(of > 0 && of < 0.1 ? 1 : 0)} %`;

export function ago(ms) {
  const s = ms / 1000;
  if (s < 120) return `${s.toFixed(0)} s`;
  if (s < 7200) return `${(s / 60).toFixed(0)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(0)} h` : `${(s / 86400).toFixed(0)} days`;
}

/** A link in words; nothing where nothing is known of it. */
export function link(estimate) {
  if (!estimate || !(estimate.up_bytes_per_s > 0)) return "";
  return `${speed(estimate.up_bytes_per_s)}, ${time(estimate.rtt_ns)}`;
}

export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A table; `rows` are arrays of texts. */
export function table(caption, head, rows) {
  const line = (tag, cells) => el("tr", {}, ...cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  return el("table", { "aria-label": caption },
    el("thead", {}, line("th", head)), el("tbody", {}, ...rows.map((row) => line("td", row))));
}

/** As much of a text as fits in so many pixels, about. */
export function cut(text, width, letter = 6.4) {
  const letters = Math.max(3, Math.floor(width / letter));
  return text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
}
