// Tables behind the plots, and what can be downloaded.
function pointsTable() {
  const x = find("axis-x").value, y = find("axis-y").value, found = marks(visible());
  const several = found.some((m) => m.runs > 1);
  const told = data.identity.filter((key) => !(several && key === "seed"));
  const sides = (key) => (key === "method" ? [] : several ? [label(key), `${label(key)}, low`, `${label(key)}, high`] : [label(key)]);
  const numbers = (key, value) => (key === "method" ? [] : several ? value : [value[0]]);
  return { title: "marks", columns: [...told.map(label), several ? "seeds" : "runs", ...sides(x), ...sides(y)],
           rows: found.map((m) => [...told.map((key) => m.row[key]), m.runs, ...numbers(x, m.x), ...numbers(y, m.y)]) };
}

function cellsTable() {
  const rows = [...kept(visible())].flatMap(([name, line]) =>
    [...line].map(([where, c]) => [name, where, c.had / c.runs, c.kept / c.runs, c.runs]));
  return { title: "what stayed", columns: ["run", "where", "had", "kept", "runs"], rows };
}

function tableOf(id) {
  return id === "points" ? pointsTable() : id === "cells" ? cellsTable() : data.tables[id];
}

function fill(table) {
  const { columns, rows } = tableOf(table.dataset.table);
  const number = columns.map((_, at) => rows.some((row) => numeric(row[at])));
  const head = make("tr"), body = make("tbody");
  columns.forEach((name, at) =>
    head.append(make("th", { scope: "col", textContent: name, className: number[at] ? "number" : "" })));
  for (const row of rows) {
    const line = make("tr");
    row.forEach((value, at) => {
      const long = typeof value === "string" && value.length > 60;
      line.append(make("td", { textContent: show(value), className: number[at] ? "number" : long ? "long" : "word" }));
    });
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.replaceChildren(top, body);
}

function fillOpen() {
  all("details.behind[open] table").forEach(fill);
}

function download(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csv(columns, rows) {
  const quote = (v) => {
    const text = v === null || v === undefined ? "" : String(v);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
}

const json = (value) => JSON.stringify(value, null, 1);

// The runs as they were given.
async function source() {
  const bytes = Uint8Array.from(atob(data.source), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return json(JSON.parse(text));
}

function downloads() {
  const file = (title) => title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  all("[data-csv]").forEach((button) => button.addEventListener("click", () => {
    const { title, columns, rows } = tableOf(button.dataset.csv);
    download(`${file(title)}.csv`, "text/csv", csv(columns, rows));
  }));
  all("[data-json]").forEach((button) => button.addEventListener("click", () => {
    const { title, columns, rows } = tableOf(button.dataset.json);
    const named = rows.map((row) => Object.fromEntries(row.map((value, at) => [columns[at], value])));
    download(`${file(title)}.json`, "application/json", json(named));
  }));
  if (!find("download-csv")) return;
  find("download-csv").addEventListener("click", () =>
    download("runs.csv", "text/csv", csv(keys, visible().map(({ row }) => keys.map((key) => row[key])))));
  find("download-json").addEventListener("click", async () => download("runs.json", "application/json", await source()));
}

function sortable() {
  const heads = all("#runs thead th");
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const of = (line) => data.rows[line.dataset.row][keys[column]];
    const compare = (a, b) => (numeric(a) && numeric(b) ? a - b : String(a ?? "").localeCompare(String(b ?? "")));
    const lines = all("#runs tbody tr");
    lines.sort((a, b) => (up ? 1 : -1) * compare(of(a), of(b)));
    document.querySelector("#runs tbody").append(...lines);
  }));
}
