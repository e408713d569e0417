"""The MIP study: its jobs, its tables, and a verdict for every printed number."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from secateur.core import InputError
from secateur_studies.mip import STUDY, experiments, published
from secateur_studies.mip.comparison import compare_mean, explain_chance
from secateur_studies.mip.models import Setting, load_case, load_data, make_network, train_network
from secateur_studies.mip.published import Printed
from secateur_studies.mip.removal import (
    choose_random,
    choose_scored,
    choose_share,
    choose_top,
    count_maps,
    keep_above,
    share_of_weights,
    share_removed,
)
from secateur_studies.mip.study import PARTS, findings
from secateur_studies.mip.tables import list_differences
from secateur_studies.models import perceptron
from secateur_studies.runner import run_study

SMALL = Setting(train=300, epochs=1, test=200, draws=3, sets=2, width=1 / 16)
JSON = {key: value for key, value in vars(SMALL).items() if key != "cache"}


@pytest.mark.slow
def test_a_part_runs_and_is_not_run_twice(tmp_path):
    messages: list[str] = []
    options = {"parts": ["lambdas"], "nets": ["FC-3"], "setting": SMALL, "jobs": 1}
    result = run_study(STUDY, tmp_path, **options, log=messages.append)
    (figure,) = result.figures
    assert [row["lambda"] for row in figure.rows] == [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    pruned = [row["pruned"] for row in figure.rows]
    assert pruned[0] >= pruned[-1] and all(0 <= row["ours"] <= 100 for row in figure.rows)
    lines = map(json.loads, (tmp_path / "trials.jsonl").read_text().splitlines())
    assert len([line for line in lines if "function" in line]) == 1
    assert "Figure 3" in (tmp_path / "findings.md").read_text()
    messages.clear()
    assert run_study(STUDY, tmp_path, **options, log=messages.append).figures[0].rows == figure.rows
    assert "from before" in messages[0]


@pytest.mark.slow
@pytest.mark.parametrize("net", ["FC-3", "LeNet-5", "VGG-16"])
def test_table_2_compares_at_equal_counts(net):
    rows = experiments.pruning(net, "digits", 0, JSON, valid=net == "FC-3")
    assert [row["bounds"] for row in rows] == (["paper", "valid"] if net == "FC-3" else ["paper"])
    for row in rows:
        assert {"ours", "random", "critical", "L1", "mean activation", "dead only"} <= set(row)
    assert rows[0]["pruned"] >= rows[0]["pruned dead only"] - 1e-9
    assert {"ours + ft", "random scored + ft", "critical + ft", "dead only + ft"} <= set(rows[0])


def test_a_share_is_removed_from_every_layer():
    case = load_case("LeNet-5", "digits", SMALL, 0)
    keep = choose_share(0.25, case.graph, np.random.default_rng(0))
    assert [len(keep[g.name]) for g in case.graph.groups] == [4, 12, 90, 63]  # of 6, 16, 120, 84


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "names", "count"),
    [
        ("modes", ["digits"], 6),
        ("transfer", ["LeNet-5", "digits", "digits"], 1),
        ("transfer", ["VGG-16", "digits", "digits"], 1),
        ("rescale", ["digits"], 3),
        ("snip", ["digits", "digits"], 3),
        ("images", ["FC-3", "digits"], 2),
        ("epochs", ["FC-3", "digits"], 3),
    ],
)
def test_every_part_gives_its_rows(job, names, count):
    rows = getattr(experiments, job)(*names, 0, JSON)
    assert len(rows) == count
    shares = [row[key] for row in rows for key in ("pruned", "ref")]
    assert all(0 <= value <= 100 for value in shares)


def test_trained_networks_are_read_back_as_they_were(tmp_path):
    setting = Setting(**{**vars(SMALL), "cache": str(tmp_path)})
    first, again = (load_case("FC-3", "digits", setting, 0) for _ in range(2))
    assert len(list(tmp_path.glob("FC-3-digits-0-*.safetensors"))) == 1
    plain = load_case("FC-3", "digits", SMALL, 0)
    assert first.data.shape == (1, 32, 32)
    for a, b, c in zip(*(s.model.state_dict().values() for s in (first, again, plain)), strict=True):
        assert (a == b).all() and (a == c).all()


def test_removals_keep_the_counts_of_the_one_they_stand_beside():
    s = load_case("FC-3", "digits", SMALL, 0)
    scores = {f"{k}.weight": np.linspace(0, 1, n) for k, n in ((1, 300), (3, 100))}
    keep = keep_above(s.graph, scores, 0.5)
    assert {n: len(kept) for n, kept in keep.items()} == {"1": 150, "3": 50}
    assert share_removed(s.graph, keep) == pytest.approx(50)
    chance = choose_random(keep, s.graph, np.random.default_rng(0))
    best = choose_top({"1": -np.arange(300.0), "3": -np.arange(100.0)}, keep)
    assert all(len(other[n]) == len(keep[n]) == len(set(other[n])) for other in (chance, best) for n in keep)
    assert best["1"].tolist() == list(range(150))


def test_one_channel_at_three_times_the_rate_is_the_network_of_three_equal_channels():
    data = load_data("digits", "FC-3", Setting(train=256, epochs=1, test=100))
    model = make_network("FC-3", data, 0)
    trained = train_network(model, data, Setting(epochs=1), 0)
    coloured = load_data("digits", "LeNet-5", Setting(train=256, epochs=1, test=100))
    three = perceptron(coloured, 300, 100, seed=0)
    rule = torch.optim.RMSprop(three.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    x, y = coloured.parts["train"]
    for _ in range(3):  # passes over digits
        for at in torch.randperm(256, generator=generator).split(128):
            rule.zero_grad()
            torch.nn.functional.cross_entropy(three(x[at]), y[at]).backward()
            rule.step()
    tests = data.parts["test"][0], coloured.parts["test"][0]
    assert torch.allclose(trained(tests[0]), three(tests[1]), atol=1e-3)
    assert not torch.allclose(model(tests[0]), three(tests[1]), atol=1e-1)


def test_the_authors_random_pruning_takes_scored_units_and_shares_are_of_weights():
    case = load_case("FC-3", "digits", SMALL, 0)
    scores = {"1.weight": np.r_[np.zeros(100), np.ones(200)], "3.weight": np.zeros(100)}
    keep = {"1": np.arange(150, 300), "3": np.arange(50)}
    drawn = choose_scored(keep, case.graph, scores, np.random.default_rng(0))
    assert set(range(100)) <= set(drawn["1"]) and 150 <= len(drawn["1"]) < 240
    assert len(drawn["3"]) == 100  # no unit has a score
    weights = 3 * 1024 * 300, 300 * 100, 100 * 10
    assert share_of_weights(case, keep) == pytest.approx(50 * (weights[0] + weights[1]) / sum(weights))
    assert count_maps(case, keep) == (0, 0)
    lenet = load_case("LeNet-5", "digits", SMALL, 0)
    assert count_maps(lenet, {lenet.graph.groups[0].name: np.arange(4)}) == (2, 22)


def test_decoupled_training_is_read_from_the_cache(tmp_path, monkeypatch):
    setting = Setting(**{**vars(SMALL), "deep": 128, "cache": str(tmp_path)})
    first = load_case("VGG-16", "digits", setting, 0)
    monkeypatch.setattr("secateur_studies.mip.models.train_blocks", None)
    again = load_case("VGG-16", "digits", setting, 0)
    assert first.reference == again.reference
    for a, b in zip(first.parts, again.parts, strict=True):
        assert (a.x == b.x).all()


def _row(net: str, seed: int, **values: float) -> dict:
    names = ("ref", "ours", "random", "random scored", "critical", "L1", "mean activation", "dead only")
    same = {
        "part": "pruning",
        "net": net,
        "data": "fashion",
        "seed": seed,
        "bounds": "paper",
        "threshold": 0.1,
        "draws": 20,
    }
    rest = {"pruned": 40.0, "pruned weights": 40.0, "pruned dead only": 30.0, "dead weights": 30.0}
    rest |= {"live units removed": 9, "solver seconds": 1.0, "training examples": 51_000, "maps": 0}
    return same | rest | dict.fromkeys(names, 80.0) | values


def test_differences_are_paired_and_judged_beside_the_published_sign():
    drawn = [{"ours": 80 + k, "random scored": 75 + k, "critical": 75 + 2 * k - 1} for k in range(3)]
    rows = [_row("FC-3", k, **values) for k, values in enumerate(drawn)]
    by = {row["difference"]: row for row in list_differences(rows)}
    ours, critical = by["ours - authors' random"], by["authors' random - critical"]
    assert ours["mean"] == 5 and ours["outcome"] == "ahead"
    assert ours["verdict"] == "differs" and ours["published"] == pytest.approx(80.0 - 35.3)
    assert critical["outcome"] == "tie" and critical["verdict"] == "differs"
    assert by["ours - L1"]["verdict"] == by["ours - random"]["verdict"] == ""


def test_a_number_that_differs_has_what_was_measured_about_it():
    rows = [_row("FC-3", k, ref=90.0, ours=82.0 + k, maps=22, **{"maps removed": 1}) for k in range(3)]
    few = [{**row, "training examples": 3500} for row in rows]
    share, whole = Printed(40.0), Printed(98.0)

    def measured(rows, key, printed, share=share):
        return compare_mean(rows, key, printed, share, whole)["measured"]

    assert measured(few, "ref", whole) == "3,500 training examples, paper 48,000"
    assert measured(rows, "ref", whole) == "not explained"
    assert measured(rows, "ours", Printed(91.5)) == "the whole network is -8.0 points apart"
    assert "30.0 %; the program adds 10.0" in measured(rows, "pruned weights", Printed(60.0), Printed(60.0))
    assert measured(rows, "critical", Printed(30.0)).endswith("network's; 1.0 of 22 feature maps removed")
    everywhere = [{**row, "random everywhere": 70.0} for row in rows]
    assert "40 % of every layer: 70.0" in measured(everywhere, "critical", Printed(30.0))
    plain = [{**row, "maps": 0, "ref": 98.0} for row in rows]
    assert measured(plain, "critical", Printed(30.0)) == "not explained"
    assert "printed 45.0" in measured(plain, "critical", Printed(30.0), Printed(45.0))
    assert measured(rows, "ours", Printed(83.0)) == ""


def test_a_large_printed_spread_leaves_chance_and_a_small_one_does_not():
    lost = [_row("FC-3", k, lost=0.4 * k) for k in range(3)]
    wide, narrow = (
        compare_mean(lost, "lost", Printed(2.0, spread), None, None)["measured"] for spread in (2, 0.1)
    )
    assert wide == "printed ± 2.0, ours ± 0.4: p = 0.30" and narrow == "not explained"
    # one network against three: (83 - 33) / (24.3 sqrt(4 / 3)), two degrees of freedom
    assert explain_chance([83.0], Printed(33.0, 24.3)) == "printed ± 24.3, ours one network: p = 0.22"
    assert explain_chance([83.0], Printed(33.0)) == explain_chance([], Printed(33.0, 1.0)) == ""


def test_every_printed_number_has_a_verdict():
    rows = [_row("FC-3", k, ours=81.0, **{"ours + ft": 87.0}) for k in (0, 1)]
    result = findings(rows)
    table = {t.name: t.rows for t in result.tables}["table2-published"]
    with_ours = sum("ours" in numbers for numbers in published.PRUNING.values())
    assert len(table) == sum(len(numbers) for numbers in published.PRUNING.values()) + with_ours
    mine = {row["what"]: row for row in table if (row["net"], row["data"]) == ("FC-3", "fashion")}
    assert mine["OURS"]["verdict"] == mine["RP"]["verdict"] == ""  # 40 % removed, 68 % in print
    assert mine["pruned %"]["verdict"] == "differs"
    assert mine["points lost"]["ours"] == -1.0 and mine["points lost"]["published"] == 7.7
    assert mine["OURS + FT"]["ours"] == 87.0 and mine["OURS + FT"]["published"] == 88.1
    away = {row["verdict"] for row in table if row["data"] in ("mnist", "cifar10")}
    assert away == {"cannot be run here"}
    claims = {t.name: t.rows for t in result.tables}["claims"]
    assert [row["outcome"] for row in claims if row["difference"] == "ours - random"] == ["ahead"]


def test_the_grid_has_three_initialisations_and_vgg_at_both_sizes():
    data = {"fashion": "/data", "mnist": "/other"}
    quick, full = (STUDY.trials(full=full, seed=0, folders=data, cache=None) for full in (False, True))
    jobs = [trial.function.rpartition(":")[2] for trial in quick]
    assert set(jobs) == set(PARTS)
    table2 = [trial.params for trial in quick if trial.function.endswith("pruning")]
    assert {p["seed"] for p in table2 if p["net"] == "FC-3"} == {0, 1, 2}
    assert [p["net"] for p in table2].count("VGG-16") == 1
    assert [c.params["net"] for c in full if c.function.endswith("pruning")].count("VGG-16") >= 3
    assert len({trial.key for trial in quick}) == len(quick)
    sizes = {t.function.rpartition(":")[2]: t.params["setting"] for t in quick}
    assert sizes["pruning"]["epochs"] == 30 and sizes["pruning"]["train"] == 60_000
    assert sizes["snip"]["epochs"] == 15 and sizes["snip"]["device"] == "cpu"
    (moved, *_) = STUDY.trials(full=False, seed=0, folders=data, cache=None, device="cuda", seeds=1)
    assert moved.params["setting"]["device"] == "cuda"


def test_vgg_has_the_papers_shape():
    model = make_network("VGG-16", load_data("digits", "VGG-16", SMALL), 0)
    convolutions = [m.out_channels for m in model.modules() if type(m).__name__ == "Conv2d"]
    linear = [m.out_features for m in model.modules() if type(m).__name__ == "Linear"]
    assert len(convolutions) == 13 and linear == [512, 512, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ["prunning"]}, "pruning"),
        ({"nets": ["FC-5"]}, "FC-"),
        ({"folders": {"mnits": "x"}}, "mnist"),
    ],
)
def test_unknown_names_are_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        run_study(STUDY, tmp_path, **given)
