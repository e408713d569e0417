"""The HTML page in a real browser: it opens without errors, its controls and downloads work."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import METHODS, diagnosed_runs, make_report, several_seeds, two_networks

from secateur.html import Section, write_html

FLAGS = "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-background-networking"
FLAGS += " disable-component-update disable-sync"


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
    for flag in (*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    allowed = {"profile.default_content_setting_values.automatic_downloads": 1}
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), **allowed})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def visit(browser, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page at desktop size; at the end there were no errors and no network requests."""
    browser.set_window_size(1200, 900)
    choose_scheme(browser, "light")
    browser.get_log("browser")
    browser.get_log("performance")

    def open_page(runs: Any, sections: tuple[Section, ...] = (), title: str = "A page") -> Any:
        browser.get(write_html(runs, tmp_path / "page.html", title=title, sections=sections).as_uri())
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert [line for line in browser.get_log("browser") if line["level"] != "INFO"] == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and not [url for url in urls if url.split(":")[0] not in ("file", "data", "blob")]


FIGURE = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {"template": {"layout": {}}}}
STEPS = [{"step": "a", "n": 1}, {"step": 'b, or "c"', "n": 2.5}]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 26 runs and one further section."""
    text = "**First.**\n\nMore [there](there.html)."
    section = Section("Steps of a and b", text, STEPS, FIGURE, "Bars of a and b")
    path = tmp_path_factory.mktemp("written") / "page.html"
    return write_html(two_networks(), path, title="A page", sections=(section,))


@pytest.fixture
def page(browser, visit: Callable[..., Any], written: Path) -> Any:
    """The browser, with that page open; `visit` judges it at the end."""
    browser.get(written.as_uri())
    return browser


def choose_scheme(browser, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    assert value
    return value


def click(page, query: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", query)


def select(page, query: str, value: str) -> None:
    page.find_element("css selector", f"{query} option[value='{value}']").click()


def cells(page, table: str) -> list[list[str]]:
    """Return the texts of a table's body."""
    return page.execute_script(
        "const body = document.querySelector(`[data-table='${arguments[0]}']`).tBodies[0];"
        "return body ? [...body.rows].map(r => [...r.cells].map(c => c.textContent)) : []",
        table,
    )


def plotted(page, key: str, plot: str = "scatter") -> list[Any]:
    return page.execute_script(f"return document.getElementById(arguments[0]).data.flatMap(t => {key})", plot)


def saved(downloads: Path, name: str) -> str:
    """Return the text of a download and remove it."""
    until((downloads / name).exists)
    text = (downloads / name).read_text()
    (downloads / name).unlink()
    return text


def test_filters_change_plots_and_tables(page) -> None:
    assert len(cells(page, "runs")) == 12 and len(plotted(page, "t.x")) == 12 + 1
    select(page, "#network", "")
    assert len(cells(page, "runs")) == 26 and len(plotted(page, "t.x")) == 24 + 2
    page.find_element("css selector", "input[value=random]").click()
    assert "random" not in {row[2] for row in cells(page, "runs")} and len(plotted(page, "t.x")) == 16 + 2
    select(page, "#network", "digits, Net")
    assert page.find_element("id", "count").text == "8 of 26 runs shown."
    click(page, "details:has([data-table=kept]) summary")
    rows = until(lambda: cells(page, "kept"))
    assert len(rows) == 8 and rows[0] == ["magnitude, Units(0.5)", "fc1", "64", "32", "2"]
    assert sorted(set(plotted(page, "t.z.flat()", "kept"))) == [0.25, 0.5]


def test_axes_follow_the_controls(page) -> None:
    select(page, "#axis-x", "method")
    layout = "const l = document.getElementById('scatter').layout; return [l.xaxis.type, l.shapes.length]"
    assert page.execute_script(layout) == ["category", 1] and len(plotted(page, "t.x")) == 12
    select(page, "#axis-x", "latency_64_ms")
    title = "return document.getElementById('scatter').layout.xaxis.title.text"
    assert page.execute_script(title) == "ms at batch 64"
    x = plotted(page, "t.x")
    assert (min(x), max(x)) == pytest.approx((1.6, 6.4))


def test_tables_sort_both_ways(page) -> None:
    button = "//table[@data-table='runs']//button[.='accuracy after']"
    for direction in ("ascending", "descending"):
        page.find_element("xpath", button).send_keys("\n")
        head = page.find_element("xpath", f"{button}/..")
        at = page.execute_script("return arguments[0].cellIndex", head)
        values = [float(row[at]) for row in cells(page, "runs")]
        assert head.get_attribute("aria-sort") == direction
        assert values == sorted(values, reverse=direction == "descending") and len(values) == 12


def test_downloads_hold_the_numbers(page, downloads: Path) -> None:
    runs = two_networks()
    select(page, "#network", "")
    page.find_element("css selector", "input[value=taylor]").click()
    for name in ("runs", "points", "kept", "0"):
        click(page, f"[data-csv='{name}']")
        click(page, f"[data-json='{name}']")
    rows = list(csv.DictReader(saved(downloads, "runs.csv").splitlines()))
    assert len(rows) == 18 and {row["method"] for row in rows} == {"magnitude", "random", "mip", "lattice"}
    assert float(rows[0]["after"]) == runs[0]["after"]["metric"]
    assert json.loads(saved(downloads, "runs.json")) == runs
    assert json.loads(saved(downloads, "steps-of-a-and-b.json")) == STEPS
    assert list(csv.DictReader(saved(downloads, "steps-of-a-and-b.csv").splitlines()))[1] == {
        "step": 'b, or "c"',
        "n": "2.5",
    }
    points = list(csv.DictReader(saved(downloads, "points.csv").splitlines()))
    assert {float(row["accuracy after"]) for row in points} <= set(plotted(page, "t.y"))
    assert len(json.loads(saved(downloads, "points.json"))) == len(points) == 16
    assert len(json.loads(saved(downloads, "kept.json"))) == 16 and saved(downloads, "kept.csv")


def test_seeds_become_means_with_intervals_side_by_side(visit: Callable[..., Any], downloads: Path) -> None:
    page = visit(several_seeds(4))
    x, bars = plotted(page, "t.x"), plotted(page, "t.error_y?.array ?? []")
    assert len(x) == len(set(x)) == 6 + 1 and len(bars) == 6
    assert bars[0] == pytest.approx(3.182446 * 0.01 * (5 / 3) ** 0.5 / 2, rel=1e-5)
    click(page, "[data-json=points]")
    points = json.loads(saved(downloads, "points.json"))
    assert {row["parameters"] for row in points} == {10_000, 20_000}
    assert points[0]["seeds"] == 4 and "seed" not in points[0]
    low, mean, high = (points[0][f"accuracy after{end}"] for end in (", low", "", ", high"))
    assert low < mean < high and high - mean == pytest.approx(bars[0])
    select(page, "#seeds", "each")
    assert len(plotted(page, "t.x")) == 24 + 1


def test_markers_tell_repairs_apart(visit: Callable[..., Any]) -> None:
    repairs = (None, "fold", "refit", "fold+finetune")
    page = visit([make_report("Net", "taylor", repair, 0.5).to_dict() for repair in repairs])
    symbols = ["circle-open", "circle", "circle-open-dot", "circle-dot", "star"]
    assert plotted(page, "t.marker.symbol") == symbols
    legend = [span.text for span in page.find_elements("css selector", ".legend > span")]
    assert legend[:3] == ["●\nmethod: taylor", "repair: none", "repair: fold"] and "★" in legend[-1]


FIGURES = "return [...document.querySelectorAll('.part:not([hidden]) [data-figure]')]"


def draw_figures(page) -> list[Any]:
    """Scroll to every visible figure and wait until it is drawn."""
    figures = page.execute_script(FIGURES)
    for figure in figures:
        page.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", figure)
        until(lambda figure=figure: page.execute_script("return arguments[0].data", figure))
    return figures


def headings(page, chapter: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('.chapter')].filter(c => c.querySelector('h2').textContent"
        ".startsWith(arguments[0])).flatMap(c => [...c.querySelectorAll('.part:not([hidden]) h3')])"
        ".map(h => h.textContent)",
        chapter,
    )


def test_chapters_show_one_run_and_one_layer(visit: Callable[..., Any]) -> None:
    page = visit(diagnosed_runs())
    assert len(draw_figures(page)) == 11
    drawn = "f.data.some(t => t.x.length) && f.getAttribute('aria-label').length > 20"
    assert page.execute_script(f"{FIGURES}.every(f => {drawn})")
    assert headings(page, "Lattice") == ["Hasse diagram of group 0", "Profile of group 0 over density"]
    chapter = "//section[h2[starts-with(., 'Lattice')]]"
    page.find_element("xpath", f"{chapter}//select[@name='layer']/option[.='2']").click()
    assert headings(page, "Lattice") == ["Hasse diagram of group 2", "Profile of group 2 over density"]
    page.find_element("xpath", f"{chapter}//select[@name='run']/option[contains(., 'Reader')]").click()
    assert headings(page, "Lattice")[0] == "Hasse diagram of group rnn"
    assert headings(page, "Matroid")[1] == "Hyperplane arrangement of group 0"
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    sizes = "return [...document.querySelectorAll('[data-table]')].map(t => t.tBodies[0]?.rows.length ?? 0)"
    until(lambda: min(page.execute_script(sizes)) > 0)
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    until(lambda: page.execute_script("return document.documentElement.scrollWidth") <= 360)
    draw_figures(page)


PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (rgb) => rgb.map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(parse(getComputedStyle(document.body).backgroundColor));
return Math.min(...[...document.querySelectorAll(arguments[0])].map((e) => {
  const css = getComputedStyle(e), ink = light(parse(e instanceof SVGElement ? css.fill : css.color));
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}));
"""
INKS = {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 233, 237)"}


def test_colours_follow_the_system_and_the_button(page) -> None:
    ink = "return getComputedStyle(document.querySelector('#scatter .xtick text')).fill"
    for scheme in INKS:
        choose_scheme(page, scheme)
        until(lambda scheme=scheme: page.execute_script(ink) == INKS[scheme])
        texts = "p, td, th, button, label, figcaption, a, summary, footer, select, legend, .glyph"
        assert page.execute_script(CONTRAST, f"{texts}, .js-plotly-plot text") >= 4.5
    button = page.find_element("id", "theme")
    assert button.text == "Light colours"
    button.send_keys("\n")
    until(lambda: page.execute_script(ink) == INKS["light"])
    assert button.text == "Dark colours"


def test_controls_have_names_and_take_the_keyboard(page) -> None:
    controls = page.find_elements("css selector", "select, input, button, [role=img], [role=region], summary")
    assert len(controls) > 20
    unnamed = [c for c in controls if c.is_displayed() and not c.accessible_name]
    assert [c.get_attribute("outerHTML")[:80] for c in unnamed] == []
    reached = set()
    for _ in range(25):
        page.switch_to.active_element.send_keys("\t")
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("value"))
    assert {"theme", "network", "axis-x", "axis-y", "magnitude", "fold"} <= reached
    assert page.find_element("css selector", "section p strong").text == "First."
    assert page.find_element("link text", "there").get_attribute("href").endswith("/there.html")


def thousand() -> list[dict]:
    """A thousand whole reports: five seeds of 200 ways to prune."""
    reports = {method: make_report("Net", method, None, 0.5).to_dict() for method in METHODS}
    runs = []
    for at in range(1000):
        budget = f"Units({0.2 + at // 15 / 100:.2f})"
        groups = {f"layer{k}": {"units": 64, "kept": 8 + (at // 15 + k) % 56} for k in range(20)}
        note = {"threshold": at / 7, "kept scores": [at / 3, at], "removed scores": [0.1, 0.2]}
        own = {"budget": budget, "groups": groups, "notes": dict.fromkeys(groups, note), "seed": at // 3 % 5}
        runs.append({**reports[METHODS[at % 3]], **own, "data": "d", "status": "ok"})
    return runs


@pytest.mark.slow
def test_a_thousand_reports_open_quickly(browser, tmp_path: Path) -> None:
    path = write_html(thousand(), tmp_path / "many.html")
    assert path.stat().st_size < 10_000_000
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.get(path.as_uri())
    assert len(plotted(browser, "t.x")) == 201 + 1
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    seconds = {metric["name"]: metric["value"] for metric in metrics}["TaskDuration"]
    browser.execute_cdp_cmd("Performance.disable", {})
    assert 0 < seconds < 6  # processor time; docs/report.md has the time on the clock of a quiet machine
