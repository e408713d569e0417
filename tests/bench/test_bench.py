"""The comparison of methods: a planted winner, twins, fairness, resumption, bad input, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from secateur.bench.compare import comparison, failures, places
from secateur.bench.models import model_hash, overlap, part, sample, takes_seed
from secateur.bench.output import write_comparison
from secateur.bench.run import run_trials
from secateur.bench.setting import Bench, make_grid, ratios_of, run_bench, seeds_of, split_methods
from secateur.bench.trial import Trial
from secateur.cli import main as cli
from secateur.core import InputError

PLANTED = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.allocation import prunable
from secateur.methods import ScoreMethod


def make(seed=0):
    """Four units that decide the class, twelve loud ones that do not, in an order that the seed decides."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    order = torch.randperm(16, generator=g)
    with torch.no_grad():
        model[0].weight.copy_(3 * torch.randn(16, 8, generator=g))
        model[0].bias.copy_(torch.randn(16, generator=g))
        model[2].weight.copy_(0.01 * torch.randn(4, 16, generator=g))
        model[2].bias.zero_()
        for at in range(4):
            model[0].weight[at] = 0.0
            model[0].weight[at, at // 2] = 1.0 if at % 2 == 0 else -1.0
            model[0].bias[at] = 0.0
        signs = torch.tensor([[1.0, -1, 1, -1], [1, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, -1, 1]])
        model[2].weight[:, :4] = signs
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    return model


def single():
    return make(0)


def examples(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    y = 2 * (x[:, 0] < 0).long() + (x[:, 1] < 0).long()
    return list(zip(x.split(50), y.split(50), strict=True))


def fit():
    return examples(1, 200)


def held():
    return examples(2, 400)


def half_known():
    return [*fit()[:3], *held()[:1]]


def branching():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x
    return Branching(8, 4)


@dataclass(frozen=True, kw_only=True)
class Truth(ScoreMethod):
    """Told which units decide."""

    name: ClassVar[str] = "truth"

    def needs(self, budget):
        return frozenset()

    def unit_scores(self, network, evidence):
        return {group.name: evidence.weights["2.weight"].abs().amax(0) for group in prunable(network)}


@dataclass(frozen=True, kw_only=True)
class Twin(Truth):
    """The same, under another name."""

    name: ClassVar[str] = "twin"


@dataclass(frozen=True, kw_only=True)
class Refuses(Truth):
    """Refuses."""

    name: ClassVar[str] = "refuses"

    def unit_scores(self, network, evidence):
        from secateur.core import PlanError
        raise PlanError("not for this network")


@dataclass(frozen=True, kw_only=True)
class Broken(Truth):
    """Has a mistake."""

    name: ClassVar[str] = "broken"

    def unit_scores(self, network, evidence):
        return 1 / 0
'''
CLOCKS = {"seconds", "latency", "memory"}


LOUD = """
class Loud(nn.Module):
    def forward(self, x):
        return 2 * x.relu()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with planted.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "planted.py").write_text(PLANTED)
    return tmp_path


def bench(model: str = "make", **more) -> Bench:
    given = {
        "methods": ["planted.py:Truth", "planted.py:Twin", "magnitude"],
        "ratios": [0.25],
        "seeds": [0, 1, 2, 3, 4],
        "repairs": ["none"],
        "draws": 1,
        "latency": False,
    }
    return Bench(f"planted.py:{model}", "planted.py:fit", "planted.py:held", **{**given, **more})


@pytest.mark.parametrize("model", ["make", pytest.param("single", marks=pytest.mark.slow)])
def test_a_planted_winner_wins_and_twins_tie(model: str, place: Path) -> None:
    rows, varies = run_bench(bench(model), place / "out", engine="inline")
    assert ("the factory makes for each seed" in varies) == (model == "make")
    found = comparison(rows, varies)
    (stands,) = found.standings
    assert stands["verdict"] == "tie"
    assert {stands["best"], stands["cannot be told from it"]} == {"planted.py:Truth", "planted.py:Twin"}
    verdicts = {(row["first"], row["second"]): row["verdict"] for row in found.differences}
    assert verdicts["planted.py:Truth", "planted.py:Twin"] == "tie"
    assert verdicts["planted.py:Truth", "magnitude"] == verdicts["planted.py:Twin", "random"] == "better"
    alone = comparison([row for row in rows if row["method"] != "planted.py:Twin"])
    assert (alone.standings[0]["best"], alone.standings[0]["verdict"]) == ("planted.py:Truth", "wins")
    means = {row["method"]: row for row in found.means}
    assert means["planted.py:Truth"]["after"] > 0.99 > 0.6 > means["magnitude"]["after, high"]
    assert found.curves[0]["method"] in ("planted.py:Truth", "planted.py:Twin")


@pytest.mark.slow
def test_the_same_cell_gives_the_same_row_in_another_process(place: Path) -> None:
    grid = make_grid(bench(methods=["random"], repairs=["fold+finetune"], seeds=[3, 5]))
    rows = []
    for engine in ("inline", "local"):
        records = run_trials(grid.cells, place / f"{engine}.jsonl", engine=engine, jobs=1)
        assert [record.status for record in records] == ["ok"] * len(grid.cells)
        rows.append([{k: v for k, v in r.rows[0].items() if k not in CLOCKS} for r in records])
    assert rows[0] == rows[1]
    assert rows[0][0]["after"] != rows[0][1]["after"] and rows[0][0]["agreement"]["examples"] == 400


def test_a_comparison_resumes_and_says_what_went_wrong(place: Path) -> None:
    one = bench("single", methods=["planted.py:Refuses", "planted.py:Broken", "magnitude"], seeds=[0, 1])
    said: list[str] = []
    rows, _ = run_bench(one, place / "out", engine="inline")
    again, _ = run_bench(one, place / "out", engine="inline", tell=said.append)
    assert said[1].startswith("6 of 8 cells (6 from before)")
    plain = [{**row, "memory": 0} for row in rows]
    assert [{**row, "memory": 0} for row in again] == plain
    bad = {row["method"]: row for row in failures(rows)}
    assert bad["planted.py:Refuses"]["why"] == "PlanError: not for this network"
    assert bad["planted.py:Broken"]["why"].startswith("failed: ZeroDivisionError")
    assert bad["planted.py:Broken"]["runs"] == 2
    found = comparison(rows)
    assert {row["method"] for row in found.means} == {"magnitude", "random"}
    with pytest.raises(InputError, match="no pruning went well"):
        comparison([row for row in rows if row["status"] != "ok"])


def test_everyone_gets_the_same_examples_and_what_is_held_out_is_divided(place: Path) -> None:
    one, many = (make_grid(bench(model, seeds=[4, 7]), inline=True) for model in ("single", "make"))
    parts = {(c.params["seed"], tuple(c.params["part_of_holdout"])) for c in one.cells}
    assert parts == {(4, (0, 2)), (7, (1, 2))}
    assert {tuple(c.params["part_of_holdout"]) for c in many.cells} == {(0, 1)}
    assert len({c.params["model_hash"] for c in many.cells}) == 2
    assert {c.params["model_seed"] for c in one.cells} == {None}
    shared = ("data_hash", "scope", "repair", "epochs", "lr", "examples_at_most")
    assert len({tuple(c.params[key] for key in shared) for c in one.cells}) == 1
    assert {c.params["method"] for c in one.cells} == {
        "planted.py:Truth",
        "planted.py:Twin",
        "magnitude",
        "random",
    }


def test_parts_are_disjoint_and_samples_are_of_their_seed() -> None:
    x = torch.arange(23.0)[:, None]
    batches = list(zip(x.split(5), torch.arange(23).split(5), strict=True))
    parts = [[int(y) for _, ys in part(batches, at, 4) for y in ys] for at in range(4)]
    assert sorted(y for one in parts for y in one) == list(range(23))
    assert part(batches, 0, 1) == batches
    drawn = [int(y) for xs, ys in sample(batches, 3) for y in ys]
    assert len(set(drawn)) == len(drawn) == 18
    assert drawn != [int(y) for xs, ys in sample(batches, 4) for y in ys]
    assert all(torch.equal(xs[:, 0].long(), ys) for xs, ys in sample(batches, 3))
    assert sum(len(ys) for _, ys in sample(batches, 3, count=7)) == 7
    words = [({"ids": torch.tensor([at])}, torch.tensor([at])) for at in range(5)]
    assert len(sample(words, 0)) == 4 and {b[1].item() for b in part(words, 1, 2)} == {1, 3}
    assert overlap(words[:3], words[2:]) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="cannot be divided among 6 seeds"):
        part(words, 0, 6)


def test_models_are_told_apart_by_each_weight(place: Path) -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    assert model_hash(a) == model_hash(b)
    with torch.no_grad():
        b.bias[2] += 1e-6
    assert model_hash(a) != model_hash(b)
    assert takes_seed("planted.py:make", None) and not takes_seed("planted.py:single", None)
    assert not takes_seed("planted.py:make", "w.safetensors")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"methods": ["magnitud"]}, "did you mean 'magnitude'"),
        ({"methods": ["magnitude:q=1"]}, "no option of magnitude"),
        ({"methods": []}, "methods are one or more"),
        ({"methods": ["taylor", "taylor"]}, "each once"),
        ({"ratios": [0.5, 1.5]}, "1.5"),
        ({"ratios": [0.0]}, "0"),
        ({"repairs": ["fol"]}, "did you mean 'fold'"),
        ({"kind": "unit"}, "did you mean 'units'"),
        ({"kind": "tolerance"}, "has no ratio"),
        ({"scope": "globl"}, "globl"),
        ({"seeds": [-1]}, "not negative"),
        ({"draws": 0}, "positive"),
    ],
)
def test_what_cannot_be_compared(more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench(**more)


@pytest.mark.parametrize(
    ("model", "data", "holdout", "words"),
    [
        ("planted.py:mke", "planted.py:fit", "planted.py:held", "did you mean 'make'"),
        ("planted.py:single", "planted.py:fit", None, "Name other batches with --holdout"),
        ("planted.py:single", "planted.py:held", "planted.py:held", "100% of the held-out examples"),
        ("planted.py:branching", "planted.py:fit", "planted.py:held", "CaptureError"),
        ("planted.py:single", "nowhere", None, "no data set"),
    ],
)
def test_models_and_data_that_cannot_be(model: str, data: str, holdout: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_grid(Bench(model, data, holdout, seeds=[0]), inline=True)


def test_a_model_or_data_that_are_not_what_they_were_are_told(place: Path) -> None:
    cell = make_grid(bench("single", seeds=[0]), inline=True).cells[0]
    kinds = ("model_hash", "data_hash", "method_hash")
    others = [Trial(cell.function, {**cell.params, key: "0" * 64}, cell.paths) for key in kinds]
    errors = [record.error for record in run_trials(others, place / "cells.jsonl", engine="inline")]
    assert "gives another model each time" in errors[0] and "gives other batches each time" in errors[1]
    assert "the code of planted.py:Truth changed since the run began" in errors[2]
    before = make_grid(bench("single", seeds=[0]), inline=True).cells[0].params["model_hash"]
    (place / "planted.py").write_text(PLANTED.replace("return make(0)", "return make(1)"))
    assert make_grid(bench("single", seeds=[0]), inline=True).cells[0].params["model_hash"] != before


def test_edited_code_runs_again_and_a_moved_folder_does_not(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = bench("single", methods=["planted.py:Truth", "magnitude"], seeds=[0])
    run_bench(one, place / "out", engine="inline")

    def again() -> str:
        said: list[str] = []
        rows, _ = run_bench(one, place / "out", engine="inline", tell=said.append)
        assert [row["method"] for row in rows] == ["planted.py:Truth", "magnitude", "random"]
        return said[1].partition(",")[0]

    assert again() == "3 of 3 cells (3 from before)"
    other = tmp_path_factory.mktemp("moved")
    for name in ("planted.py", "out"):
        (place / name).rename(other / name)
    (place / "planted.py").symlink_to(other / "planted.py")
    (place / "out").symlink_to(other / "out")
    assert again() == "3 of 3 cells (3 from before)"
    changed = PLANTED.replace(".abs().amax(0)", ".abs().sum(0)")
    (other / "planted.py").write_text(changed)
    assert again() == "2 of 3 cells (2 from before)"
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD)
    before = {cell.key for cell in make_grid(one, inline=True).cells}
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD.replace("2 *", "3 *"))
    after = {cell.key for cell in make_grid(one, inline=True).cells}
    assert not before & after


def test_lists_on_the_command_line() -> None:
    assert split_methods("all")[0] == "matroid"
    assert split_methods("m.py:A:x=1,y=2,random") == ["m.py:A:x=1,y=2", "random"]
    with pytest.raises(InputError, match="whole numbers"):
        seeds_of("0,1.5")
    with pytest.raises(InputError, match="ratios are numbers"):
        ratios_of("0.5;0.3")


def test_the_command_leaves_a_report_and_all_numbers(place: Path) -> None:
    arguments = [
        "bench",
        "planted.py:make",
        "--data",
        "planted.py:fit",
        "--holdout",
        "planted.py:held",
        "--methods",
        "planted.py:Truth,magnitude:p=2,over=both",
        "--ratios",
        "0.5,0.25",
        "--seeds",
        "0,1,2",
        "--repair",
        "none",
        "--engine",
        "inline",
        "--draws",
        "1",
        "--out",
        "out",
        "--no-latency",
    ]
    done = CliRunner().invoke(cli.app, [*arguments, "--limit", "0"])
    assert done.exit_code == 2 and "limit" in done.stderr
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "repair none, 0.25: planted.py:Truth" in done.stdout
    runs = json.loads((place / "out" / "runs.json").read_text())
    assert len(runs) == 2 * 3 * 3 and all(run["status"] == "ok" for run in runs)
    names = {"cells.jsonl", "runs.json", "runs.csv", "table.md", "report.html"}
    names |= {f"{t}.{e}" for t in ("standings", "curves", "means", "differences") for e in ("csv", "json")}
    assert {path.name for path in (place / "out").iterdir()} == names
    assert "Who wins where" in (place / "out" / "report.html").read_text()
    assert CliRunner().invoke(cli.app, ["report", "out"]).exit_code == 0
    assert [(p.repair, p.ratio) for p in places([{**r, "ratio": r["ratio"]} for r in runs])] == [
        ("none", 0.5),
        ("none", 0.25),
    ]


def test_the_command_refuses_engines_and_addresses_that_are_not_there(place: Path) -> None:
    common = [
        "bench",
        "planted.py:single",
        "--data",
        "planted.py:fit",
        "--holdout",
        "planted.py:held",
        "--methods",
        "magnitude",
        "--seeds",
        "0",
    ]
    done = CliRunner().invoke(cli.app, [*common, "--engine", "rey"])
    assert done.exit_code == 2 and "did you mean 'ray'" in done.stderr
    done = CliRunner().invoke(cli.app, [*common, "--address", "somewhere:1"])
    assert done.exit_code == 2 and "use engine 'ray'" in done.stderr


def test_one_seed_is_too_few(place: Path) -> None:
    rows, varies = run_bench(bench(seeds=[0]), place / "out", engine="inline")
    found = comparison(rows, varies)
    assert found.standings[0]["verdict"] == "too few seeds"
    assert found.means[0]["after, low"] is None
    assert write_comparison(found, place / "page", "One").exists()


def test_cells_carry_what_they_are() -> None:
    cell = make_grid(bench(seeds=[0]), inline=True).cells[0]
    assert {"model_hash", "data_hash", "method", "budget", "repair", "seed"} <= set(cell.params)


def test_a_structure_that_took_part_has_its_chapter(place: Path) -> None:
    one = bench(methods=["spectral", "magnitude"], seeds=[0, 1], ratios=[0.5, 0.25])
    rows, varies = run_bench(one, place / "out", engine="inline")
    drawn = [row for row in rows if row.get("structure")]
    assert [(row["method"], row["seed"], row["ratio"]) for row in drawn] == [("spectral", 0, 0.5)]
    assert drawn[0]["structure"]["structure"] == "spectral"
    page = write_comparison(comparison(rows, varies), place / "page", "One").read_text()
    assert "lambda" in page
