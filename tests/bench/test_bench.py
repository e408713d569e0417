"""The comparison of methods: a planted winner, twins, fairness, resumption, invalid input, the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from secateur.bench.benchmark import Bench, make_trials, parse_methods, parse_numbers, run_bench
from secateur.bench.compare import compare_methods, failures, settings
from secateur.bench.models import hash_model, hash_source, part, sample, share_known, takes_seed
from secateur.bench.output import write_comparison
from secateur.bench.run import run_trials
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
    assert len(sample(words, 0)) == 4 and len(part(words, 0, 2)) == 3 and len(part(words, 1, 2)) == 2
    ragged = [{"ids": torch.full((1, 1 + at), at)} for at in range(5)]  # whole batches, where rows differ
    assert len(sample(ragged, 0)) == 4 and [b["ids"][0, 0].item() for b in part(ragged, 1, 2)] == [1, 3]
    assert share_known(words[:3], words[2:]) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="cannot be divided among 6 seeds"):
        part(words, 0, 6)


def test_each_weight_and_buffer_and_the_code_tell_models_apart(place: Path) -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    assert hash_model(a) == hash_model(b)
    with torch.no_grad():
        b.bias[2] += 1e-6
    assert hash_model(a) != hash_model(b)
    for module, other in ((a, b), (b, a)):
        module.register_buffer("scale", torch.tensor(float(module is a)), persistent=False)
        other.load_state_dict(a.state_dict())
    assert hash_model(a) != hash_model(b)
    assert takes_seed("planted.py:make", None) and not takes_seed("planted.py:single", None)
    assert not takes_seed("planted.py:make", "w.safetensors")


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


@pytest.mark.parametrize("what", ["model", "data", "method"])
def test_a_model_data_or_method_that_changes_under_way_gives_no_result(place: Path, what: str) -> None:
    trial = make_trials(bench("single", seeds=[0]), inline=True)[0]
    other = {**trial.params, "hashes": {**trial.params["hashes"], what: "0" * 64}}
    (result,) = run_trials([Trial(trial.function, other, trial.paths)], place / "t.jsonl", engine="inline")
    assert result.status == "error" and f"is not the same {what} as when" in result.error


def test_edited_code_runs_again_and_a_moved_folder_does_not(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = bench("single", methods=["planted.py:Truth", "magnitude"], seeds=[0])
    run_bench(one, place / "out", engine="inline")

    def again() -> str:
        lines: list[str] = []
        rows, _ = run_bench(one, place / "out", engine="inline", log=lines.append)
        assert [row["method"] for row in rows] == ["planted.py:Truth", "magnitude", "random"]
        return lines[1].partition(",")[0]

    assert again() == "3 of 3 trials (3 from before)"
    other = tmp_path_factory.mktemp("moved")
    for name in ("planted.py", "out"):
        (place / name).rename(other / name)
    (place / "planted.py").symlink_to(other / "planted.py")
    (place / "out").symlink_to(other / "out")
    assert again() == "3 of 3 trials (3 from before)"
    changed = PLANTED.replace(".abs().amax(0)", ".abs().sum(0)")
    (other / "planted.py").write_text(changed)
    assert again() == "2 of 3 trials (2 from before)"
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD)
    before = {trial.key for trial in make_trials(one, inline=True)}
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD.replace("2 *", "3 *"))
    after = {trial.key for trial in make_trials(one, inline=True)}
    assert not before & after


def test_lists_on_the_command_line() -> None:
    assert parse_methods("all")[0] == "matroid"
    assert parse_methods("m.py:A:x=1,y=2,random") == ["m.py:A:x=1,y=2", "random"]
    with pytest.raises(InputError, match="whole numbers"):
        parse_numbers("0,1.5", int, "seeds")
    with pytest.raises(InputError, match="ratios are numbers"):
        parse_numbers("0.5;0.3", float, "ratios")


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
    names = {"trials.jsonl", "runs.json", "runs.csv", "table.md", "report.html"}
    names |= {f"{t}.{e}" for t in ("rankings", "curves", "means", "differences") for e in ("csv", "json")}
    assert {path.name for path in (place / "out").iterdir()} == names
    assert "Who wins where" in (place / "out" / "report.html").read_text()
    assert CliRunner().invoke(cli.app, ["report", "out"]).exit_code == 0
    assert [(s.repair, s.ratio) for s in settings(runs)] == [("none", 0.5), ("none", 0.25)]


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


def test_an_edited_factory_has_another_hash(place: Path) -> None:
    maker = "from secateur.methods import Magnitude\ndef mk():\n    return Magnitude(p=2)\n"
    (place / "maker.py").write_text(maker)
    before = hash_source("maker.py:mk")
    assert before not in (None, hash_source("secateur.methods:Magnitude"))
    (place / "maker.py").write_text(maker.replace("p=2", "p=1"))
    assert hash_source("maker.py:mk") != before
    assert hash_source("magnitude:p=2") is None


def test_folders_named_like_a_method_or_data_change_nothing(place: Path) -> None:
    one = bench("single", methods=["magnitude:p=1", "planted.py:Truth"], seeds=[0])
    before = [trial.key for trial in make_trials(one, inline=True)]
    for name in ("random", "magnitude", "digits", "p=1", "magnitude:p=1", "saved"):
        (place / name).mkdir()
    trials = make_trials(one, inline=True)
    assert [trial.key for trial in trials] == before
    methods = ["magnitude:p=1", f"{place}/planted.py:Truth", "random"]
    assert [trial.paths["files"]["method"] for trial in trials] == methods
    files = Bench("saved", "mnist:files").files
    assert (files["data"], files["model"]) == (f"mnist:{place}/files", f"{place}/saved")
    assert Bench("secateur.zoo:lenet5", "digits:").files["data"] == "digits:"


def test_a_model_that_hangs_is_stopped_at_the_start(place: Path) -> None:
    (place / "hangs.py").write_text("import time\ndef make():\n    time.sleep(600)\n")
    one = Bench("hangs.py:make", "planted.py:fit", "planted.py:held", seeds=[0])
    with pytest.raises(InputError, match=r"hangs\.py:make.* longer than 0.5 s.*raise the limit"):
        make_trials(one, limit=0.5)


def test_code_that_ends_the_program_is_a_failure(place: Path) -> None:
    (place / "leaves.py").write_text("import sys\ndef make(seed=0):\n    sys.exit(0)\n")
    (place / "gone.py").write_text("raise SystemExit(3)")
    for name in ("leaves.py:make", "gone.py:make"):
        with pytest.raises(InputError, match=r"(leaves|gone)\.py.* failed: SystemExit: [03] \("):
            make_trials(Bench(name, "planted.py:fit", "planted.py:held", seeds=[0]), inline=True)


LABELS = """
import planted


def fit():
    return [x for x, _ in planted.fit()]


def held():
    return [{"input": x} for x, _ in planted.held()]


def weights_left(model, batches):
    return float(sum(p.abs().sum() for p in model.parameters())) if len(batches) else 0.0
"""


@pytest.mark.parametrize(
    "metric", ["agreement", pytest.param("unlabelled.py:weights_left", marks=pytest.mark.slow)]
)
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
