// Further parts of the page: one network and one layer of a chapter at a time; figures are drawn when they are reached.
function drawFigure(place) {
  const { data: traces, layout } = data.figures[place.dataset.figure];
  place.style.minHeight = layout.height ? `${layout.height}px` : "";
  plot(place, traces, Object.assign({ showlegend: traces.length > 1 }, layout));
}

const reached = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((entry) => {
  reached.unobserve(entry.target);
  drawFigure(entry.target);
}), { rootMargin: "600px" });

function drawSections() {
  for (const place of all("[data-figure]")) {
    reached.unobserve(place);
    reached.observe(place);
  }
}

// The heading names the run; where the network chosen above has none here, it says so.
function sayWhose(chapter, of) {
  const place = chapter.querySelector(".whose");
  if (!place) return;
  const name = of ? of.value : all(".part", chapter).map((part) => part.dataset.network).find(Boolean);
  place.textContent = ofNetwork(name) ? name : `${name} (the network chosen at the top has no such picture)`;
}

function ofNetwork(name) {
  const wanted = find("network") ? find("network").value : "";
  return !wanted || name === wanted || name.startsWith(`${wanted}: `);
}

// Every chapter follows the network chosen at the top, where it has a picture of it.
function follow() {
  for (const chapter of all(".chapter")) {
    const of = chapter.querySelector("[data-pick=network]");
    const names = of ? [...of.options].map((option) => option.value) : [];
    if (of && !ofNetwork(of.value) && names.some(ofNetwork)) of.value = names.find(ofNetwork);
    pick(chapter);
  }
}

function pick(chapter) {
  const chosen = (what) => chapter.querySelector(`[data-pick=${what}]`);
  const parts = all(".part", chapter), of = chosen("network"), layer = chosen("layer");
  sayWhose(chapter, of);
  const here = parts.filter((part) => !of || !part.dataset.network || part.dataset.network === of.value);
  if (layer) {
    const before = layer.value, names = [...new Set(here.map((part) => part.dataset.layer).filter(Boolean))];
    layer.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
    layer.value = names.includes(before) ? before : names[0] ?? "";
    layer.closest("label").hidden = names.length < 2;
    layer.form.hidden = !of && names.length < 2;
  }
  const shown = new Set(here.filter((part) => !layer || !part.dataset.layer || part.dataset.layer === layer.value));
  parts.forEach((part) => { part.hidden = !shown.has(part); });
}

function picks() {
  for (const chapter of all(".chapter")) {
    pick(chapter);
    const form = chapter.querySelector(".controls");
    if (!form) continue;
    form.addEventListener("change", () => pick(chapter));
    form.addEventListener("submit", (event) => event.preventDefault());
  }
}
