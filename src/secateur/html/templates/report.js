"use strict";
// `page_data` of secateur.html.page_data says what is in the data.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.rows.map((values, number) => {
  const row = Object.fromEntries(values.map((value, at) => [data.keys[at], value]));
  return { number, row, network: [row.data, row.model].filter((v) => v != null).join(", ") };
});
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const escaped = (text) => String(text).replace(/[<>&"]/g, (c) => `&#${c.charCodeAt(0)};`);
const label = (key) => data.labels[key] ?? key;

function text(value) {
  if (value == null) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (!isNumber(value)) return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

// --- filters

function visibleRuns() {
  const network = byId("network")?.value;
  const hidden = all("#filters input:not(:checked)").map((box) => [box.name, box.value]);
  return runs.filter((run) => (!network || run.network === network) && hidden.every(([key, value]) => String(run.row[key]) !== value));
}

// --- plots

// Replace every "var(--name)" by the page's current colour: plotly does not read CSS variables.
function coloured(value, css = getComputedStyle(root)) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? css.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.every((v) => v === null || isNumber(v)) ? value : value.map((v) => coloured(v, css));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, coloured(v, css)]));
}

function plot(place, traces, layout) {
  const axis = { gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)", automargin: true };
  const page = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "var(--ink)" },
    margin: { l: 60, r: 15, t: 25, b: 50 }, showlegend: false, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    colorway: Array.from({ length: 12 }, (_, at) => `var(--c${at})`),
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", ...layout,
  };
  delete page.template;
  for (const key of new Set(["xaxis", "yaxis", ...Object.keys(page).filter((k) => /^[xy]axis\d*$/.test(k))])) {
    // Without a format, plotly labels 2, 20 and 200 on a logarithmic axis all by "2".
    page[key] = { ...axis, ...(page[key]?.type === "log" ? { tickformat: "~g" } : {}), ...page[key] };
  }
  return Plotly.react(place, coloured(traces), coloured(page), { responsive: true, displayModeBar: false });
}

function markerOf(row) {
  const { colour, symbol } = data.styles[row.method] ?? { colour: "var(--c0)", symbol: "circle" };
  const fill = data.fills[row.repair ?? "none"] ?? "open";
  const suffix = { open: "-open", filled: "", dotted: "-open-dot", pale: "-dot" }[fill];
  return { size: fill === "pale" ? 13 : 10, color: colour, symbol: symbol + suffix, line: { width: 2, color: fill === "pale" ? "var(--paper)" : colour } };
}

// The points of the scatter plot: [{row, runs, x: [mean, low, high], y: [mean, low, high]}].
function scatterPoints(shown) {
  const x = byId("axis-x").value, y = byId("axis-y").value, numbers = new Set(shown.map((run) => run.number));
  const single = (row, key) => (isNumber(row[key]) ? [row[key], row[key], row[key]] : null);
  const points = byId("seeds")?.value === "mean"
    ? data.intervals.filter((group) => group.rows.some((number) => numbers.has(number))).map((group) =>
      ({ row: runs[group.rows[0]].row, runs: group.seeds, x: group.values[x], y: group.values[y] }))
    : shown.map(({ row }) => ({ row, runs: 1, x: single(row, x), y: single(row, y) }));
  return points.map((p) => (x === "method" ? { ...p, x: [p.row.method] } : p)).filter((p) => p.x && p.y);
}

// Draw points with the same x side by side, so that their intervals do not hide each other.
function sideBySide(points, type) {
  const forward = type === "log" ? Math.log10 : (v) => v, back = type === "log" ? (v) => 10 ** v : (v) => v;
  const places = points.map((p) => forward(p.x[0])), span = Math.max(...places) - Math.min(...places) || 1;
  for (const group of grouped(points, (p) => Math.round((500 * forward(p.x[0])) / span)).values()) {
    group.forEach((p, at) => { p.place = back(forward(p.x[0]) + 0.012 * span * (at - (group.length - 1) / 2)); });
  }
}

function errorBars(points, side, color) {
  if (!points.some((p) => p[side][2] > p[side][1])) return undefined;
  return { type: "data", array: points.map((p) => p[side][2] - p[side][0]), color, thickness: 1, width: 3 };
}

function hover({ row, runs: count }) {
  const keys = data.identity.filter((key) => row[key] != null && !(count > 1 && key === "seed"));
  return [...keys.map((key) => `${label(key)}: ${escaped(row[key])}`), ...(count > 1 ? [`mean of ${count} seeds`] : [])].join("<br>");
}

function drawScatter(shown) {
  const x = byId("axis-x").value, y = byId("axis-y").value, byMethod = x === "method";
  const points = scatterPoints(shown), values = points.map((p) => p.x[0]).filter((v) => v > 0);
  const type = byMethod ? "category" : Math.max(...values) > 30 * Math.min(...values) && values.length === points.length ? "log" : "linear";
  if (!byMethod && points.some((p) => p.y[2] > p.y[1])) sideBySide(points, type);
  const joined = data.identity.filter((key) => !(byMethod ? ["seed"] : ["budget", "seed"]).includes(key));
  const hovertemplate = "%{text}<br>%{customdata}, %{y:.5g}<extra></extra>";
  const traces = [...grouped(points, (p) => JSON.stringify(joined.map((key) => p.row[key]))).values()].map((line) => {
    if (!byMethod) line.sort((a, b) => a.x[0] - b.x[0]);
    const marker = markerOf(line[0].row);
    return {
      type: "scatter", mode: !byMethod && line.length > 1 ? "lines+markers" : "markers", hovertemplate, marker,
      x: line.map((p) => p.place ?? p.x[0]), y: line.map((p) => p.y[0]), text: line.map(hover), customdata: line.map((p) => text(p.x[0])),
      error_x: byMethod ? undefined : errorBars(line, "x", marker.color), error_y: errorBars(line, "y", marker.color),
      line: { width: 1, color: marker.color }, offsetgroup: ["data", "model", "budget", "repair"].map((key) => line[0].row[key]).join(),
    };
  });
  const before = pointsBefore(shown, data.before[x], data.before[y]);
  const stars = before.filter((p) => isNumber(p.x));
  traces.push({
    type: "scatter", mode: "markers", hovertemplate, marker: { size: 13, symbol: "star", color: "var(--ink)" },
    x: stars.map((p) => p.x), y: stars.map((p) => p.y), text: stars.map((p) => `${escaped(p.name)} before pruning`), customdata: stars.map((p) => text(p.x)),
  });
  const shapes = before.filter(() => byMethod).map((p) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: p.y, y1: p.y, line: { dash: "dash", width: 1, color: "var(--soft)" } }));
  plot("scatter", traces, { shapes, scattermode: byMethod ? "group" : "overlay", scattergap: 0.4, xaxis: { title: { text: label(x) }, type }, yaxis: { title: { text: label(y) } } });
}

// The networks before pruning: the means of their runs.
function pointsBefore(shown, x, y) {
  const mean = (group, key) => group.reduce((sum, run) => sum + run.row[key], 0) / group.length;
  const measured = shown.filter((run) => isNumber(run.row[y]));
  return [...grouped(measured, (run) => run.network)].map(([name, group]) => ({ name, x: x && mean(group, x), y: mean(group, y) }));
}

// What was kept: {label: {group: {size, kept, runs}}}, summed over repairs and seeds.
function keptShares(shown) {
  const varying = data.identity.filter((key) => !["repair", "seed"].includes(key) && new Set(shown.map(({ row }) => row[key]).filter((v) => v != null)).size > 1);
  const names = new Map(shown.map(({ number, row }) => [number, varying.map((key) => row[key]).filter((v) => v != null).join(", ") || String(row.method)]));
  const lines = new Map();
  for (const [number, group, size, kept] of data.kept.filter(([run]) => names.has(run))) {
    const line = lines.get(names.get(number)) ?? new Map(), sum = line.get(group) ?? { size: 0, kept: 0, runs: 0 };
    line.set(group, { size: sum.size + size, kept: sum.kept + kept, runs: sum.runs + 1 });
    lines.set(names.get(number), line);
  }
  return [...lines];
}

function drawKept(shown) {
  const every = keptShares(shown), lines = every.slice(0, 60);
  const groups = [...new Set(lines.flatMap(([, line]) => [...line.keys()]))];
  const cells = (value) => lines.map(([, line]) => groups.map((group) => (line.has(group) ? value(line.get(group)) : null)));
  const trace = {
    type: "heatmap", x: groups, y: lines.map(([name]) => escaped(name).replaceAll(", ", ",<br>")), z: cells((c) => c.kept / c.size), zmin: 0, zmax: 1,
    text: cells((c) => `${text(c.kept / c.runs)}/${text(c.size / c.runs)}`), texttemplate: lines.length * groups.length <= 150 ? "%{text}" : "",
    hovertemplate: "%{y}<br>%{x}: %{text}<extra></extra>", hoverongaps: false, xgap: 1, ygap: 1,
    colorscale: [[0, "var(--low)"], [1, "var(--high)"]], colorbar: { title: { text: "kept" }, tickformat: ".0%", thickness: 10 },
  };
  const height = Math.max(260, 120 + lines.reduce((sum, [name]) => sum + 18 * name.split(", ").length, 0));
  byId("kept").style.minHeight = `${height}px`;
  byId("kept-more").textContent = every.length > lines.length ? `The first ${lines.length} of ${every.length} rows; use the filters to see others.` : "";
  plot("kept", [trace], { height, xaxis: { type: "category" }, yaxis: { type: "category", autorange: "reversed", tickfont: { size: 11 } } });
}

function drawFigure(place) {
  const { figure } = data.sections[place.dataset.figure];
  place.style.minHeight = figure.layout.height ? `${figure.layout.height}px` : "";
  plot(place, figure.data, { showlegend: figure.data.length > 1, ...figure.layout });
}

// Figures of sections are drawn when they come into view.
const watcher = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  watcher.unobserve(entry.target);
  drawFigure(entry.target);
}), { rootMargin: "600px" });

// --- tables and downloads

const tables = {
  runs: () => ({ title: "runs", keys: data.keys, columns: data.keys.map(label), rows: visibleRuns().map(({ row }) => data.keys.map((key) => row[key])) }),
  points() {
    const x = byId("axis-x").value, y = byId("axis-y").value, points = scatterPoints(visibleRuns());
    const several = points.some((p) => p.runs > 1), keys = data.identity.filter((key) => !(several && key === "seed"));
    const names = (key) => (key === "method" ? [] : several ? [label(key), `${label(key)}, low`, `${label(key)}, high`] : [label(key)]);
    const numbers = (key, values) => (key === "method" ? [] : several ? values : [values[0]]);
    return { title: "points", columns: [...keys.map(label), several ? "seeds" : "runs", ...names(x), ...names(y)],
             rows: points.map((p) => [...keys.map((key) => p.row[key]), p.runs, ...numbers(x, p.x), ...numbers(y, p.y)]) };
  },
  kept: () => ({ title: "kept", columns: ["run", "group", "size", "kept", "runs"], rows: keptShares(visibleRuns()).flatMap(([name, line]) =>
    [...line].map(([group, c]) => [name, group, c.size / c.runs, c.kept / c.runs, c.runs])) }),
};
const tableOf = (id) => (tables[id] ? tables[id]() : data.sections[id]);
const order = new Map(); // by table: [column, sign]

function fill(table) {
  const { columns, rows } = tableOf(table.dataset.table), [column, sign] = order.get(table) ?? [-1, 1];
  const compare = (a, b) => sign * (isNumber(a) && isNumber(b) ? a - b : text(a).localeCompare(text(b)));
  const sorted = column < 0 ? rows : [...rows].sort((a, b) => compare(a[column], b[column]));
  const numeric = columns.map((_, at) => rows.some((row) => isNumber(row[at])));
  const cell = (value, at) => `<td class="${numeric[at] ? "number" : text(value).length > 60 ? "long" : ""}">${escaped(text(value))}</td>`;
  const sort = (at) => (at === column ? ` aria-sort="${sign > 0 ? "ascending" : "descending"}"` : "");
  const head = columns.map((name, at) => `<th scope="col"${sort(at)} class="${numeric[at] ? "number" : ""}"><button type="button">${escaped(name)}</button></th>`);
  table.innerHTML = `<thead><tr>${head.join("")}</tr></thead><tbody>${sorted.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("")}</tbody>`;
  all("th button", table).forEach((button, at) => button.addEventListener("click", () => {
    order.set(table, [at, at === column ? -sign : 1]);
    fill(table);
    all("th button", table)[at].focus();
  }));
}

const fillOpen = () => all("table[data-table]").filter((table) => !table.closest("details:not([open])")).forEach(fill);

function download(name, type, content) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function wholeRuns() {
  const bytes = Uint8Array.from(atob(data.runs), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

const fileName = (title) => title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);

all("[data-csv]").forEach((button) => button.addEventListener("click", () => {
  const { title, keys, columns, rows } = tableOf(button.dataset.csv);
  const quoted = (v) => (/[",\r\n]/.test(v ?? "") ? `"${String(v).replaceAll('"', '""')}"` : String(v ?? ""));
  download(`${fileName(title)}.csv`, "text/csv", [keys ?? columns, ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`).join(""));
}));
all("[data-json]").forEach((button) => button.addEventListener("click", async () => {
  const id = button.dataset.json, { title, columns, rows } = tableOf(id);
  const content = id === "runs" ? await wholeRuns() : rows.map((row) => Object.fromEntries(row.map((value, at) => [columns[at], value])));
  download(`${fileName(title)}.json`, "application/json", JSON.stringify(content, null, 1));
}));
all("details.behind").forEach((details) => details.addEventListener("toggle", () => details.open && fill(details.querySelector("table"))));

// --- the page

// A chapter shows one run and one layer at a time.
function choose(chapter) {
  const [run, layer] = ["run", "layer"].map((name) => chapter.querySelector(`select[name=${name}]`));
  const ofRun = all(".part", chapter).filter((part) => !run || part.dataset.run === run.value);
  if (layer) {
    const before = layer.value, names = [...new Set(ofRun.map((part) => part.dataset.layer).filter(Boolean))];
    layer.replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(before)) layer.value = before;
    layer.closest("label").hidden = names.length < 2;
    layer.form.hidden = !run && names.length < 2;
  }
  all(".part", chapter).forEach((part) => {
    part.hidden = !ofRun.includes(part) || Boolean(layer && part.dataset.layer && part.dataset.layer !== layer.value);
  });
}

function drawRuns() {
  const shown = visibleRuns();
  if (byId("count")) byId("count").textContent = `${shown.length} of ${runs.length} runs shown.`;
  if (byId("scatter")) drawScatter(shown);
  if (byId("kept")) drawKept(shown);
  fillOpen();
}

function drawAll() {
  drawRuns();
  for (const place of all("[data-figure]")) {
    watcher.unobserve(place);
    watcher.observe(place);
  }
}

function setTheme(theme) {
  root.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light colours" : "Dark colours";
  drawAll();
}

for (const form of all("form")) {
  const chapter = form.closest(".chapter");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => (chapter ? choose(chapter) : drawRuns()));
}
all(".chapter").forEach(choose);
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
window.addEventListener("beforeprint", () => all(".part:not([hidden]) [data-figure], section > figure > [data-figure]").forEach(drawFigure));
setTheme(root.dataset.theme);
