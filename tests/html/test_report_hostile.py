"""Reports of what is odd: damaged files, pages that mix methods and repairs; and their words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from report_runs import make_report, several_seeds, two_networks
from torch import nn
from typer.testing import CliRunner

from secateur.bench.compare import Comparison, compare_methods
from secateur.bench.output import report_sections, write_comparison
from secateur.cli import demo
from secateur.cli import main as cli
from secateur.cli.printing import show_comparison
from secateur.core import InputError, StoreError, Units
from secateur.html import flatten, read_runs, styles, write_html, write_json
from secateur.html.payload import payload
from secateur.html.style import fills
from secateur.measure.latency import _interleave, latency


def good() -> dict[str, Any]:
    return make_report("Net", "taylor", "fold", 0.5).to_dict()


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in good().items() if name != key}


def nested(depth: int) -> str:
    return '[{"a": ' + "[" * depth + "]" * depth + "}]"


def listed(**more: Any) -> str:
    return json.dumps([{**good(), **more}])


DAMAGED = {
    "no groups": json.dumps([without("groups")]),
    "no masks": json.dumps([without("masks")]),
    "no frozen": json.dumps([without("frozen")]),
    "groups as a list": listed(groups=[1]),
    "groups of words": listed(groups={"a": {"units": "many", "kept": "few"}}),
    "groups of nothing": listed(groups={"a": {}}),
    "masks as a word": listed(masks="none"),
    "frozen as a number": listed(frozen=3),
    "frozen of numbers": listed(frozen=[3]),
    "structure as a list": listed(structure=[1]),
    "structure as a word": listed(structure="matroid"),
    "a section without a title": listed(structure={"structure": "matroid", "sections": [{}]}),
    "a huge number": json.dumps([{"method": "a", "x": 10**400}]),
    "a longer number": '[{"x": 1' + "0" * 5000 + "}]",
    "a lone surrogate": '[{"method": "\\ud800"}]',
    "deep": nested(90),
    "deeper": nested(20_000),
    "deepest": nested(200_000),
    "no JSON": "{",
    "no list": "{}",
    "no dictionaries": "[1]",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_skipped_and_named(text: str, tmp_path: Path) -> None:
    write_json([good()], tmp_path / "good" / "runs.json")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "runs.json").write_text(text)
    with pytest.warns(UserWarning, match=r"skipped .*bad.runs\.json: \w") as said:
        runs = read_runs(tmp_path)
    assert len(runs) == 1 and len(said) == 1 and list(runs.skipped) == [str(tmp_path / "bad" / "runs.json")]


def test_foreign_files_are_named_on_the_page_and_stop_nothing(tmp_path: Path) -> None:
    write_json([good()], tmp_path / "good" / "runs.json")
    for name, text in {"a": '{"name": "<b>plan</b>"}', "b": "[1]", "c": "\x00", "d": nested(20_000)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(text)
    with pytest.warns(UserWarning, match=r"plan\.json"):
        done = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert done.exit_code == 0 and done.stdout.startswith("1 run in ")
    page = (tmp_path / "report.html").read_text()
    head = page[: page.index("<main")]
    assert "4 files" in head and all(str(tmp_path / name / "plan.json") in head for name in "abcd")


def test_nothing_that_is_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[]")
    (tmp_path / "runs.json").write_text("[]")
    with pytest.raises(StoreError, match=r"nothing in .*plan\.json: is damaged"):
        read_runs(tmp_path)


def rows_of(methods: tuple[str, ...] = ("taylor", "random"), seeds: int = 3) -> list[dict[str, Any]]:
    """Runs as those of a comparison: methods in that order, at two ratios."""
    runs = [
        {**run, "ratio": float(run["budget"][6:-1]), "repair": "none", "status": "ok"}
        for run in several_seeds(seeds)
    ]
    return [run for method in methods for run in runs if run["method"] == method]


def failed() -> dict[str, Any]:
    return {**rows_of()[0], "status": "no ReLU", "method": "mip"}


def test_a_method_has_one_look_on_the_whole_page() -> None:
    rows = rows_of(("taylor", "random", "magnitude"))
    found = compare_methods(rows)
    assert found.means[0]["method"] != "taylor"  # the order of ranks is another than that of appearance
    looks = styles(rows)
    assert payload([flatten(row) for row in rows], rows, [])["styles"] == looks
    (curves,) = [s for s in report_sections(found) if s.title.startswith("After")]
    drawn = {t["name"]: (t["marker"]["color"], t["marker"]["symbol"]) for t in curves.figure["data"]}
    assert drawn == {name: (look["colour"], look["symbol"]) for name, look in looks.items()}


def test_144_methods_look_different() -> None:
    looks = styles({"method": f"m{at}"} for at in range(144))
    assert len({tuple(look.values()) for look in looks.values()}) == 144


def test_repairs_are_filled_differently() -> None:
    names = ("none", "fold", "refit", "fold+finetune")
    found = fills({"repair": name} for name in names)
    assert found["none"] == "open" and len(set(found.values())) == 4


def test_bars_of_one_ratio_stand_apart_and_say_what_they_are() -> None:
    (curves,) = [s for s in report_sections(compare_methods(rows_of())) if s.title.startswith("After")]
    first, second = curves.figure["data"]
    assert not set(first["x"]) & set(second["x"])
    assert all(abs(x - r) < 0.05 for x, r in zip(first["x"], (0.25, 0.5), strict=True))
    assert "bootstrap" in curves.text and "Student" in curves.text
    assert curves.figure["layout"]["yaxis"]["title"]["text"] == "accuracy after"


def test_tables_of_an_earlier_run_go(tmp_path: Path) -> None:
    write_comparison(compare_methods([*rows_of(), failed()]), tmp_path, "One")
    assert (tmp_path / "failures.csv").exists() and (tmp_path / "failures.json").exists()
    write_comparison(compare_methods(rows_of()), tmp_path, "Two")
    assert not list(tmp_path.glob("failures.*")) and (tmp_path / "means.csv").exists()


def said_of(found: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    show_comparison(found)
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_one_method_wins_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_methods(rows_of(("taylor",)))
    assert {(row["best"], row["verdict"]) for row in found.rankings} == {(None, "alone")}
    assert {row["verdict"] for row in found.means} == {"alone"} and found.differences == []
    text = said_of(found, capsys)
    assert "0.5: one method only" in text and "*" not in text.replace("* wins", "")


def test_sentences_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = said_of(compare_methods([*rows_of(seeds=1), failed()]), capsys)
    assert "taylor is first, with too few seeds to tell it from random" in text or "random is first" in text
    assert "(1 run)" in text
    twin = [{**row, "method": "twin"} for row in rows_of(("taylor",))]
    assert "taylor ties with twin" in said_of(compare_methods([*rows_of(("taylor",)), *twin]), capsys)


def test_columns_say_what_they_hold() -> None:
    found = compare_methods(rows_of())
    assert found.rankings[0]["methods compared"] == 2 and "of" not in found.rankings[0]
    assert found.curves[0]["times smaller"] >= 1


def test_budgets_of_failed_runs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("no")

    monkeypatch.setattr(demo, "prune", refuse)
    run = demo.demonstrate(0.25, methods=["random"], quick=True)[0]
    assert run["budget"] == "Units(0.25)" and run["status"] == "no"
    assert flatten({"budget": repr(Units(0.25)), "status": "no"})["budget"] == "Units(0.25)"
    rows = [flatten(good()), {**flatten(good()), "method": "random"}, flatten({**run, "method": "mip"})]
    assert payload([{**row, "budget": "Units(0.25)"} for row in rows], rows, [])["start"]["x"] == "method"


def test_networks_are_counted_with_their_data(tmp_path: Path) -> None:
    runs = two_networks()
    twice = [*runs, *({**run, "data": "more"} for run in runs)]
    assert "52 runs, 4 networks, 5 methods" in write_html(twice, tmp_path / "page.html").read_text()


def test_the_metric_is_named(tmp_path: Path) -> None:
    def labels(runs: list[dict[str, Any]]) -> list[str]:
        return [c["label"] for c in payload([flatten(run) for run in runs], runs, [])["columns"]]

    assert "accuracy after" in labels([good()])
    assert "quality after" in labels([good(), {**good(), "metric": "loss"}])
    page = write_html(good(), tmp_path / "page.html").read_text()
    assert re.search(r'<th scope="col" class="number"><button type="button">accuracy after', page)


def test_both_models_are_measured_for_equally_long() -> None:
    asked: dict[str, list[int]] = {"before": [], "after": []}

    def timed(name: str, seconds: float) -> Callable[[int], float]:
        def run(number: int) -> float:
            asked[name].append(number)
            return seconds  # of one pass

        return run

    runs = {"before": timed("before", 0.012), "after": timed("after", 0.003)}
    _interleave(runs, 5, 2, None, random.Random(0))
    assert asked == {"before": [1] * 8, "after": [1] * 3 + [4] * 5}


def test_the_speed_is_the_median_of_the_rounds() -> None:
    run = {**good(), "status": "ok", "data": "d"}
    assert demo.pivot([run])[0]["speed"] == pytest.approx(2)
    run["after"]["latency"][1]["speedup"] = 3.0
    assert demo.pivot([run])[0]["speed"] == 3.0
    (row,) = latency({"a": nn.Linear(2, 2)}, torch.zeros(1, 2), batch_sizes=(1,), repeats=3)["a"]
    assert row.speedup == 1.0
