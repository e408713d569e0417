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
const repaired = (row) => row.repair !== null && row.repair !== "none";
const escaped = (text) => String(text).replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"));

function show(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (!numeric(value)) return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

const root = document.documentElement;
const SHAPES = [["circle", "●"], ["square", "■"], ["diamond", "◆"], ["cross", "✚"], ["x", "✖"],
                ["triangle-up", "▲"], ["triangle-down", "▼"], ["pentagon", "⬟"], ["hexagon", "⬢"],
                ["triangle-left", "◀"], ["triangle-right", "▶"], ["hourglass", "⧗"]];
const PALETTE = SHAPES.map((_, at) => `var(--c${at})`);
const methods = values("method");

function style(method) {
  const at = Math.max(0, methods.indexOf(method));
  return { colour: PALETTE[at % PALETTE.length], shape: SHAPES[at % SHAPES.length] };
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
