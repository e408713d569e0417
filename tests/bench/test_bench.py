"""The comparison of methods: a planted winner, twins, fairness, resumption, invalid input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from planted_comparison import bench, plant
from sampled import sampled

from secateur.bench.benchmark import Bench, make_trials, run_bench
from secateur.bench.compare import compare_methods, failures, settings
from secateur.bench.output import write_comparison
from secateur.bench.run import run_trials
from secateur.core import InputError

CLOCKS = {"seconds", "latency", "memory"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with planted.py in it."""
    return plant(tmp_path, monkeypatch)


@pytest.mark.parametrize("model", sampled(["make", "single"], "make"))
def test_a_planted_winner_wins_and_twins_tie(model: str, place: Path) -> None:
    rows, seed_note = run_bench(bench(model), place / "out", engine="inline")
    assert ("the factory makes for each seed" in seed_note) == (model == "make")
    found = compare_methods(rows, seed_note)
    (ranking,) = found.rankings
    assert ranking["verdict"] == "tie"
    assert {ranking["best"], ranking["tied with"]} == {"planted.py:Truth", "planted.py:Twin"}
    verdicts = {(row["first"], row["second"]): row["verdict"] for row in found.differences}
    assert verdicts["planted.py:Truth", "planted.py:Twin"] == "tie"
    assert verdicts["planted.py:Truth", "magnitude"] == verdicts["planted.py:Twin", "random"] == "better"
    alone = compare_methods([row for row in rows if row["method"] != "planted.py:Twin"])
    assert (alone.rankings[0]["best"], alone.rankings[0]["verdict"]) == ("planted.py:Truth", "wins")
    means = {row["method"]: row for row in found.means}
    assert means["planted.py:Truth"]["after"] > 0.99 > 0.6 > means["magnitude"]["after, high"]
    assert found.curves[0]["method"] in ("planted.py:Truth", "planted.py:Twin")


def test_several_budgets_all_hold(place: Path) -> None:
    two = bench("single", methods=["magnitude"], budgets=["macs", "bytes=0.6"], ratios=[0.9, 0.3], seeds=[0])
    rows, _ = run_bench(two, place / "out", engine="inline")
    assert {row["ratio"] for row in rows} == {0.9, 0.3}
    for row in rows:
        before, after = (row[key]["cost"] for key in ("before", "after"))
        assert after["macs"] <= row["ratio"] * before["macs"]
        assert after["bytes"] <= 0.6 * before["bytes"]
    assert "Macs(0.9" in rows[0]["budget"] and "Bytes(0.6" in rows[0]["budget"]


@pytest.mark.slow
def test_the_same_trial_gives_the_same_row_in_another_process(place: Path) -> None:
    trials = make_trials(bench(methods=["random"], repairs=["fold+finetune"], seeds=[3, 5]))
    rows = []
    for engine in ("inline", "local"):
        results = run_trials(trials, place / f"{engine}.jsonl", engine=engine, jobs=1)
        assert [result.status for result in results] == ["ok"] * len(trials)
        rows.append([{k: v for k, v in r.rows[0].items() if k not in CLOCKS} for r in results])
    assert rows[0] == rows[1]
    assert rows[0][0]["after"] != rows[0][1]["after"] and rows[0][0]["agreement"]["examples"] == 400


def test_a_comparison_resumes_and_says_what_went_wrong(place: Path) -> None:
    one = bench("single", methods=["planted.py:Refuses", "planted.py:Broken", "magnitude"], seeds=[0, 1])
    lines: list[str] = []
    rows, _ = run_bench(one, place / "out", engine="inline")
    again, _ = run_bench(one, place / "out", engine="inline", log=lines.append)
    assert lines[1].startswith("6 of 8 trials (6 from before)")
    plain = [{**row, "memory": 0} for row in rows]
    assert [{**row, "memory": 0} for row in again] == plain
    bad = {row["method"]: row for row in failures(rows)}
    assert bad["planted.py:Refuses"]["why"] == "PlanError: not for this network"
    assert bad["planted.py:Broken"]["why"].startswith("failed: ZeroDivisionError")
    assert bad["planted.py:Broken"]["runs"] == 2
    found = compare_methods(rows)
    assert {row["method"] for row in found.means} == {"magnitude", "random"}
    with pytest.raises(InputError, match="every pruning failed"):
        compare_methods([row for row in rows if row["status"] != "ok"])


def test_every_method_gets_the_same_examples_and_held_out_ones_are_divided(place: Path) -> None:
    one, many = (make_trials(bench(model, seeds=[4, 7]), inline=True) for model in ("single", "make"))
    parts = {(t.params["seed"], tuple(t.params["part_of_holdout"])) for t in one}
    assert parts == {(4, (0, 2)), (7, (1, 2))}
    assert {tuple(t.params["part_of_holdout"]) for t in many} == {(0, 1)}
    assert len({t.params["hashes"]["model"] for t in many}) == 2
    assert {t.params["model_seed"] for t in one} == {None}
    methods = {"planted.py:Truth", "planted.py:Twin", "magnitude", "random"}
    assert {t.params["pruning"]["method"] for t in one} == methods
    for seed in (4, 7):
        mine = [t.params for t in one if t.params["seed"] == seed]
        assert len({t["hashes"]["data"] for t in mine}) == 1
        of_methods = ("method", "hashes", "diagnosed")
        rest = [{**t, **t["pruning"]} for t in mine]
        assert all(
            {k: v for k, v in t.items() if k not in (*of_methods, "pruning")}
            == {k: v for k, v in rest[0].items() if k not in (*of_methods, "pruning")}
            for t in rest
        )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"methods": ["magnitud"]}, "did you mean 'magnitude'"),
        ({"methods": ["magnitude:q=1"]}, "no option of magnitude"),
        ({"methods": []}, "methods must be one or more"),
        ({"methods": ["taylor", "taylor"]}, "each once"),
        ({"ratios": [0.5, 1.5]}, "1.5"),
        ({"ratios": [0.0]}, "0"),
        ({"repairs": ["fol"]}, "did you mean 'fold'"),
        ({"budgets": ["unit"]}, "did you mean 'units'"),
        ({"budgets": ["tolerance"]}, "tolerance"),
        ({"budgets": ["bytes=20MB"]}, "must have no amount, as 'macs'"),
        ({"budgets": ["macs", "macs=0.5"]}, "limit the same amount"),
        ({"budgets": []}, "budgets must be one or more"),
        ({"scope": "globl"}, "globl"),
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"metric": "perplexity"}, "more is better"),
        ({"lr": math.nan}, "positive and finite.*got nan"),
        ({"lr": -1e-3}, "got -0.001"),
        ({"seeds": [3, 2**63]}, f"seeds must be from 0 to .*got {2**63}"),
        ({"seeds": [2**63 - 1]}, f"below 2.*63; got {2**63 - 1}"),
        ({"seeds": [-1]}, "seeds must be from 0 to .*got -1"),
        ({"draws": 0}, "draws must be positive.*got 0"),
        ({"epochs": -2}, "epochs must be positive.*got -2"),
        ({"examples": 0}, "examples must be positive.*got 0"),
    ],
)
def test_invalid_comparisons(more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench(**more)


@pytest.mark.parametrize(
    ("model", "data", "holdout", "words"),
    [
        ("planted.py:mke", "planted.py:fit", "planted.py:held", "did you mean 'make'"),
        ("planted.py:single", "planted.py:fit", None, "name other batches with --holdout"),
        ("planted.py:single", "planted.py:held", "planted.py:held", "100% of the held-out examples"),
        ("planted.py:branching", "planted.py:fit", "planted.py:held", "CaptureError"),
        ("planted.py:single", "nowhere", None, "no data set"),
    ],
)
def test_invalid_models_and_data(model: str, data: str, holdout: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_trials(Bench(model, data, holdout, seeds=[0]), inline=True)


@pytest.mark.slow
def test_one_seed_is_too_few(place: Path) -> None:
    rows, seed_note = run_bench(bench(seeds=[0]), place / "out", engine="inline")
    found = compare_methods(rows, seed_note)
    assert found.rankings[0]["verdict"] == "too few seeds"
    assert found.means[0]["after, low"] is None
    assert write_comparison(found, place / "page", "One").exists()


@pytest.mark.slow
def test_a_structure_that_took_part_has_its_chapter(place: Path) -> None:
    one = bench(methods=["spectral", "magnitude"], seeds=[0, 1], ratios=[0.5, 0.25])
    rows, seed_note = run_bench(one, place / "out", engine="inline")
    drawn = [row for row in rows if row.get("structure")]
    assert [(row["method"], row["seed"], row["ratio"]) for row in drawn] == [("spectral", 0, 0.5)]
    assert drawn[0]["structure"]["structure"] == "spectral"
    page = write_comparison(compare_methods(rows, seed_note), place / "page", "One").read_text()
    assert "lambda" in page


LABELS = """
import planted


def fit():
    return [x for x, _ in planted.fit()]


def held():
    return [{"input": x} for x, _ in planted.held()]


def weights_left(model, batches):
    return float(sum(p.abs().sum() for p in model.parameters())) if len(batches) else 0.0
"""


@pytest.mark.parametrize("metric", sampled(["agreement", "unlabelled.py:weights_left"], "agreement"))
def test_no_labels_are_needed(place: Path, metric: str) -> None:
    (place / "unlabelled.py").write_text(LABELS)
    one = Bench(
        "planted.py:single",
        "unlabelled.py:fit",
        "unlabelled.py:held",
        methods=["magnitude"],
        ratios=[0.5],
        seeds=[0, 1],
        repairs=["fold"],
        draws=1,
        metric=metric,
        latency=False,
    )
    rows, _ = run_bench(one, place / "out", engine="inline")
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert {row["agreement"]["examples"] for row in rows} == {200}
    assert {row["metric"] for row in rows} == {metric.rpartition(":")[2]}
    (setting,) = settings(rows)
    assert setting.examples == (200 if metric == "agreement" else None)
    if metric != "agreement":
        before = make_trials(one, inline=True)
        (place / "unlabelled.py").write_text(LABELS + "# edited")
        assert not {t.key for t in before} & {t.key for t in make_trials(one, inline=True)}
