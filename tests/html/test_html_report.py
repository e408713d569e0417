"""The report: rows, files, intervals, styles, and the HTML page as text."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import diagnosed_runs, make_report, several_seeds, two_networks
from scipy import stats
from typer.testing import CliRunner

from secateur.cli import main as cli
from secateur.core import InputError, StoreError
from secateur.core.markdown import format_value
from secateur.html import (
    Section,
    flatten,
    method_styles,
    read_runs,
    write_csv,
    write_html,
    write_json,
    write_text,
)
from secateur.html.confidence_intervals import mean_interval, seed_intervals
from secateur.html.page import page_content
from secateur.html.page_data import page_data
from secateur.html.plot_styles import repair_fills
from secateur.html.section import chapters, diagnostic_sections


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return two_networks()


def good(**more: Any) -> dict[str, Any]:
    return {**make_report("Net", "taylor", "fold", 0.5).to_dict(), **more}


# --- rows


def test_flatten_a_report() -> None:
    row = flatten(make_report("Net", "taylor", None, 0.5))
    assert (row["parameters_before"], row["parameters"], row["nonzero"]) == (40_000, 20_000, 19_997)
    assert (row["before"], row["after"], row["top1"]) == (0.97, pytest.approx(0.91), 0.9)
    assert row["latency_64_ms"] == pytest.approx(1e3 * 64e-4 * 0.5)
    assert row["repair"] == "none" and row["seconds"] == 0.75
    assert not any(isinstance(value, (dict, list)) for value in row.values())


def test_flatten_keeps_other_keys() -> None:
    row = flatten({**make_report("Net", "taylor", None, 0.5).to_dict(), "data": "digits", "exact": 1e-15})
    assert next(iter(row)) == "data" and row["exact"] == 1e-15
    assert flatten({"method": "mip", "status": "too big"}) == {"method": "mip", "status": "too big"}


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "yes"), (12345, "12,345"), (0.123456, "0.1235"), ("a", "a")]
)
def test_values_as_text(value: object, text: str) -> None:
    assert format_value(value) == text


def unmeasured() -> dict[str, Any]:
    """A report without latency, metric and agreement."""
    run = good(metric=None, agreement=None)
    for side in ("before", "after"):
        run[side] = {**run[side], "metric": None, "latency": []}
    return run


def test_a_report_without_measurements_has_no_empty_columns(tmp_path: Path) -> None:
    data = page_data([unmeasured(), {**unmeasured(), "method": "random"}])
    assert not {"before", "after", "top1", "largest", "metric"} & set(data["keys"])
    assert data["axes"][0] == "parameters" and data["start"]["y"] in data["axes"]
    assert "Before and after" in write_html(unmeasured(), tmp_path / "page.html").read_text()


# --- files


def test_files_hold_every_run(runs: list[dict], tmp_path: Path) -> None:
    assert read_runs(write_json(runs, tmp_path / "deep" / "runs.json").parents[1]) == runs
    with write_csv(runs, tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [run["method"] for run in runs]
    assert [float(row["after"]) for row in rows[:24]] == [run["after"]["metric"] for run in runs[:24]]
    assert rows[-1]["status"] == runs[-1]["status"] and rows[-1]["parameters"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "runs.csv"]


DAMAGED = {
    "not JSON": "{",
    "not a list": "{}",
    "not dictionaries": "[1]",
    "no groups": json.dumps([{key: value for key, value in good().items() if key != "groups"}]),
    "a cost without numbers": '[{"before": {}, "after": {}}]',
    "a section without a title": json.dumps([good(structure={"structure": "matroid", "sections": [{}]})]),
    "a lone surrogate": '[{"method": "\\ud800"}]',
    "nested too deep": '[{"a": ' + "[" * 20_000 + "]" * 20_000 + "}]",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_skipped_and_named(text: str, tmp_path: Path) -> None:
    write_json([good()], tmp_path / "good" / "runs.json")
    (bad := tmp_path / "bad" / "runs.json").parent.mkdir()
    bad.write_text(text)
    with pytest.warns(UserWarning, match=r"skipped .*bad.runs\.json: \w") as caught:
        saved = read_runs(tmp_path)
    assert len(saved) == len(caught) == 1 and list(saved.skipped) == [str(bad)]
    with pytest.raises(StoreError, match=r"nothing in .*runs\.json"):
        read_runs(bad.parent)


def test_foreign_files_are_named_on_the_page(tmp_path: Path) -> None:
    write_json([good()], tmp_path / "good" / "runs.json")
    for name, text in {"a": '{"name": "<b>plan</b>"}', "b": "[1]", "c": "\x00"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(text)
    with pytest.warns(UserWarning, match=r"plan\.json"):
        done = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 0 and done.stdout.startswith("1 run in ")
    page = (tmp_path / "report.html").read_text()
    head = page[: page.index("<main")]
    assert "3 files" in head and all(str(tmp_path / name / "plan.json") in head for name in "abc")


def test_missing_runs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        write_text(Path(), "")
    with pytest.raises(StoreError, match="no folder"):
        read_runs(tmp_path / "absent")
    with pytest.raises(StoreError, match="or below"):
        read_runs(tmp_path)
    for write in (write_html, write_json, write_csv):
        with pytest.raises(InputError, match="no runs"):
            write([], tmp_path / "file")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "file" / "page.html", tmp_path / "taken"):
        with pytest.raises(StoreError, match=r"cannot write|not a file"):
            write_text(path, "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken"]


# --- the page


def test_devices_pipes_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for taken in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StoreError, match="not a file"):
            write_text(taken, "x")
    assert (tmp_path / "pipe").is_fifo()


def test_page_is_self_contained_and_escapes(runs: list[dict], tmp_path: Path) -> None:
    page = write_html(runs, tmp_path / "page.html", title="<i>Title</i>").read_text()
    assert len(page) < 10_000_000
    start = page.index('id="data">') + len('id="data">')
    head, data = page[:start], json.loads(page[start : page.index("</script>", start)])
    assert not re.search(r"(src|href)=\"(https?:)?//", head)
    assert "&lt;i&gt;Title&lt;/i&gt;" in head and "</script>&lt;b&gt;" not in head
    assert json.loads(gzip.decompress(base64.b64decode(data["runs"]))) == runs
    assert "26 runs, 2 networks, 5 methods; 2 failed" in head


def test_report_writes_its_own_page(tmp_path: Path) -> None:
    make_report("Net", "taylor", "fold", 0.5).to_html(tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert (
        "<p>Net: taylor, Units(0.5), repair fold, seed 0.</p>" in page
        and "an output of the model" in page
        and "Before and after" in page
    )


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    time = {"batch": 32, "original": 12.0, "target": 6.0, "predicted": 5.75, "measured": 6.25, "holds": True}
    run = good(notes={"predicted loss": 0.125, "measured loss": 0.25, "latency": [time]})
    numbered = [part for _, parts in page_content([run])["chapters"] for part in parts]
    (section,) = [section for _, section in numbered if section.title == "Predicted and measured"]
    loss, milliseconds = section.rows
    assert (loss["predicted"], loss["measured"]) == (0.125, 0.25)
    assert milliseconds["what"] == "ms at batch 32" and milliseconds["budget"] == 6.0
    assert "Predicted and measured" in write_html(run, tmp_path / "page.html").read_text()
    assert "Predicted and measured" not in write_html(good(), tmp_path / "page.html").read_text()


def test_sections_alone_make_a_page(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None}, {"b": float("nan")}]
    page = write_html([], tmp_path / "page.html", sections=[Section("Only this", "Words.", rows)]).read_text()
    assert "Only this" in page and 'data-table="runs"' not in page


def test_emphasis_code_and_links_are_marked_up_and_nothing_else(tmp_path: Path) -> None:
    text = "A **matroid** and `a<b`.\n\n[one](a/b.html), [bad](javascript:x)\n\n"
    text += "lambda_2 of x_1_y, 3 * 4, <script>alert(1)</script>"
    page = write_html([], tmp_path / "page.html", sections=[Section("One", text)]).read_text()
    assert "<p>A <strong>matroid</strong> and <code>a&lt;b</code>.</p>" in page
    assert '<p><a href="a/b.html">one</a>, [bad](javascript:x)</p>' in page
    assert "<p>lambda_2 of x_1_y, 3 * 4, &lt;script&gt;alert(1)&lt;/script&gt;</p>" in page


def test_page_data_names_axes_metric_and_groups(runs: list[dict]) -> None:
    data = page_data(runs)
    assert data["labels"]["after"] == "accuracy after"
    assert page_data([good(), good(metric="loss")])["labels"]["after"] == "quality after"
    assert len(data["kept"]) == 2 * 24 and data["kept"][0] == [0, "fc1", 64, 32]
    assert data["start"] == {"x": "parameters", "y": "after"} and data["before"]["macs"] == "macs_before"
    one_budget = [run for run in runs if run["budget"] == "Units(0.5)"]
    assert page_data(one_budget)["start"]["x"] == "method"


def test_rows_without_a_cost_are_only_a_table() -> None:
    rows = [{"study": "s", "ours": 0.1 * i, "published": 0.1 * i} for i in range(4)]
    assert page_data(rows)["axes"] == []
    assert page_data([{**row, "macs": 10} for row in rows])["axes"] == ["ours", "published", "macs"]


# --- styles and intervals


def test_144_methods_look_different() -> None:
    styles = method_styles({"method": f"m{number}"} for number in range(144))
    assert len({tuple(style.values()) for style in styles.values()}) == 144


def test_repairs_are_filled_differently() -> None:
    fills = repair_fills({"repair": name} for name in ("none", "fold", "refit", "fold+finetune"))
    assert fills["none"] == "open" and len(set(fills.values())) == 4


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_interval_is_students(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    error = stats.sem(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (mean, mean)
    assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_intervals_group_runs_that_differ_only_in_the_seed() -> None:
    rows = [flatten(run) for run in several_seeds(4)]
    intervals = seed_intervals(rows, ["after", "parameters", "latency_1_ms"])
    assert [len(group["rows"]) for group in intervals] == [4] * 6
    for group in intervals:
        own = [rows[number] for number in group["rows"]]
        assert len({(row["method"], row["budget"]) for row in own}) == 1
        assert group["values"]["after"][0] == pytest.approx(np.mean([row["after"] for row in own]))
        assert group["values"]["after"][1] < min(row["after"] for row in own)
    assert seed_intervals([row for row in rows if row["seed"] == 1], ["after"]) == []


def test_draws_of_a_seed_count_as_their_mean_and_failed_runs_not_at_all() -> None:
    draws = {0: (0.1, 0.5), 1: (0.6, 0.8), 2: (0.2,), 3: (None,)}
    rows = [{"method": "random", "seed": seed, "x": x} for seed, values in draws.items() for x in values]
    (group,) = seed_intervals(rows, ["x"])
    assert group["seeds"] == 4 and group["values"]["x"] == pytest.approx(mean_interval([0.3, 0.7, 0.2]))


# --- sections and chapters


def test_chapters_keep_the_numbers_of_their_sections() -> None:
    first, last = chapters([Section("a", chapter="C"), Section("b", chapter="C"), Section("c")])
    assert (first[0], last[0]) == ("C", "")
    assert [number for number, _ in [*first[1], *last[1]]] == [0, 1, 2]


def test_each_structure_is_a_chapter_and_names_its_runs() -> None:
    runs = diagnosed_runs()
    sections = diagnostic_sections(runs)
    titles = list(dict.fromkeys(s.chapter.split()[0] for s in sections))
    assert titles == ["Matroid:", "Spectrum:", "Integer", "Lattice:"]
    names = {(s.chapter.split()[0], s.run) for s in sections}
    assert ("Spectrum:", "noise, Sequential: spectral, Units(0.5), repair none, seed 0") in names
    assert ("Lattice:", "noise, Reader: lattice, Units(0.5), repair none, seed 0") in names
    one = runs[0]
    assert len({s.run for s in diagnostic_sections([one, one])}) == 2
    assert diagnostic_sections([{**one, "structure": {}}, {"method": "mip", "status": "failed"}]) == []


def test_diagnostics_of_an_older_version_are_named() -> None:
    old = good(structure={"structure": "matroid", "curves": {}, "layers": {}})
    (section,) = diagnostic_sections([old])
    assert "older version" in section.text and section.chapter.startswith("Matroid")


def test_texts_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    rows = [{"method": "=1+1", "a": -1.5, "b": "@x", "c": "-1e5"}]
    text = write_csv(rows, tmp_path / "runs.csv").read_text()
    assert text.splitlines()[1] == "'=1+1,-1.5,'@x,'-1e5"


def test_a_folder_whose_name_no_system_takes_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be used as a path"):
        read_runs("a" * 5000)
