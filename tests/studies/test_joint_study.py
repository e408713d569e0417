"""The joint study: blocks, ties and comparisons from rows; its job; a run."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core import InputError
from secateur.methods import METHODS
from secateur_studies.joint import STUDY
from secateur_studies.joint.blocks import make_blocks, mean_differences
from secateur_studies.joint.cost import measure_cost
from secateur_studies.joint.experiments import REPAIRS, network
from secateur_studies.joint.models import NETWORKS, SIZES, Size, load_data, load_trained, make_network
from secateur_studies.joint.study import findings
from secateur_studies.joint.tables import compare_structures, list_standings
from secateur_studies.runner import run_study

SEEDS = range(5)
PLACES = [("fashion", "MLP"), ("fashion", "LSTM"), ("digits", "MLP"), ("digits", "LSTM")]


def rows(quality: dict[str, float], noise: float = 0.002) -> list[dict]:
    """Rows of an imagined study in which every method loses what `quality` says, but for noise."""
    generator = np.random.default_rng(0)
    result: list[dict] = []
    for data, name in PLACES:
        for seed in SEEDS:
            common = {"data": data, "network": name, "seed": seed}
            dense = 0.9 + 0.01 * seed
            sizes = {"examples": 10_000, "parameters": 100, "units": 10}
            result.append({**common, "part": "dense", "accuracy": dense, **sizes})
            for method, lost in quality.items():
                cell = {**common, "method": method}
                result.append({**cell, "part": "cost", "seconds": 0.1, "memory": 1.0})
                for keep in (0.5, 0.2):
                    for repair in REPAIRS:
                        reached = dense - lost / 100 + noise * generator.normal()
                        result.append(
                            {
                                **cell,
                                "part": "pruned",
                                "keep": keep,
                                "repair": repair,
                                "draw": 0,
                                "accuracy": reached,
                                "parameters": keep,
                            }
                        )
    return result


def test_a_planted_winner_wins_everywhere_and_is_named():
    result = findings(rows({"spectral": 1.0, "magnitude": 9.0, "random": 20.0}))
    tables = {table.name: table.rows for table in result.tables}
    assert {row["best"] for row in tables["winners-fold"]} == {"spectral"}
    assert {row["tied with it"] for row in tables["winners-fold"]} == {"none"}
    for row in tables["leaders"]:
        assert (row["first"], row["second"], row["outcome"]) == ("spectral", "magnitude", "ahead")
        assert (row["beats random"], row["blocks"], row["networks"]) == (8, 8, 2)
        assert row["ahead by"] == pytest.approx(8, abs=0.5)
    assert {row["verdict"] for row in tables["structures"]} == {"ahead"}
    first = next(row for row in tables["standings"] if row["repair"] == "fold")
    assert (first["method"], first["best"], first["tied"], first["blocks"]) == ("spectral", 8, 0, 8)
    assert first["behind"] == 0


def test_a_structure_that_loses_is_said_to_lose():
    tables = {
        t.name: t.rows for t in findings(rows({"matroid": 9.0, "magnitude": 1.0, "random": 20.0})).tables
    }
    assert {row["first"] for row in tables["leaders"]} == {"magnitude"}
    verdicts = {(row["baseline"], row["verdict"]) for row in tables["structures"]}
    assert verdicts == {("magnitude", "behind"), ("random", "ahead")}


def test_twins_tie():
    twins = rows({"matroid": 3.0, "magnitude": 3.0})
    for verdict in (row["verdict"] for row in compare_structures(make_blocks(twins))):
        assert verdict == "tie"
    result = make_blocks(twins)
    assert sum(len(block.tied) == 1 for block in result) >= 0.85 * len(result)  # at a level of 5 %


@settings(max_examples=25)
@given(st.lists(st.floats(0, 50), min_size=3, max_size=3), st.integers(0, 2**31))
def test_standings_are_consistent(quality, seed):
    made = rows(dict(zip(("matroid", "taylor", "random"), quality, strict=True)))
    generator = np.random.default_rng(seed)
    for row in made:
        if row["part"] == "pruned":
            row["accuracy"] += 0.01 * generator.normal()
    result = make_blocks(made)
    for repair in REPAIRS:
        mine = [row for row in list_standings(result) if row["repair"] == repair]
        assert sum(row["best"] for row in mine) == len(PLACES) * 2
        assert all(row["behind"] >= 0 and 1 <= row["mean rank"] <= 3 for row in mine)
        assert all(row["best"] + row["tied"] <= row["blocks"] for row in mine)
    there, back = mean_differences(result, "matroid", "taylor"), mean_differences(result, "taylor", "matroid")
    np.testing.assert_allclose(there, [-x for x in back])
    assert len(there) == len({network for _, network in PLACES})


def test_methods_that_lack_a_seed_and_blocks_that_lack_a_method():
    made = rows({"matroid": 1.0, "mip": 2.0, "random": 3.0})
    made = [r for r in made if not (r.get("method") == "mip" and r["network"] == "LSTM")]
    made = [r for r in made if not (r.get("method") == "mip" and r["data"] == "digits" and r["seed"] == 2)]
    refusal = {"data": "fashion", "network": "LSTM", "seed": 0, "method": "mip", "why": "no"}
    made.append({"part": "refused", **refusal})
    result = {(b.data, b.network): set(b.lost) for b in make_blocks(made)}
    assert result["fashion", "MLP"] == {"matroid", "mip", "random"}
    assert result["digits", "MLP"] == result["fashion", "LSTM"] == {"matroid", "random"}
    standing = {
        row["method"]: row["blocks"] for row in list_standings(make_blocks(made)) if row["repair"] == "none"
    }
    assert standing == {"matroid": 8, "mip": 2, "random": 8}
    tables = {table.name: table.rows for table in findings(made).tables}
    assert [(r["method"], r["network"], r["why"]) for r in tables["refused"]] == [("mip", "LSTM", "no")]


@pytest.mark.parametrize("data", ["digits"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_its_data(data, name):
    there = load_data(data, name)
    x, _ = there.parts["test"]
    with torch.no_grad():
        assert make_network(name, there, 0).eval()(x[:3]).shape == (3, there.classes)
    assert (data, name) in SIZES
    with pytest.raises(InputError, match="MLP"):
        make_network("MPL", there, 0)


def test_images_can_be_halved():
    whole, half = load_data("digits", "VGG"), load_data("digits", "VGG", halved=True)
    assert half.shape == (1, 4, 4)
    expected = whole.parts["test"][0][:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(half.parts["test"][0][:, :, 0, 0], expected)


def test_weights_are_trained_once(tmp_path, monkeypatch):
    data, size = load_data("digits", "MLP"), Size(1, 100)
    first = load_trained("MLP", data, 0, size, str(tmp_path))
    monkeypatch.setattr("secateur_studies.joint.models.zoo.train", None)
    again = load_trained("MLP", data, 0, size, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_cell_has_all_that_is_defined_and_says_what_is_not():
    size = asdict(SIZES["digits", "LSTM"].tiny(200))
    methods = ["magnitude", "mip", "random"]
    result = network("digits", None, "LSTM", 1, size, methods, [0.5, 0.25], 2, None)
    pruned = [(r["method"], r["keep"], r["draw"], r["repair"]) for r in result if r["part"] == "pruned"]
    assert len(pruned) == len(set(pruned)) == 2 * 3 * (1 + 2)
    refused = [row for row in result if row["part"] == "refused"]
    assert [row["method"] for row in refused] == ["mip"]
    assert "lstm" in refused[0]["why"]
    assert ".py" not in refused[0]["why"]
    costs = {row["method"]: row for row in result if row["part"] == "cost"}
    assert set(costs) == {"magnitude", "random"}
    assert network("digits", None, "LSTM", 1, size, ["magnitude"], [0.5], 1, None)[2:] == [
        row for row in result if row.get("method") == "magnitude" and row.get("keep") == 0.5
    ]


def test_costs_are_those_of_the_work():
    with measure_cost() as nothing:
        pass
    with measure_cost() as much:
        block = np.ones(2**24)
        total = sum(float(block.sum()) for _ in range(3))
    assert total == 3 * 2**24
    assert much.seconds > nothing.seconds
    if much.memory is not None and nothing.memory is not None:
        assert 100 < much.memory < 300
        assert nothing.memory < 20


def test_a_run_writes_and_refuses(tmp_path):
    options = {"datasets": ("digits",), "networks": ("MLP",), "methods": ("magnitude", "random")}
    options |= {"keeps": (0.5,), "seeds": 2, "limit": 100, "jobs": 1}
    result = run_study(STUDY, tmp_path, **options)
    assert result.paragraph in (tmp_path / "findings.md").read_text()
    assert len(list((tmp_path / "weights").iterdir())) == 2
    for wrong in ({"networks": ("MPL",)}, {"methods": ("magnitud",)}, {"datasets": ("digit",)}):
        with pytest.raises(InputError, match=r"did you mean|known"):
            run_study(STUDY, tmp_path, **(options | wrong))


@pytest.mark.slow
def test_full_size_in_small(tmp_path):
    result = run_study(
        STUDY, tmp_path, full=True, datasets=("digits",), networks=("MLP", "LSTM"), seeds=2, limit=100
    )
    tables = {table.name: table.rows for table in result.tables}
    assert {row["units kept"] for row in tables["winners-fold"]} == {"80%", "60%", "40%", "20%", "10%", "5%"}
    assert {row["method"] for row in tables["standings"]} == set(METHODS)
