"""The report: rows, files, and the HTML page in a real browser."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur.analysis.cost import Cost
from secateur.analysis.latency import Latency
from secateur.analysis.measure import Agreement
from secateur.analysis.summary import Measurement, Report
from secateur.core import InputError, StoreError
from secateur.report import Section, flatten, read_runs, show, write_csv, write_html, write_json, write_text

MODELS, METHODS, REPAIRS, KEEPS = (
    ("Net", "Cell"),
    ("magnitude", "random", "taylor"),
    (None, "fold"),
    (0.5, 0.25),
)


def measurement(scale: float, quality: float) -> Measurement:
    count = int(40_000 * scale)
    times = tuple(Latency(b, 1e-4 * b * scale, 9e-5 * b, 2e-4 * b, 30, 1, "a machine") for b in (1, 64))
    return Measurement(Cost(count, count - 3, 4 * count, 10 * count), quality, times)


def make_report(model: str, method: str, repair: str | None, keep: float) -> Report:
    drop = 0.01 * (1 + METHODS.index(method)) / keep * (0.3 if repair else 1)
    return Report(
        model=model, method=method, budget=f"Units({keep})", repair=repair, seed=0, metric="accuracy",
        before=measurement(1, 0.97), after=measurement(keep, 0.97 - drop),
        agreement=Agreement(0.9, 0.5, 0.1, 64),
        groups={name: {"units": 64, "kept": int(64 * keep)} for name in ("fc1", "fc2")},
        frozen=[{"tensor": "fc3.weight", "axis": 0, "reason": "an output of the model", "source": "n.py:12"}],
        notes={"fc1": {"why": "</script><b>small</b>"}}, folds={"fc2.weight": {"residual": 0.125}},
        seconds={"trace": 0.5, "plan": 0.25},
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    """24 runs of two models on two data sets, and two that could not run."""
    cells = itertools.product(MODELS, METHODS, REPAIRS, KEEPS)
    reports = [
        {**make_report(*cell).to_dict(), "data": "digits" if cell[0] == "Net" else "rows"} for cell in cells
    ]
    failed = {"data": "rows", "model": "Cell", "repair": "none", "budget": "Units(0.5)"}
    reasons = {
        "mip": "the <layers> are no ReLU chain",
        "lattice": "no recurrent layer, nothing to order here",
    }
    return reports + [{**failed, "method": name, "status": reason} for name, reason in reasons.items()]


def test_flatten_a_report() -> None:
    row = flatten(make_report("Net", "taylor", None, 0.5))
    assert (row["parameters_before"], row["parameters"], row["nonzero"]) == (40_000, 20_000, 19_997)
    assert (row["before"], row["after"], row["top1"]) == (0.97, pytest.approx(0.91), 0.9)
    assert row["latency_64_ms"] == pytest.approx(1e3 * 64e-4 * 0.5)
    assert row["repair"] == "none" and row["seconds"] == 0.75
    assert not any(isinstance(value, (dict, list)) for value in row.values())


def test_flatten_keeps_what_else_is_told() -> None:
    row = flatten({**make_report("Net", "taylor", None, 0.5).to_dict(), "data": "digits", "exact": 1e-15})
    assert next(iter(row)) == "data" and row["exact"] == 1e-15
    assert flatten({"method": "mip", "status": "too big"}) == {"method": "mip", "status": "too big"}


@pytest.mark.parametrize(
    ("value", "words"), [(None, ""), (True, "yes"), (12345, "12,345"), (0.123456, "0.1235"), ("a", "a")]
)
def test_show(value: object, words: str) -> None:
    assert show(value) == words


def test_files_hold_every_run(runs: list[dict], tmp_path: Path) -> None:
    assert read_runs(write_json(runs, tmp_path / "deep" / "runs.json").parents[1]) == runs
    with write_csv(runs, tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [run["method"] for run in runs]
    assert [float(row["after"]) for row in rows[:24]] == [run["after"]["metric"] for run in runs[:24]]
    assert rows[-1]["status"] == runs[-1]["status"] and rows[-1]["parameters"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "runs.csv"]


@pytest.mark.parametrize("text", ["", "[1]", "{}", '[{"model": 1}', '[{"before": {}, "after": {}}]'])
def test_damaged_runs_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(StoreError, match=r"runs\.json"):
        read_runs(tmp_path)


def test_missing_runs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder"):
        read_runs(tmp_path / "absent")
    with pytest.raises(StoreError, match="or below"):
        read_runs(tmp_path)
    with pytest.raises(InputError, match="no runs"):
        write_html([], tmp_path / "page.html")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "file" / "page.html", tmp_path / "taken"):
        with pytest.raises(StoreError, match="cannot write"):
            write_text(path, "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken"]


def test_page_is_self_contained_and_escapes(runs: list[dict], tmp_path: Path) -> None:
    page = write_html(runs, tmp_path / "page.html", title="<i>Title</i>").read_text()
    assert len(page) < 10_000_000
    head = page[: page.index('id="payload"')]
    assert not re.search(r"(src|href)=\"(https?:)?//", head)
    assert "&lt;i&gt;Title&lt;/i&gt;" in head and "the &lt;layers&gt; are no ReLU chain" in head
    payload = page[page.index('id="payload">') + len('id="payload">') :]
    data = json.loads(payload[: payload.index("</script>")])
    assert data["source"] == runs
    assert "26 runs, 2 models, 5 methods; 2 could not run" in head


def test_report_writes_its_own_page(tmp_path: Path) -> None:
    make_report("Net", "taylor", "fold", 0.5).to_html(tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert "1 run." in page and "an output of the model" in page


# --- in a browser


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def page(browser, runs: list[dict], tmp_path: Path):
    """The page of all runs and one further section, opened afresh at desktop size."""
    figure = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {}}
    section = Section(
        "Steps of a and b", "First.\n\nSecond.", [{"step": "a", "n": 1}], figure, "Bars of a and b"
    )
    path = write_html(runs, tmp_path / "page.html", sections=[section])
    browser.set_window_size(1200, 900)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    yield browser
    assert [line for line in browser.get_log("browser") if line["level"] != "INFO"] == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if url.split(":")[0] not in ("file", "data", "blob")]


def shown(page) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('#runs tbody tr:not([hidden])')]"
        ".map(r => r.cells[2].textContent)"
    )


def points(page, plot: str = "scatter") -> int:
    return page.execute_script(
        "return document.getElementById(arguments[0]).data.reduce((n, t) => n + t.x.length, 0)", plot
    )


def test_filters_change_plots_and_tables(page) -> None:
    assert len(shown(page)) == 12 and points(page) == 12 + 1
    page.find_element("css selector", "#network option[value='']").click()
    assert len(shown(page)) == 26 and points(page) == 24 + 2
    page.find_element("css selector", "input[value=random]").click()
    assert len(shown(page)) == 18 and "random" not in shown(page) and points(page) == 16 + 2
    page.find_element("css selector", "#network option[value='digits, Net']").click()
    assert len(shown(page)) == 8 and points(page) == 8 + 1
    assert page.find_element("id", "count").text == "8 of 26 runs shown."
    kept = page.find_elements("css selector", "#cells tbody tr")
    texts = [row.get_attribute("textContent") for row in kept]
    assert len(texts) == 8 and texts[0] == "magnitude, Units(0.5)fc16432"
    heat = page.execute_script("const t = document.getElementById('kept').data[0]; return [t.x, t.z]")
    assert heat[0] == ["fc1", "fc2"] and sorted({z for row in heat[1] for z in row}) == [0.25, 0.5]


def test_axes_follow_the_controls(page) -> None:
    page.find_element("css selector", "#axis-x option[value=method]").click()
    kind = "const l = document.getElementById('scatter').layout; return [l.xaxis.type, l.shapes.length]"
    assert page.execute_script(kind) == ["category", 1] and points(page) == 12
    page.find_element("css selector", "#axis-x option[value=latency_64_ms]").click()
    assert (
        page.execute_script("return document.getElementById('scatter').layout.xaxis.title.text")
        == "ms at batch 64"
    )
    x = page.execute_script("return document.getElementById('scatter').data.flatMap(t => t.x)")
    assert max(x) == pytest.approx(6.4) and min(x) == pytest.approx(1.6)


def test_columns_sort_both_ways(page) -> None:
    head = page.find_element("xpath", "//table[@id='runs']//th[button='quality after']")
    values = (
        "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[arguments[0]].textContent)"
    )
    at = page.execute_script("return arguments[0].cellIndex", head)
    head.find_element("tag name", "button").send_keys("\n")
    up = [float(v) for v in page.execute_script(values, at) if v]
    assert head.get_attribute("aria-sort") == "ascending" and up == sorted(up) and len(up) == 24
    head.find_element("tag name", "button").click()
    down = [float(v) for v in page.execute_script(values, at) if v]
    assert head.get_attribute("aria-sort") == "descending" and down == sorted(down, reverse=True)


def test_downloads_hold_the_numbers(page, downloads: Path, runs: list[dict]) -> None:
    page.find_element("css selector", "#network option[value='']").click()
    page.find_element("css selector", "input[value=taylor]").click()
    for kind in ("csv", "json"):
        page.find_element("id", f"download-{kind}").click()
    paths = [downloads / "runs.csv", downloads / "runs.json"]
    until = time.monotonic() + 10
    while not all(path.exists() for path in paths) and time.monotonic() < until:
        time.sleep(0.05)
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert len(rows) == 18 and {row["method"] for row in rows} == {"magnitude", "random", "mip", "lattice"}
    assert float(rows[0]["after"]) == runs[0]["after"]["metric"]
    assert json.loads(paths[1].read_text()) == runs


def test_phone_width(page) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    page.refresh()
    wide = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide[0] <= wide[1] == 360


CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (rgb) => rgb.map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(parse(getComputedStyle(document.body).backgroundColor));
return [...document.querySelectorAll(arguments[0])].map((e) => {
  const ink = light(parse(getComputedStyle(e).color));
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_both_schemes(page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    until = time.monotonic() + 5
    ink = {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 233, 237)"}[scheme]
    tick = "return getComputedStyle(document.querySelector('#scatter .xtick text')).fill"
    while page.execute_script(tick) != ink and time.monotonic() < until:
        time.sleep(0.05)
    assert page.execute_script(tick) == ink
    assert (
        min(page.execute_script(CONTRAST, "p, td, th, button, label, figcaption, a, summary, footer")) >= 4.5
    )
    assert min(page.execute_script(CONTRAST, ".glyph")) >= 4.5


def test_controls_have_names_and_take_the_keyboard(page) -> None:
    controls = page.find_elements("css selector", "select, input, button, [role=img], [role=region], summary")
    assert len(controls) > 20
    folded = "return arguments[0].checkVisibility() && !arguments[0].accessibleName"
    unnamed = [
        c.get_attribute("outerHTML")[:80]
        for c in controls
        if page.execute_script(folded, c) and not c.accessible_name
    ]
    assert unnamed == []
    body = page.find_element("tag name", "body")
    reached = set()
    for _ in range(20):
        page.switch_to.active_element.send_keys("\t")
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("value"))
    assert body and {"network", "axis-x", "axis-y", "magnitude", "fold", "download-csv"} <= reached


def test_a_thousand_runs_open_quickly(browser, tmp_path: Path) -> None:
    rows = [
        {"data": "d", "model": "m", "method": METHODS[i % 3], "repair": "none", "budget": f"{i % 7}",
         "seed": i, "accuracy": (i % 97) / 97, "parameters": 1000 + i, "macs": 5000 - i}
        for i in range(1000)
    ]  # fmt: skip
    path = write_html(rows, tmp_path / "many.html")
    assert path.stat().st_size < 10_000_000
    start = time.perf_counter()
    browser.get(path.as_uri())
    assert points(browser) == 1000
    assert time.perf_counter() - start < 10  # 3 seconds on a quiet machine
