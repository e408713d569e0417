"use strict";
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const find = (id) => document.getElementById(id);
  const COLOURS = {
    light: ["#0b62a8", "#c44f00", "#00795c", "#b0267a", "#5b3fa8", "#7a6000", "#b3202a", "#00718f", "#4d6b1e",
            "#8a4b2d", "#444b54", "#a0008a"],
    dark: ["#6cb6ff", "#ff9a52", "#3ddcab", "#ff7ac0", "#b39cff", "#e6c84f", "#ff7b80", "#56d3f0", "#a8d46f",
           "#e0a27c", "#c3cad3", "#f08ae8"],
  };
  const SHAPES = [["circle", "●"], ["square", "■"], ["diamond", "◆"], ["cross", "✚"], ["x", "✖"],
                  ["triangle-up", "▲"], ["triangle-down", "▼"], ["pentagon", "⬟"], ["hexagon", "⬢"],
                  ["triangle-left", "◀"], ["triangle-right", "▶"], ["hourglass", "⧗"]];
  const values = (key) => [...new Set(data.rows.map((row) => row[key]).filter((v) => v !== null))].map(String);
  const methods = values("method");
  const style = (method) => {
    const at = Math.max(0, methods.indexOf(method));
    const palette = COLOURS[dark.matches ? "dark" : "light"];
    return { colour: palette[at % palette.length], shape: SHAPES[at % SHAPES.length] };
  };
  const label = (key) => (data.columns.find((c) => c.key === key) || { label: key }).label;
  const numeric = (v) => typeof v === "number" && Number.isFinite(v);
  const network = (row) => [row.data, row.model].filter((v) => v !== null && v !== undefined).join(", ");
  const repaired = (row) => row.repair !== null && row.repair !== "none";

  function option(select, value, text) {
    const entry = document.createElement("option");
    entry.value = value;
    entry.textContent = text;
    select.append(entry);
  }

  function fillControls() {
    if (find("network")) {
      data.networks.forEach((name) => option(find("network"), name, name));
      option(find("network"), "", "all");
    }
    for (const side of ["x", "y"]) {
      const select = find(`axis-${side}`);
      if (!select) continue;
      if (side === "x" && methods.length > 1) option(select, "method", label("method"));
      data.axes.forEach((key) => option(select, key, label(key)));
      select.value = data.start[side];
    }
    for (const set of document.querySelectorAll("[data-boxes]")) {
      const key = set.dataset.boxes;
      for (const value of values(key)) {
        const line = document.createElement("label");
        const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value });
        line.append(box);
        if (key === "method") {
          const glyph = document.createElement("span");
          glyph.className = "glyph";
          glyph.setAttribute("aria-hidden", "true");
          glyph.dataset.method = value;
          glyph.textContent = style(value).shape[1];
          line.append(glyph);
        }
        line.append(value);
        set.append(line);
      }
    }
  }

  function visible() {
    const chosen = find("network") ? find("network").value : "";
    const off = [...document.querySelectorAll("[data-boxes] input:not(:checked)")].map((box) => [
      box.closest("[data-boxes]").dataset.boxes, box.value]);
    return data.rows.map((row, at) => ({ row, at })).filter(({ row }) =>
      (!chosen || network(row) === chosen) &&
      off.every(([key, value]) => String(row[key]) !== value));
  }

  function layout(extra) {
    const css = getComputedStyle(document.documentElement);
    const ink = css.getPropertyValue("--ink").trim(), line = css.getPropertyValue("--line").trim();
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
                   margin: { l: 60, r: 15, t: 15, b: 50 }, showlegend: false };
    const made = Object.assign({}, base, extra);
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(extra).filter((k) => /^[xy]axis\d*$/.test(k))])) {
      made[key] = Object.assign({}, axis, extra[key]);
    }
    return made;
  }

  const CONFIG = { responsive: true, displayModeBar: false };

  function hover(row) {
    return data.identity.filter((key) => row[key] !== null && row[key] !== undefined)
      .map((key) => `${label(key)}: ${String(row[key]).replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"))}`)
      .join("<br>");
  }

  function drawScatter(shown) {
    if (!find("scatter")) return;
    const x = find("axis-x").value, y = find("axis-y").value;
    const groups = new Map();
    for (const { row } of shown) {
      if ((x !== "method" && !numeric(row[x])) || !numeric(row[y])) continue;
      const key = JSON.stringify(data.identity.filter((k) => k !== "budget" && k !== "seed").map((k) => row[k]));
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
    }
    const traces = [...groups.values()].map((rows) => {
      if (x !== "method") rows.sort((a, b) => a[x] - b[x]);
      const { colour, shape } = style(String(rows[0].method));
      const symbol = repaired(rows[0]) ? shape[0] : `${shape[0]}-open`;
      return { x: rows.map((r) => r[x]), y: rows.map((r) => r[y]), type: "scatter",
               mode: rows.length > 1 && x !== "method" ? "lines+markers" : "markers", text: rows.map(hover),
               hovertemplate: "%{text}<br>%{x:.5g}, %{y:.5g}<extra></extra>",
               line: { width: 1, color: colour }, marker: { size: 10, color: colour, symbol, line: { width: 2, color: colour } } };
    });
    const [bx, by] = [data.before[x], data.before[y]];
    const dense = new Map(shown.filter(({ row }) => numeric(row[by])).map(({ row }) => [network(row), row]));
    if (bx && by) {
      traces.push({ x: [...dense.values()].map((r) => r[bx]), y: [...dense.values()].map((r) => r[by]),
                    text: [...dense.keys()].map((name) => `${name} before pruning`),
                    type: "scatter", mode: "markers", hovertemplate: "%{text}<br>%{x:.5g}, %{y:.5g}<extra></extra>",
                    marker: { size: 13, symbol: "star", color: dark.matches ? "#ffffff" : "#000000" } });
    }
    const wide = (key) => {
      const all = shown.map(({ row }) => row[key]).filter((v) => numeric(v) && v > 0);
      return all.length && Math.max(...all) > 30 * Math.min(...all) ? "log" : "linear";
    };
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
    const levels = x === "method" ? [...new Set([...dense.values()].map((row) => row[by]))] : [];
    const shapes = levels.map((v) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: v, y1: v,
                                        line: { dash: "dash", width: 1, color: ink } }));
    Plotly.react("scatter", traces, layout({
      shapes, xaxis: { title: { text: label(x) }, type: x === "method" ? "category" : wide(x) },
      yaxis: { title: { text: label(y) } } }), CONFIG);
  }

  // One row for each choice of units: [label, run], where runs that kept the same numbers are told once.
  function choices(shown) {
    const varying = data.identity.filter((key) => key !== "repair" &&
      new Set(shown.map(({ row }) => row[key]).filter((v) => v !== null)).size > 1);
    const kept = new Map();
    data.cells.forEach((c) => kept.set(c.row, `${kept.get(c.row) || ""}${c.where}:${c.kept};`));
    const labels = new Map();
    for (const { row, at } of shown.filter(({ at: run }) => kept.has(run))) {
      const name = varying.map((key) => row[key]).filter((v) => v !== null).join(", ") || String(row.method);
      const same = labels.get(name);
      if (same === undefined) labels.set(name, at);
      else if (kept.get(same) !== kept.get(at)) labels.set(`${name}, ${row.repair}`, at);
    }
    return [...labels];
  }

  function drawKept(shown) {
    if (!find("kept")) return;
    const labels = choices(shown), runs = labels.map(([, run]) => run);
    const cells = data.cells.filter((cell) => runs.includes(cell.row));
    const places = [...new Set(cells.map((c) => c.where))];
    const share = new Map(cells.map((c) => [`${c.row}/${c.where}`, c]));
    const table = (pick) => runs.map((run) => places.map((p) => pick(share.get(`${run}/${p}`))));
    const few = runs.length * places.length <= 150;
    const trace = { type: "heatmap", x: places, y: labels.map(([name]) => name), zmin: 0, zmax: 1,
                    z: table((c) => (c ? c.kept / c.had : null)), hoverongaps: false, xgap: 1, ygap: 1,
                    text: table((c) => (c ? `${c.kept}/${c.had}` : "")), texttemplate: few ? "%{text}" : "",
                    hovertemplate: "%{y}<br>%{x}: %{text}<extra></extra>",
                    colorscale: dark.matches ? [[0, "#1d2228"], [1, "#3f8fd6"]] : [[0, "#f3f6f9"], [1, "#4f97d6"]],
                    colorbar: { title: { text: "kept" }, tickformat: ".0%", thickness: 12 } };
    const height = Math.min(4000, Math.max(260, 120 + 22 * runs.length));
    find("kept").style.minHeight = `${height}px`;
    Plotly.react("kept", [trace], layout({ height, xaxis: { type: "category" },
      yaxis: { type: "category", autorange: "reversed" } }), CONFIG);
    const names = new Map(labels.map(([name, run]) => [run, name]));
    const body = document.querySelector("#cells tbody");
    body.replaceChildren(...cells.map((c) => {
      const line = document.createElement("tr");
      [names.get(c.row), c.where, c.had, c.kept].forEach((v) => {
        line.append(Object.assign(document.createElement("td"), { textContent: v }));
      });
      return line;
    }));
  }

  function drawSections() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = data.figures[place.dataset.figure];
      Plotly.react(place, figure.data, layout(Object.assign({ showlegend: true }, figure.layout)), CONFIG);
    }
  }

  function draw() {
    const shown = visible();
    const kept = new Set(shown.map(({ at }) => at));
    document.querySelectorAll("#runs tbody tr").forEach((line) => {
      line.hidden = !kept.has(Number(line.dataset.row));
    });
    find("count").textContent = `${shown.length} of ${data.rows.length} runs shown.`;
    document.querySelectorAll(".glyph").forEach((g) => { g.style.color = style(g.dataset.method).colour; });
    drawScatter(shown);
    drawKept(shown);
    drawSections();
  }

  function sortable() {
    const heads = [...document.querySelectorAll("#runs thead th")];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = data.columns[column].key;
      const of = (line) => data.rows[line.dataset.row][key];
      const compare = (a, b) => (numeric(a) && numeric(b) ? a - b : String(a ?? "").localeCompare(String(b ?? "")));
      const lines = [...document.querySelectorAll("#runs tbody tr")];
      lines.sort((a, b) => (up ? 1 : -1) * compare(of(a), of(b)));
      document.querySelector("#runs tbody").append(...lines);
    }));
  }

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function csv() {
    const quote = (v) => {
      const text = v === null || v === undefined ? "" : String(v);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const keys = data.columns.map((c) => c.key);
    const lines = visible().map(({ row }) => keys.map((key) => quote(row[key])).join(","));
    return [keys.join(","), ...lines].join("\r\n") + "\r\n";
  }

  fillControls();
  sortable();
  find("controls").addEventListener("change", draw);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("download-csv").addEventListener("click", () => download("runs.csv", "text/csv", csv()));
  find("download-json").addEventListener("click", () =>
    download("runs.json", "application/json", JSON.stringify(data.source, null, 1)));
  dark.addEventListener("change", draw);
  draw();
})();
