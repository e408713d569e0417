// Plots of the runs: quality against cost, and what stayed.
const COARSE = window.matchMedia("(pointer: coarse)").matches;
const CONFIG = { responsive: true, displayModeBar: false };
const LINES_OF_CELLS = 60;

function plot(place, traces, extra) {
  const axis = { gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)", automargin: true };
  const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "var(--ink)" },
                 margin: { l: 60, r: 15, t: 25, b: 50 }, dragmode: COARSE ? false : "zoom", colorway: PALETTE,
                 legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" }, showlegend: false };
  const layout = Object.assign(base, extra);
  delete layout.template;
  for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))])) {
    layout[key] = Object.assign({}, axis, layout[key]);
    if (layout[key].type === "log") Object.assign(layout[key], decades(traces, key[0]));
  }
  return Plotly.react(place, coloured(traces), coloured(layout), CONFIG);
}

// On a logarithmic axis powers of ten have words, and nothing else has; unless there are none to speak of.
function decades(traces, side) {
  const found = traces.flatMap((t) => t[side] || []).filter((v) => numeric(v) && v > 0).map(Math.log10);
  const inside = Math.floor(Math.max(...found)) - Math.ceil(Math.min(...found)) + 1;
  if (!(inside > 1)) return { tickformat: "~g" };
  return { dtick: Math.ceil(inside / 10), exponentformat: "power", minor: { dtick: "D1", ticks: "outside", ticklen: 3 } };
}

function hover(row, runs) {
  const known = data.identity.filter((key) => row[key] !== null && row[key] !== undefined);
  const told = runs > 1 ? known.filter((key) => key !== "seed") : known;
  const lines = told.map((key) => `${label(key)}: ${escaped(row[key])}`);
  return [...lines, ...(runs > 1 ? [`mean of ${runs} seeds`] : [])].join("<br>");
}

// What the scatter plot shows: [{row, runs, x: [mean, low, high], y: likewise}].
function marks(shown) {
  const x = find("axis-x").value, y = find("axis-y").value;
  const alone = (row, key) => (key === "method" ? [row.method] : numeric(row[key]) ? [row[key], row[key], row[key]] : null);
  let found;
  if (find("seeds") && find("seeds").value === "mean") {
    const visible = new Set(shown.map(({ at }) => at));
    found = data.spreads.filter((s) => s.rows.some((at) => visible.has(at))).map((s) => {
      const row = data.rows[s.rows[0]];
      return { row, runs: s.seeds, x: x === "method" ? [row.method] : s.values[x], y: s.values[y] };
    });
  } else {
    found = shown.map(({ row }) => ({ row, runs: 1, x: alone(row, x), y: alone(row, y) }));
  }
  return found.filter((m) => m.x && m.y);
}

function bars(points, side, colour) {
  const wide = points.some((m) => m[side].length > 1 && m[side][2] > m[side][1]);
  return wide ? { type: "data", array: points.map((m) => m[side][2] - m[side][0]), symmetric: true, color: colour,
                  thickness: 1, width: 3 } : undefined;
}

function drawScatter(shown) {
  if (!find("scatter")) return;
  const x = find("axis-x").value, y = find("axis-y").value;
  const lines = new Map(), drawn = marks(shown), type = x === "method" ? "category" : scale(shown, x);
  aside(drawn, type);
  const apart = x === "method" ? ["seed"] : ["budget", "ratio", "seed"];
  for (const mark of drawn) {
    const key = JSON.stringify(data.identity.filter((k) => !apart.includes(k)).map((k) => mark.row[k]));
    if (!lines.has(key)) lines.set(key, []);
    lines.get(key).push(mark);
  }
  const hovers = "%{text}<br>%{customdata}, %{y:.5g}<extra></extra>";
  const traces = [...lines.values()].map((points) => {
    if (x !== "method") points.sort((a, b) => a.x[0] - b.x[0]);
    const marker = markOf(points[0].row), colour = marker.color;
    const joined = points.length > 1 && x !== "method" && new Set(points.map((m) => m.x[0])).size > 1;
    const slot = ["data", "model", "budget", "repair"].map((k) => points[0].row[k]).join(", ");
    return { x: points.map((m) => m.at ?? m.x[0]), customdata: points.map((m) => show(m.x[0])), offsetgroup: slot, y: points.map((m) => m.y[0]), type: "scatter", hovertemplate: hovers,
             mode: joined ? "lines+markers" : "markers", text: points.map((m) => hover(m.row, m.runs)),
             error_x: x === "method" ? undefined : bars(points, "x", colour), error_y: bars(points, "y", colour),
             line: { width: 1, color: colour }, marker };
  });
  const dense = originals(shown, data.before[x], data.before[y]);
  if (data.before[x] && data.before[y]) {
    traces.push({ x: dense.map((d) => d.x), customdata: dense.map((d) => show(d.x)), y: dense.map((d) => d.y), text: dense.map((d) => `${escaped(d.name)} before pruning`),
                  type: "scatter", mode: "markers", hovertemplate: hovers,
                  marker: { size: 13, symbol: "star", color: "var(--ink)" } });
  }
  const levels = x === "method" ? [...new Set(dense.map((d) => d.y))] : [];
  const shapes = levels.filter(numeric).map((v) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: v, y1: v,
                                                      line: { dash: "dash", width: 1, color: "var(--soft)" } }));
  plot("scatter", traces, { shapes, yaxis: { title: { text: label(y) } },
    xaxis: { title: { text: label(x) }, type }, ...(x === "method" ? { scattermode: "group", scattergap: 0.4 } : {}) });
}

// Marks with bars that stand at one x, put side by side; the table and the words beside a mark have its true x.
function aside(drawn, type) {
  if (type === "category" || !drawn.some((m) => m.y[2] > m.y[1])) return;
  const on = type === "log" ? Math.log10 : (v) => v, off = type === "log" ? (v) => 10 ** v : (v) => v;
  const groups = new Map(), places = drawn.map((m) => on(m.x[0]));
  const span = Math.max(...places) - Math.min(...places);
  drawn.forEach((m, at) => {
    const key = span ? Math.round((places[at] / span) * 500) : 0;
    groups.set(key, [...(groups.get(key) || []), m]);
  });
  const step = Math.min(0.01, 0.3 / groups.size / Math.max(...[...groups.values()].map((g) => g.length))) * (span || 1);
  if (!Number.isFinite(step)) return;
  for (const group of groups.values()) {
    group.forEach((m, at) => { m.at = off(on(m.x[0]) + (at - (group.length - 1) / 2) * step); });
  }
}

// The networks before pruning; where seeds differ, their means.
function originals(shown, keyX, keyY) {
  const found = new Map();
  for (const { row } of shown.filter(({ row: r }) => numeric(r[keyY]))) {
    if (!found.has(network(row))) found.set(network(row), []);
    found.get(network(row)).push(row);
  }
  const mean = (rows, key) => rows.reduce((sum, row) => sum + row[key], 0) / rows.length;
  return [...found].map(([name, rows]) => ({ name, x: keyX ? mean(rows, keyX) : null, y: mean(rows, keyY) }));
}

function scale(shown, key) {
  const found = shown.map(({ row }) => row[key]).filter((v) => numeric(v) && v > 0);
  return found.length && Math.max(...found) > 30 * Math.min(...found) ? "log" : "linear";
}

// What stayed: one line for each choice of units, the mean over repairs and seeds.
function kept(shown) {
  const telling = data.identity.filter((key) => key !== "repair" && key !== "seed" &&
    new Set(shown.map(({ row }) => row[key]).filter((v) => v !== null)).size > 1);
  const names = new Map(shown.map(({ row, at }) =>
    [at, telling.map((key) => row[key]).filter((v) => v !== null).join(", ") || String(row.method)]));
  const lines = new Map();
  for (const [at, where, had, stays] of data.cells) {
    if (!names.has(at)) continue;
    if (!lines.has(names.get(at))) lines.set(names.get(at), new Map());
    const line = lines.get(names.get(at)), cell = line.get(where) || { had: 0, kept: 0, runs: 0 };
    line.set(where, { had: cell.had + had, kept: cell.kept + stays, runs: cell.runs + 1 });
  }
  return lines;
}

function drawKept(shown) {
  if (!find("kept")) return;
  const lines = [...kept(shown)].slice(0, LINES_OF_CELLS), total = kept(shown).size;
  const places = [...new Set(lines.flatMap(([, line]) => [...line.keys()]))];
  const table = (pick) => lines.map(([, line]) => places.map((place) => pick(line.get(place))));
  const few = lines.length * places.length <= 150;
  const trace = { type: "heatmap", x: places, y: lines.map(([name]) => escaped(name).replaceAll(", ", ",<br>")), zmin: 0, zmax: 1,
                  z: table((c) => (c ? c.kept / c.had : null)), hoverongaps: false, xgap: 1, ygap: 1,
                  text: table((c) => (c ? `${show(c.kept / c.runs)}/${show(c.had / c.runs)}` : "")),
                  texttemplate: few ? "%{text}" : "", hovertemplate: "%{y}<br>%{x}: %{text}<extra></extra>",
                  colorscale: [[0, "var(--low)"], [1, "var(--high)"]],
                  colorbar: { title: { text: "kept" }, tickformat: ".0%", thickness: 10 } };
  const tall = lines.some(([name]) => name.includes(", ")) ? 34 : 22;
  const height = Math.min(4000, Math.max(260, 120 + tall * lines.length));
  find("kept").style.minHeight = `${height}px`;
  find("kept-more").textContent = total > lines.length ? `The first ${lines.length} of ${total}; filter to see others.` : "";
  plot("kept", [trace], { height, xaxis: { type: "category" },
    yaxis: { type: "category", autorange: "reversed", tickfont: { size: 11 } } });
}
