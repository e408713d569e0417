// The data, the colours of the page, words for values.
const data = JSON.parse(document.getElementById("payload").textContent);
const keys = data.columns.map((column) => column.key);
data.rows = data.rows.map((row) => Object.fromEntries(row.map((value, at) => [keys[at], value])));

const find = (id) => document.getElementById(id);
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
const make = (tag, more = {}) => Object.assign(document.createElement(tag), more);
const numeric = (v) => typeof v === "number" && Number.isFinite(v);
const label = (key) => (data.columns.find((c) => c.key === key) || { label: key }).label;
const values = (key) => [...new Set(data.rows.map((row) => row[key]).filter((v) => v !== null))].map(String);
const network = (row) => [row.data, row.model].filter((v) => v !== null && v !== undefined).join(", ");
const escaped = (text) => String(text).replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"));

function show(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (!numeric(value)) return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

const root = document.documentElement;
const PALETTE = Array.from({ length: 12 }, (_, at) => `var(--c${at})`);
const methods = values("method");
const repairOf = (row) => (row.repair === null || row.repair === undefined ? "none" : String(row.repair));
const style = (method) => data.styles[method] || { colour: PALETTE[0], symbol: "circle", glyph: "●" };

// The mark of a run: its method says colour and symbol, its repair how it is filled.
function markOf(row) {
  const { colour, symbol } = style(String(row.method)), fill = data.fills[repairOf(row)] || "open";
  const ends = { open: "-open", filled: "", dotted: "-open-dot", pale: "-dot" };
  return { size: fill === "pale" ? 13 : 10, color: colour, symbol: symbol + ends[fill],
           line: { width: 2, color: fill === "pale" ? "var(--paper)" : colour } };
}

// Replace every "var(--name)" in a figure by the page's colour of the moment.
function coloured(value, css = getComputedStyle(root)) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? css.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.every((v) => v === null || numeric(v)) ? value : value.map((v) => coloured(v, css));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, coloured(v, css)]));
}

function themes(redraw) {
  const system = window.matchMedia("(prefers-color-scheme: dark)"), button = find("theme");
  const put = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light colours" : "Dark colours";
  };
  put(system.matches ? "dark" : "light");
  system.addEventListener("change", () => { put(system.matches ? "dark" : "light"); redraw(); });
  button.addEventListener("click", () => { put(root.dataset.theme === "dark" ? "light" : "dark"); redraw(); });
}
