"""The matroid study: published numbers to the printed digit, controls, and the comparison."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from secateur.bench.statistics import paired_p
from secateur.core import InputError
from secateur.data import digits
from secateur_studies.matroid import STUDY, experiments
from secateur_studies.matroid.controls import check_network, check_untrained
from secateur_studies.matroid.harder import _fold, harder_row, load_task, train_harder
from secateur_studies.matroid.ordinary import find_planted
from secateur_studies.matroid.post import CRITERIA, SEEDS, Post, accuracy, curve, moons, train
from secateur_studies.matroid.published import AT_75, FACTS
from secateur_studies.matroid.study import findings
from secateur_studies.matroid.tables import compare_best
from secateur_studies.runner import run_study


@pytest.fixture(scope="module")
def fifty() -> list[Post]:
    return [train("tp_exponential", 50, seed, moons(np.random.default_rng(seed))) for seed in SEEDS]


def test_the_table_at_50_units_is_reproduced_to_the_printed_digit(fifty):
    for criterion in CRITERIA:
        mean = np.mean([curve(net, criterion, net.tail.tail)[2] for net in fifty])
        assert round(mean, 1) == AT_75[50][criterion]


def test_figure_2_is_reproduced(fifty):
    net = fifty[0]
    tail, everything = net.tail.tail, np.arange(50)
    count = int(0.75 * len(tail))
    assert count == FACTS["figure 2: removed"]
    assert round(100 * accuracy(net), 1) == FACTS["figure 2: accuracy before"]
    kept = np.setdiff1d(everything, tail[:count])
    assert round(100 * accuracy(net, kept), 1) == FACTS["figure 2: accuracy by matroid"]
    draws = [np.random.default_rng(s).choice(50, size=count, replace=False) for s in range(20)]
    worst = min(accuracy(net, np.setdiff1d(everything, gone)) for gone in draws)
    assert round(100 * worst, 1) == FACTS["figure 2: accuracy by random"]


def test_figure_1_has_four_essential_units():
    net = train("tp_exponential", 20, 43, moons(np.random.default_rng(43)))
    assert len(net.tail.essential) == FACTS["figure 1: essential"]
    assert len(net.tail.tail) == FACTS["figure 1: tail"]


def test_permuting_the_units_keeps_the_function_and_loses_the_result(fifty):
    net = fifty[0]
    other = net.permute(np.random.default_rng(0).permutation(50))
    np.testing.assert_allclose(other.logits(), net.logits(), rtol=1e-9)
    controls = {row["part"]: row for row in check_network(net)}
    assert curve(net, "matroid", net.tail.tail)[2] == 0
    assert controls["permuted"]["change"] < -5
    assert controls["partition"]["exact tail"] == controls["partition"]["zero biases"]
    within = controls["within the tail"]
    assert within["index"] == within["most-windows"] == within["smallest norm"] == 0
    assert within["random"] < -5
    assert controls["merged"]["change"] == 0
    assert controls["merged"]["kept"] < 50


def test_tails_are_there_before_training_and_never_without_structure():
    assert check_untrained("tp_exponential", 200, 42)["tail"] > 100
    net = train("unconstrained", 20, 42, moons(np.random.default_rng(42)))
    assert len(net.tail.tail) == 0


def outcomes(name: str, answers: np.ndarray, ours: np.ndarray) -> list[dict]:
    """Rows of a criterion, given which test examples are right [seeds, examples]."""
    cell = {"repair": "fold", "model": "m", "removed": 0.5, "criterion": name}
    rows = [{**cell, "part": "ordinary", "lost": 90 - 100 * a.mean()} for a in answers]
    for mine, a in zip(ours, answers, strict=True):
        counts = {"only matroid": (mine & ~a).sum(), "only baseline": (a & ~mine).sum(), "tested": len(a)}
        rows.append({**cell, "part": "paired", **counts})
    return rows


def test_intervals_call_a_difference_by_its_name():
    generator = np.random.default_rng(0)
    right = generator.random((4, 2000)) < 0.9
    worse = right & (generator.random(right.shape) < 0.95)
    random = outcomes("random", right, right)
    result = compare_best(outcomes("matroid", right, right) + outcomes("magnitude", worse, right) + random)[0]
    assert (result["verdict"], result["best baseline"], result["seeds"]) == ("ahead", "magnitude", 4)
    assert result["low"] < result["ahead by"] < result["high"]
    exact = 100 * (right.mean(1) - worse.mean(1))
    assert math.isclose(result["ahead by"], exact.mean())
    assert result["p"] == pytest.approx(paired_p((exact / 100).tolist(), 2000 / 4)) and result["p"] < 0.05
    behind = compare_best(outcomes("matroid", worse, worse) + outcomes("taylor", right, worse))[0]
    tie = compare_best(outcomes("matroid", right, right) + outcomes("taylor", right, right))[0]
    assert (behind["verdict"], tie["verdict"]) == ("behind", "tie")


def test_planted_rows_of_a_trained_network_are_found():
    row = find_planted(digits(), 0, count=20)
    assert (row["found"], row["found besides"]) == (20, 0)
    assert row["relative output difference"] < 1e-12
    assert row["accuracy before"] == row["accuracy after"]


def test_findings_set_published_figures_beside_ours(fifty):
    rows = [row for net in fifty for row in experiments.curve_rows(net, net.seed)]
    result = findings([*rows, *experiments.panel_rows(fifty[0])])
    tables = {table.name: table.rows for table in result.tables}
    verdicts = {(r["criterion"], r["of the tail"]): r["verdict"] for r in tables["published"]}
    assert verdicts == {(criterion, "75%"): "reproduced" for criterion in CRITERIA}
    assert {r["verdict"] for r in tables["whole-tail"]} == {"reproduced"}
    other = [{**r, "change": r["change"] - 0.1 * (r["criterion"] == "random")} for r in rows]
    verdicts = {r["criterion"]: r["verdict"] for r in findings(other).tables[0].rows}
    assert [name for name, word in verdicts.items() if word == "differs"] == ["random"]
    assert {f.name for f in result.figures} == {"figure2", "figure3", "figure4"}
    side = next(f for f in result.figures if f.name == "figure2").figure["data"][0]["z"]
    assert np.shape(side) == (experiments.SIDE, experiments.SIDE)


def test_a_fold_of_all_units_is_the_network_and_rows_become_a_table():
    task = load_task("moons, d = 3", 0)
    assert [part.shape[0] for part in task] == [400, 400, 1000, 1000]
    rows = [
        harder_row("moons, d = 3", mode, seed, epochs=2) for mode in ("gaussian", "cauchy") for seed in (0, 1)
    ]
    assert {row["exact tail"] for row in rows} == {0}
    (table,) = findings(rows).tables
    assert [(row["kernel"], row["networks"]) for row in table.rows] == [("gaussian", 2), ("cauchy", 2)]
    net = train_harder("gaussian", task, 0, epochs=2)
    w2, b2 = _fold(net, net.hidden(task[0]), np.arange(len(net.b1)))
    whole = net.hidden(task[0]) @ net.w2.T + net.b2
    assert np.abs(net.hidden(task[0]) @ w2.T + b2 - whole).max() < 1e-3 * np.abs(whole).max()


def test_a_run_writes_what_it_finds_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur_studies.matroid.study.fashion_available", lambda: False)
    messages: list[str] = []
    result = run_study(STUDY, tmp_path, parts=("planted",), seeds=1, jobs=1, log=messages.append)
    rows = json.loads((tmp_path / "planted.json").read_text())
    assert [row["found"] for row in rows] == [40] == [row["found"] for row in result.tables[0].rows]
    assert result.paragraph in (tmp_path / "findings.md").read_text()
    with pytest.raises(InputError, match="post"):
        run_study(STUDY, tmp_path, parts=("pots",))


@pytest.mark.slow
def test_every_published_entry_is_reproduced(tmp_path):
    result = run_study(STUDY, tmp_path, parts=("post", "controls"))
    tables = {table.name: table.rows for table in result.tables}
    assert len(tables["post"]) == 2 * 5 * len(CRITERIA)
    assert len(tables["published"]) == 38
    assert {row["verdict"] for row in (*tables["published"], *tables["whole-tail"])} == {"reproduced"}
    assert {f.name for f in result.figures} == {f"figure{i}" for i in range(1, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_ordinary_networks_on_digits(tmp_path, monkeypatch, full):
    monkeypatch.setattr("secateur_studies.matroid.study.fashion_available", lambda: False)
    result = run_study(STUDY, tmp_path, full=full, parts=("ordinary",), models=("mlp",), seeds=2, limit=600)
    rows = {(r["criterion"], r["repair"]): r for r in result.tables[0].rows}
    assert rows["matroid", "fold"]["90%"] < rows["random", "fold"]["90%"]
    assert {r["verdict"] for r in result.tables[1].rows} <= {"ahead", "tie", "behind"}
