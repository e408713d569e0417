"""The report: rows, files, intervals, and the HTML page as text."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import diagnosed_runs, make_report, several_seeds, two_networks
from scipy import stats

from secateur.core import InputError, StoreError
from secateur.core.markdown import format_value
from secateur.html import Section, flatten, read_runs, write_csv, write_html, write_json, write_text
from secateur.html.diagnostics import diagnostic_sections
from secateur.html.payload import payload
from secateur.html.section import chapters
from secateur.html.spread import interval, spreads


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return two_networks()


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
    ("value", "text"), [(None, ""), (True, "yes"), (12345, "12,345"), (0.123456, "0.1235"), ("a", "a")]
)
def test_values_as_text(value: object, text: str) -> None:
    assert format_value(value) == text


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
    with pytest.raises(StoreError, match="names a folder"):
        write_text(Path(), "")
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
    assert json.loads(gzip.decompress(base64.b64decode(data["source"]))) == runs
    assert "26 runs, 2 networks, 5 methods; 2 could not run" in head


def test_report_writes_its_own_page(tmp_path: Path) -> None:
    make_report("Net", "taylor", "fold", 0.5).to_html(tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert "1 run." in page and "an output of the model" in page


def test_sections_alone_make_a_page(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None}, {"b": float("nan")}]
    page = write_html([], tmp_path / "page.html", sections=[Section("Only this", "Words.", rows)]).read_text()
    assert "Only this" in page and 'id="runs"' not in page
    with pytest.raises(InputError, match="no runs"):
        write_html([], tmp_path / "none.html")


def test_words_are_marked_up_and_nothing_else_is(tmp_path: Path) -> None:
    text = "A **matroid** and `a<b`.\n\n[one](a/b.html), [bad](javascript:x)\n\n"
    text += "lambda_2 of x_1_y, 3 * 4, <script>alert(1)</script>"
    page = write_html([], tmp_path / "page.html", sections=[Section("One", text)]).read_text()
    assert "<p>A <strong>matroid</strong> and <code>a&lt;b</code>.</p>" in page
    assert '<p><a href="a/b.html">one</a>, [bad](javascript:x)</p>' in page
    assert "<p>lambda_2 of x_1_y, 3 * 4, &lt;script&gt;alert(1)&lt;/script&gt;</p>" in page


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_interval_is_students(values: list[float]) -> None:
    mean, low, high = interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (mean, mean)
    assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_spreads_gather_what_differs_in_the_seed_alone() -> None:
    rows = [flatten(run) for run in several_seeds(4)]
    found = spreads(rows, ["after", "parameters", "latency_1_ms"])
    assert [len(s["rows"]) for s in found] == [4] * 6
    for spread in found:
        own = [rows[at] for at in spread["rows"]]
        assert len({(row["method"], row["budget"]) for row in own}) == 1
        assert spread["values"]["after"][0] == pytest.approx(np.mean([row["after"] for row in own]))
        assert spread["values"]["after"][1] < min(row["after"] for row in own)
    assert spreads([row for row in rows if row["seed"] == 1], ["after"]) == []


def test_draws_of_a_seed_count_as_their_mean() -> None:
    drawn = {0: (0.1, 0.5), 1: (0.6, 0.8), 2: (0.2,)}
    rows = [{"method": "random", "seed": s, "x": v} for s, values in drawn.items() for v in values]
    (found,) = spreads(rows, ["x"])
    assert found["seeds"] == 3 and found["values"]["x"] == pytest.approx(interval([0.3, 0.7, 0.2]))


def test_spreads_leave_out_what_failed() -> None:
    rows = [{"method": "a", "seed": s, "accuracy": None if s else 0.5} for s in range(2)]
    assert spreads(rows, ["accuracy"])[0]["values"]["accuracy"] == [0.5, 0.5, 0.5]


def test_rows_without_a_cost_are_only_a_table() -> None:
    rows = [{"study": "s", "ours": 0.1 * i, "published": 0.1 * i} for i in range(4)]
    assert payload(rows, rows, [])["axes"] == []
    assert payload([{**row, "macs": 10} for row in rows], rows, [])["axes"] == ["ours", "published", "macs"]


def test_payload_tells_every_group(runs: list[dict]) -> None:
    data = payload([flatten(run) for run in runs], runs, [])
    assert len(data["cells"]) == 2 * 24 and data["cells"][0] == [0, "fc1", 64, 32]
    assert data["start"] == {"x": "parameters", "y": "after"} and data["before"]["macs"] == "macs_before"


def test_chapters_keep_the_numbers_of_their_sections() -> None:
    parts = [
        Section("a", chapter="C", network="n", layer="l"),
        Section("b", chapter="C", network="m"),
        Section("c"),
    ]
    first, last = chapters(parts)
    assert (first.title, first.networks, first.layered) == ("C", ["n", "m"], True)
    assert [number for number, _ in [*first.sections, *last.sections]] == [0, 1, 2] and not last.layered


def test_each_structure_is_a_chapter_and_names_its_runs() -> None:
    runs = diagnosed_runs()
    sections = diagnostic_sections(runs)
    titles = list(dict.fromkeys(s.chapter.split()[0] for s in sections))
    assert titles == ["Matroid:", "Spectrum:", "Integer", "Lattice:"]
    names = {(s.chapter.split()[0], s.network) for s in sections}
    assert ("Spectrum:", "noise, Sequential: spectral, Units(0.5), repair none, seed 0") in names
    assert ("Lattice:", "noise, Reader: lattice, Units(0.5), repair none, seed 0") in names
    one = runs[0]
    assert len({s.network for s in diagnostic_sections([one, one])}) == 2
    assert diagnostic_sections([{**one, "structure": {}}, {"method": "mip", "status": "failed"}]) == []


def test_diagnostics_of_an_older_version_are_named() -> None:
    old = {**diagnosed_runs()[0], "structure": {"structure": "matroid", "curves": {}, "layers": {}}}
    (section,) = diagnostic_sections([old])
    assert "older version" in section.text and section.chapter.startswith("Matroid")
