// What the controls offer, what they show, and the start.
function fillControls() {
  const option = (select, value, text) => select.append(make("option", { value, textContent: text }));
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
  for (const set of all("[data-boxes]")) fillBoxes(set, set.dataset.boxes);
}

function methodGlyph(method) {
  const { colour, glyph } = style(method), found = make("span", { className: "glyph", textContent: glyph });
  found.setAttribute("aria-hidden", "true");
  found.style.color = colour;
  return found;
}

function repairGlyph(repair) {
  const found = make("span", { className: `mark ${data.fills[repair]}` });
  found.setAttribute("aria-hidden", "true");
  return found;
}

// What the marks mean: the method where no filter says it, each repair, and the networks before pruning.
function fillLegend() {
  const place = find("legend");
  if (!place) return;
  const entry = (glyph, text) => {
    const line = make("span");
    line.append(glyph, text);
    place.append(line);
  };
  if (methods.length === 1) entry(methodGlyph(methods[0]), `method: ${methods[0]}`);
  for (const repair of Object.keys(data.fills)) entry(repairGlyph(repair), `repair: ${repair}`);
  if (Object.keys(data.before).length) entry("", "★ before pruning (a dashed line, where no star can stand)");
}

function fillBoxes(set, key) {
  for (const value of values(key)) {
    const line = make("label");
    line.append(make("input", { type: "checkbox", checked: true, value }));
    if (key === "method") line.append(methodGlyph(value));
    if (key === "repair") line.append(repairGlyph(value));
    line.append(value);
    set.append(line);
  }
}

function visible() {
  const chosen = find("network") ? find("network").value : "";
  const off = all("[data-boxes] input:not(:checked)").map((box) => [box.closest("[data-boxes]").dataset.boxes, box.value]);
  return data.rows.map((row, at) => ({ row, at })).filter(({ row }) =>
    (!chosen || network(row) === chosen) && off.every(([key, value]) => String(row[key]) !== value));
}

function draw() {
  if (find("controls")) {
    const shown = visible(), stays = new Set(shown.map(({ at }) => at));
    all("#runs tbody tr").forEach((line) => { line.hidden = !stays.has(Number(line.dataset.row)); });
    find("count").textContent = `${shown.length} of ${data.rows.length} ${data.rows.length === 1 ? "run" : "runs"} shown.`;
    drawScatter(shown);
    drawKept(shown);
  }
  fillOpen();
}

function redraw() {
  draw();
  drawSections();
}

themes(redraw);
if (find("controls")) {
  fillControls();
  fillLegend();
  sortable();
  find("controls").addEventListener("change", draw);
  if (find("network")) find("network").addEventListener("change", follow);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
}
downloads();
picks();
follow();
all("details.behind").forEach((d) => d.addEventListener("toggle", () => d.open && fill(d.querySelector("table"))));
window.addEventListener("beforeprint", () => all(".part:not([hidden]) [data-figure], section > figure > [data-figure]").forEach(drawFigure));
redraw();
