"""The HTML page in a real browser: it opens without errors, its controls work, its numbers come out again."""

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
from secateur_studies.common import Figure, Findings, Table, sections

PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return two_networks()


@pytest.fixture(scope="module")
def portraits() -> list[dict]:
    return diagnosed_runs()


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
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.add_experimental_option(
        "prefs",
        {
            "download.default_directory": str(downloads),
            "profile.default_content_setting_values.automatic_downloads": 1,
        },
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def visit(browser, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page afresh at desktop size; at the end nothing was wrong, and the network was not asked."""
    browser.set_window_size(1200, 900)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get_log("browser")
    browser.get_log("performance")

    def open_page(runs: list[dict], sections: tuple[Section, ...] = (), title: str = "A page") -> Any:
        browser.get(write_html(runs, tmp_path / "page.html", title=title, sections=sections).as_uri())
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert [line for line in browser.get_log("browser") if line["level"] != "INFO"] == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if url.split(":")[0] not in ("file", "data", "blob")]


@pytest.fixture
def page(visit: Callable[..., Any], runs: list[dict]) -> Any:
    """The page of all runs and one further section."""
    figure = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {"template": {"layout": {}}}}
    rows = [{"step": "a", "n": 1}, {"step": 'b, or "c"', "n": 2.5}]
    return visit(runs, (Section("Steps of a and b", "First.\n\nSecond.", rows, figure, "Bars of a and b"),))


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for what is true at last."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    assert found
    return found


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
    page.execute_script("document.querySelector('[data-table=cells]').closest('details').open = true")
    kept = until(lambda: page.find_elements("css selector", "[data-table=cells] tbody tr"))
    texts = [
        [cell.get_attribute("textContent") for cell in row.find_elements("tag name", "td")] for row in kept
    ]
    assert len(texts) == 8 and texts[0] == ["magnitude, Units(0.5)", "fc1", "64", "32", "2"]
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
    head = page.find_element("xpath", "//table[@id='runs']//th[button='accuracy after']")
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


def saved(downloads: Path, name: str) -> str:
    """Return the text of a download, once it is there, and remove it."""
    path = downloads / name
    until(path.exists)
    text = path.read_text()
    path.unlink()
    return text


def test_downloads_hold_the_numbers(page, downloads: Path, runs: list[dict]) -> None:
    page.find_element("css selector", "#network option[value='']").click()
    page.find_element("css selector", "input[value=taylor]").click()
    for kind in ("csv", "json"):
        page.find_element("id", f"download-{kind}").click()
    rows = list(csv.DictReader(saved(downloads, "runs.csv").splitlines()))
    assert len(rows) == 18 and {row["method"] for row in rows} == {"magnitude", "random", "mip", "lattice"}
    assert float(rows[0]["after"]) == runs[0]["after"]["metric"]
    assert json.loads(saved(downloads, "runs.json")) == runs


def press(page, query: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", query)


def test_every_table_can_be_downloaded(page, downloads: Path) -> None:
    ids = page.execute_script("return [...document.querySelectorAll('[data-csv]')].map(b => b.dataset.csv)")
    assert ids == ["points", "cells", "0"]
    for name in ids:
        press(page, f"[data-csv='{name}']")
        press(page, f"[data-json='{name}']")
    assert json.loads(saved(downloads, "steps-of-a-and-b.json")) == [
        {"step": "a", "n": 1},
        {"step": 'b, or "c"', "n": 2.5},
    ]
    steps = list(csv.DictReader(saved(downloads, "steps-of-a-and-b.csv").splitlines()))
    assert steps[1] == {"step": 'b, or "c"', "n": "2.5"}
    marks = list(csv.DictReader(saved(downloads, "marks.csv").splitlines()))
    drawn = page.execute_script("return document.getElementById('scatter').data.flatMap(t => t.y)")
    assert {float(row["accuracy after"]) for row in marks} <= set(drawn)
    assert len(json.loads(saved(downloads, "marks.json"))) == len(marks) == 12
    assert len(json.loads(saved(downloads, "what-stayed.json"))) == 12
    saved(downloads, "what-stayed.csv")


def test_seeds_become_means_with_intervals(visit: Callable[..., Any], downloads: Path) -> None:
    runs = several_seeds(4)
    page = visit(runs)
    assert points(page) == 6 + 1
    bars = page.execute_script("return document.getElementById('scatter').data[0].error_y.array")
    assert len(bars) == 2 and bars[0] == pytest.approx(3.182446 * 0.01 * (5 / 3) ** 0.5 / 2, rel=1e-5)
    press(page, "[data-json=points]")
    told = json.loads(saved(downloads, "marks.json"))
    assert told[0]["seeds"] == 4 and "seed" not in told[0]
    low, mean, high = (told[0][f"accuracy after{end}"] for end in (", low", "", ", high"))
    assert low < mean < high and high - mean == pytest.approx(bars[0])
    page.find_element("css selector", "#seeds option[value=each]").click()
    assert points(page) == 24 + 1


FIGURES = "return [...document.querySelectorAll('.part:not([hidden]) [data-figure]')]"


def drawn(page) -> list[Any]:
    """Bring every figure that is not hidden into view, and wait until it is drawn."""
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


def test_pages_on_structures(visit: Callable[..., Any], portraits: list[dict]) -> None:
    page = visit(portraits)
    assert len(drawn(page)) == 11
    assert page.execute_script(
        f"{FIGURES}.every(f => f.data.some(t => t.x.length) && f.getAttribute('aria-label').length > 20)"
    )
    assert headings(page, "Lattice") == ["Hasse diagram of group 0", "Profile of group 0 over density"]
    select = page.find_element(
        "xpath", "//section[h2[starts-with(., 'Lattice')]]//select[@data-pick='layer']"
    )
    select.find_element("css selector", "option[value='2']").click()
    assert headings(page, "Lattice") == ["Hasse diagram of group 2", "Profile of group 2 over density"]
    network = "//section[h2[starts-with(., 'Lattice')]]//select[@data-pick='network']/option[2]"
    page.find_element("xpath", network).click()
    assert headings(page, "Lattice")[0] == "Hasse diagram of group rnn"
    assert headings(page, "Matroid")[1] == "Hyperplane arrangement of group 0"
    drawn(page)


def whose(page, chapter: str) -> str:
    return page.find_element("xpath", f"//section[h2[starts-with(., '{chapter}')]]//*[@class='whose']").text


def test_chapters_say_whose_they_are_and_follow_the_network(
    visit: Callable[..., Any], portraits: list[dict]
) -> None:
    page = visit(portraits)
    assert whose(page, "Matroid") == "noise, Sequential: matroid, Units(0.5), repair none, seed 0"
    page.find_element("css selector", "#network option[value='noise, Reader']").click()
    assert whose(page, "Lattice") == "noise, Reader: lattice, Units(0.5), repair none, seed 0"
    assert headings(page, "Lattice")[0] == "Hasse diagram of group rnn"
    assert whose(page, "Integer").endswith("seed 0 (the network chosen at the top has no such picture)")
    page.find_element("css selector", "#network option[value='']").click()
    assert whose(page, "Integer").endswith("seed 0")


def test_marks_tell_repairs_apart_and_the_legend_says_how(visit: Callable[..., Any]) -> None:
    repairs = (None, "fold", "refit", "fold+finetune")
    page = visit([make_report("Net", "taylor", repair, 0.5).to_dict() for repair in repairs])
    symbols = page.execute_script("return document.getElementById('scatter').data.map(t => t.marker.symbol)")
    assert symbols == ["circle-open", "circle", "circle-open-dot", "circle-dot", "star"]
    legend = [span.text for span in page.find_elements("css selector", "#legend > span")]
    assert legend[:3] == ["●\nmethod: taylor", "repair: none", "repair: fold"] and "★" in legend[-1]


def test_names_without_end_fit_a_phone(browser, visit: Callable[..., Any]) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": 390})
    long = {**make_report("N" * 5000, "taylor", "fold", 0.5).to_dict(), "method": "m" * 5000}
    long["groups"] = {"g" * 5000: {"units": 4, "kept": 2}}
    runs = [long, make_report("Net", "taylor", "fold", 0.25).to_dict()]
    page = visit(runs, title="Comparison of " + "x" * 5000)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = page.execute_script(
        "return [document.documentElement.scrollWidth,"
        " document.getElementById('theme').getBoundingClientRect().right]"
    )
    assert max(wide) <= 390


def test_marks_with_bars_stand_side_by_side(visit: Callable[..., Any], downloads: Path) -> None:
    page = visit(several_seeds(4))
    x = page.execute_script("return document.getElementById('scatter').data.slice(0, 3).flatMap(t => t.x)")
    assert len(set(x)) == len(x) == 6 and max(x) - 20_000 < 500
    press(page, "[data-json=points]")
    assert {row["parameters"] for row in json.loads(saved(downloads, "marks.json"))} == {10_000, 20_000}


def test_logarithmic_axes_name_powers_of_ten(visit: Callable[..., Any]) -> None:
    rows = [{"method": f"m{at}", "macs": 10**at, "after": at / 9} for at in range(1, 5)]
    page = visit(rows)
    page.find_element("css selector", "#axis-x option[value=macs]").click()
    ticks = page.execute_script(
        "return [...document.querySelectorAll('#scatter .xtick text')].map(t => t.textContent)"
    )
    assert ticks and all(tick.startswith("10") for tick in ticks)


def test_tables_behind_figures_open_with_their_rows(visit: Callable[..., Any], portraits: list[dict]) -> None:
    page = visit(portraits)
    page.execute_script("document.querySelectorAll('details.behind').forEach(d => { d.open = true; })")
    rows = "return [...document.querySelectorAll('[data-table]')].map(t => t.tBodies[0]?.rows.length ?? 0)"
    until(lambda: min(page.execute_script(rows)) > 0)
    wide = (
        "return [...document.querySelectorAll('.part:not([hidden]) .scroll')].every(s => s.scrollHeight > 20)"
    )
    assert page.execute_script(wide)


def test_phone_width(browser, visit: Callable[..., Any], runs: list[dict], portraits: list[dict]) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page = visit([*runs, *portraits])
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    drawn(page)
    wide = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == 360
    narrow = page.execute_script(
        f"{FIGURES}.map(f => f.querySelector('.nsewdrag').getBoundingClientRect().width)"
    )
    assert min(narrow) > 150


CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (rgb) => rgb.map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(parse(getComputedStyle(document.body).backgroundColor));
return [...document.querySelectorAll(arguments[0])].map((e) => {
  const css = getComputedStyle(e), ink = light(parse(e instanceof SVGElement ? css.fill : css.color));
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
});
"""


def ink(page) -> str:
    return page.execute_script("return getComputedStyle(document.querySelector('#scatter .xtick text')).fill")


INKS = {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 233, 237)"}


def choose(page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    until(lambda: ink(page) == INKS[scheme])


def test_contrast_in_both_schemes(page) -> None:
    for scheme in INKS:
        choose(page, scheme)
        words = "p, td, th, button, label, figcaption, a, summary, footer, select, legend"
        assert min(page.execute_script(CONTRAST, words)) >= 4.5
        assert min(page.execute_script(CONTRAST, ".glyph")) >= 4.5
        assert min(page.execute_script(CONTRAST, ".js-plotly-plot text")) >= 4.5


def test_the_button_changes_the_colours_of_page_and_plots(page) -> None:
    choose(page, "light")
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.execute_script(paper)
    button = page.find_element("id", "theme")
    assert button.text == "Dark colours"
    button.send_keys("\n")
    assert ink(page) == INKS["dark"] and page.execute_script(paper) != before
    assert button.text == "Light colours"
    bar = "return document.querySelector('[data-figure]').data"
    page.execute_script("document.querySelector('[data-figure]').scrollIntoView({behavior: 'instant'})")
    until(lambda: page.execute_script(bar))
    button.click()
    until(lambda: ink(page) == INKS["light"])


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
    for _ in range(30):
        page.switch_to.active_element.send_keys("\t")
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("value"))
    assert body and {"theme", "network", "axis-x", "axis-y", "magnitude", "fold", "download-csv"} <= reached


def test_a_study_opens_with_its_figures_first(visit: Callable[..., Any]) -> None:
    plot = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {}}
    rows = [{"what": "a", "ours": 1.0, "published": 1.1, "verdict": "differs"}]
    findings = Findings(
        "demo",
        "A study",
        tables=[Table("one", "Beside the published", rows, "A `note`.")],
        figures=[Figure("bars", "Bars", plot, "Two bars.", [{"x": "a", "y": 1}])],
        paragraph="**a** is first.\n\nMore [there](there.html).",
    )
    page = visit([], tuple(sections(findings)))
    heads = [h.text for h in page.find_elements("tag name", "h2") if h.is_displayed()]
    assert heads == ["Findings", "Bars", "Beside the published"]
    assert page.find_element("css selector", "section p strong").text == "a"
    assert page.find_element("link text", "there").get_attribute("href").endswith("/there.html")
    drawn = "return [...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0].y)"
    assert until(lambda: page.execute_script(drawn)) == [[1, 2]]
    assert "differs" in page.page_source


def thousand() -> list[dict]:
    """A thousand whole reports: five seeds of 200 ways to prune."""
    made = {method: make_report("Net", method, None, 0.5).to_dict() for method in METHODS}
    runs = []
    for at in range(1000):
        budget = f"Units({0.2 + at // 15 / 100:.2f})"
        groups = {f"layer{k}": {"units": 64, "kept": 8 + (at // 15 + k) % 56} for k in range(20)}
        note = {"threshold": at / 7, "kept scores": [at / 3, at], "removed scores": [0.1, 0.2]}
        own = {"budget": budget, "groups": groups, "notes": dict.fromkeys(groups, note), "seed": at // 3 % 5}
        runs.append({**made[METHODS[at % 3]], **own, "data": "d", "status": "ok"})
    return runs


def test_a_thousand_reports_open_quickly(browser, tmp_path: Path) -> None:
    path = write_html(thousand(), tmp_path / "many.html")
    assert path.stat().st_size < 10_000_000
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.get(path.as_uri())
    assert points(browser) == 201 + 1
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    spent = {metric["name"]: metric["value"] for metric in metrics}
    browser.execute_cdp_cmd("Performance.disable", {})
    # Processor time of the page's thread; docs/report.md has the time on the clock of a quiet machine.
    assert 0 < spent["TaskDuration"] < 6
