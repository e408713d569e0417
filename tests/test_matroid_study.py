"""The study: published figures to the printed digit, audits, and the statistics of the comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur.data import digits
from secateur.studies.matroid import run
from secateur.studies.matroid.audits import audit_network, audit_untrained
from secateur.studies.matroid.figures import figures
from secateur.studies.matroid.ordinary import intervals, planted
from secateur.studies.matroid.post import CRITERIA, SEEDS, Post, accuracy, curve, grid, moons, train
from secateur.studies.matroid.published import AT_75, FACTS
from secateur.studies.matroid.study import post_rows
from secateur.studies.matroid.tables import report


@pytest.fixture(scope="module")
def fifty() -> list[Post]:
    return list(grid(("tp_exponential",), (50,)))


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
    other = net.permuted(np.random.default_rng(0).permutation(50))
    np.testing.assert_allclose(other.logits(), net.logits(), rtol=1e-9)
    audits = {row["audit"]: row for row in audit_network(net)}
    assert curve(net, "matroid", net.tail.tail)[2] == 0
    assert audits["permuted"]["change"] < -5
    assert audits["partition"]["exact tail"] == audits["partition"]["zero biases"]
    assert audits["merged"]["change"] == 0
    assert audits["merged"]["kept"] < 50


def test_tails_are_there_before_training_and_never_without_structure():
    assert audit_untrained("tp_exponential", 200, 42)["tail"] > 100
    net = train("unconstrained", 20, 42, moons(np.random.default_rng(42)))
    assert len(net.tail.tail) == 0


def test_intervals_call_a_difference_by_its_name():
    generator = np.random.default_rng(0)
    right = generator.random((3, 2000)) < 0.9

    def cell(name: str, answers: np.ndarray) -> list:
        row = {"repair": "fold", "model": "m", "removed": 0.5, "criterion": name}
        return [(row | {"lost": 90 - 100 * a.mean()}, a) for a in answers]

    worse = right & (generator.random(right.shape) < 0.95)
    same = right.copy()
    same[:, ::97] = ~same[:, ::97]
    ahead = intervals(cell("matroid", right) + cell("magnitude", worse) + cell("random", right))
    assert ahead[0]["verdict"] == "ahead"
    assert ahead[0]["best"] == "magnitude"
    assert ahead[0]["low"] < ahead[0]["ahead by"] < ahead[0]["high"]
    assert intervals(cell("matroid", worse) + cell("taylor", right))[0]["verdict"] == "behind"
    assert intervals(cell("matroid", right) + cell("taylor", right))[0]["verdict"] == "tie"


def test_planted_rows_of_a_trained_network_are_found():
    row = planted(digits(), 0, count=20)
    assert (row["found"], row["found besides"]) == (20, 0)
    assert row["relative output difference"] < 1e-12
    assert row["accuracy before"] == row["accuracy after"]


def test_the_report_sets_published_figures_beside_ours(fifty, tmp_path):
    rows = list(post_rows(fifty))
    text = report({"post": rows, "audits": list(audit_network(fifty[0]))})
    assert "| 50 | random | -5.0 | -8.1 | -10.2 (-10.2) | -15.3 |" in text
    assert "reproduced to the printed digit: 5 of 5" in text
    figures(fifty, rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.html")} == {f"figure{i}.html" for i in (2, 3, 4, 5)}


def test_a_run_writes_what_it_returns(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.studies.matroid.study.fashion_available", lambda: False)
    found = run(out=tmp_path, parts=("planted",), seeds=1)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["found"] for line in lines] == [row["found"] for row in found["planted"]] == [40]
    assert "Planted" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="parts"):
        run(out=tmp_path, parts=("appendix",))


@pytest.mark.slow
def test_every_published_entry_is_reproduced(tmp_path):
    found = run(out=tmp_path, parts=("post", "audits"))
    assert len(found["post"]) == 2 * 5 * len(SEEDS) * len(CRITERIA)
    assert "reproduced to the printed digit: 38 of 38" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_ordinary_networks_on_digits(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.studies.matroid.study.fashion_available", lambda: False)
    found = run(out=tmp_path, parts=("ordinary",), models=("mlp",), seeds=2)
    lost = {(r["criterion"], r["removed"], r["repair"]): r["lost"] for r in found["ordinary"] if "lost" in r}
    assert lost["matroid", 0.9, "fold"] < lost["random", 0.9, "fold"]
    assert {r["verdict"] for r in found["intervals"]} <= {"ahead", "tie", "behind"}
