"""Portraits of pruned networks, compared with what they claim to show."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_runs import Reader, labelled, perceptron
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur.cli import main as cli
from secateur.core import InputError
from secateur.diagnostics import PORTRAITS, diagnose
from secateur.diagnostics.lattice import NODES
from secateur.diagnostics.matroid import segment
from secateur.diagnostics.mip import states
from secateur.diagnostics.spectral import alive
from secateur.methods.spectral.connectivity import layer_connectivity
from secateur.structures.order import density_profile
from secateur.structures.relu_mip import Chain

coordinate = st.floats(-3, 3).map(lambda v: round(v, 3))


def pruned(model: nn.Module, method: object, batches: list, budget: sc.Budget | None = None) -> sc.Result:
    result = sc.prune(model, batches[0][0][:2], method, budget or sc.Units(0.5), batches, batch_sizes=())
    return diagnose(result, model, batches, method)


# --- matroid


@given(coordinate, coordinate, coordinate)
def test_segment_is_the_part_inside_the_box(a: float, b: float, c: float) -> None:
    low, high = np.array([-1.0, -2.0]), np.array([1.5, 0.5])
    corners = [a * s + b * t + c for s in (low[0], high[0]) for t in (low[1], high[1])]
    found = segment(a, b, c, low, high)
    if min(corners) > 1e-6 or max(corners) < -1e-6 or not (a or b):
        assert found is None
    elif min(corners) < -1e-6 and max(corners) > 1e-6 and a * a + b * b > 1e-6:
        assert found is not None
        for end in found:
            assert a * end[0] + b * end[1] + c == pytest.approx(0, abs=1e-6)
            assert (end >= low - 1e-6).all() and (end <= high + 1e-6).all()
            assert min(abs(end - low).min(), abs(end - high).min()) < 1e-6


def flat_data(features: int) -> list:
    """Inputs on a plane, so that what is drawn of them is all of them."""
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(2, features, generator=generator, dtype=torch.float64)
    offset = torch.randn(features, generator=generator, dtype=torch.float64)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) @ plane + offset
    return [(x, (x[:, 0] > 0).long())]


@pytest.mark.parametrize("features", [2, 5])
def test_arrangement_divides_the_inputs_as_the_units_do(features: int) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(features, 9), nn.ReLU(), nn.Linear(9, 2)).double()
    batches = flat_data(features)
    layer = pruned(model, "matroid", batches).report.structure["layers"]["0"]
    drawn = layer["arrangement"]
    inputs = np.array([p[:2] for p in drawn["points"]])
    if features == 2:
        assert inputs == pytest.approx(batches[0][0].numpy(), rel=1e-4, abs=1e-4)
    assert [p[2] for p in drawn["points"]] == batches[0][1].tolist()
    before = model[0](batches[0][0]).detach().numpy()
    assert len(drawn["lines"]) == drawn["crossing"] > 3
    for line in drawn["lines"]:
        along = np.array([line["to x"] - line["x"], line["to y"] - line["y"]])
        side = (inputs[:, 0] - line["x"]) * along[1] - (inputs[:, 1] - line["y"]) * along[0]
        value = before[:, line["unit"]]
        clear = (abs(value) > 1e-3) & (abs(side) > 1e-3)
        agree = np.sign(side[clear]) * np.sign(value[clear])
        assert clear.sum() > 40 and abs(agree.sum()) == clear.sum()
        assert line["stays"] is (line["unit"] not in layer["removed"])


def test_windows_are_the_ranks_of_neighbours() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[8], model[0].bias[8]
    layer = pruned(model, "matroid", labelled(6)).report.structure["layers"]["0"]
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rank = int(np.linalg.matrix_rank(rows))
    ranks = [int(np.linalg.matrix_rank(rows[i : i + rank])) for i in range(12 - rank + 1)]
    assert (layer["rank"], layer["ranks"]) == (rank, ranks)
    deficient = [i for i, r in enumerate(ranks) if r < rank]
    counts = [sum(i <= unit < i + rank for i in deficient) for unit in range(12)]
    assert layer["windows"] == counts and layer["deficient"] == len(deficient) > 0
    assert layer["tail"] == [unit for unit, count in enumerate(counts) if count]


def test_a_portrait_of_windows_is_of_the_plans_own_tail() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[8], model[0].bias[8]
    for exact in (False, True):
        method = sc.methods.Matroid(ground="windows", exact=exact)
        result = pruned(model, method, labelled(6))
        structure, note = result.report.structure, result.plan.notes["0"]
        assert structure["curves"] == {} and len(structure["layers"]["0"]["tail"]) == note["tail"]
        assert set(structure["layers"]["0"]["removed"]) <= set(structure["layers"]["0"]["tail"])


def test_curves_fall_and_meet_the_plan() -> None:
    result = pruned(perceptron(), sc.methods.Matroid(swaps=0), labelled(6, batches=8))
    for name, curve in result.report.structure["curves"].items():
        residuals = curve["residuals"]
        assert residuals[0] == 1 and residuals[-1] == pytest.approx(0, abs=1e-9)
        assert all(b <= a + 1e-9 for a, b in pairwise(residuals))
        assert residuals[curve["kept"]] == pytest.approx(result.plan.notes[name]["residual"], rel=1e-3)


def test_a_dead_layer_and_a_single_example_are_drawn_as_far_as_they_go() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.zero_()
    structure = pruned(model, "matroid", [(torch.ones(1, 6), torch.zeros(1).long())]).report.structure
    layer = structure["layers"]["0"]
    assert (layer["rank"], layer["ranks"], layer["tail"], layer["arrangement"]) == (0, [], [], None)


def test_channels_have_no_rows_and_say_so() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    structure = pruned(model, "matroid", labelled(1, 6, 6)).report.structure
    assert structure["layers"] == {} and "single rows" in structure["skipped"]["0"]
    assert structure["curves"]["0"]["units"] == 6


# --- spectral


@pytest.mark.parametrize("budget", [sc.Units(0.5), sc.Weights(0.3)], ids=["units", "weights"])
@pytest.mark.parametrize("make", [perceptron, Reader], ids=["chain", "recurrent"])
def test_spectrum_is_that_of_the_masked_network(make: Callable[[], nn.Module], budget: sc.Budget) -> None:
    model = make()
    batches = labelled(6) if make is perceptron else labelled(5, 4)
    result = pruned(model, "spectral", batches, budget)
    structure, masked = result.report.structure, sc.mask(model, result.plan)
    after = layer_connectivity(result.graph, dict(masked.named_parameters()))
    for name, layer in structure["layers"].items():
        assert layer["after"]["edges"] == after[name].edges < layer["before"]["edges"]
        assert layer["after"]["lambda2"] == pytest.approx(after[name].lambda2, rel=1e-4)
        left = dict(masked.named_parameters())[name].detach().numpy() != 0
        assert (alive(result.plan, name) == left).all()
        histogram = structure["leverages"][name]
        assert (sum(histogram["stays"]), sum(histogram["goes"])) == (left.sum(), (~left).sum())


def test_leverages_add_up_to_the_nodes_of_a_tree() -> None:
    model = perceptron()
    histogram = pruned(model, "spectral", labelled(6)).report.structure["leverages"]["0.weight"]
    total = histogram["mean stays"] * sum(histogram["stays"]) + histogram["mean goes"] * sum(
        histogram["goes"]
    )
    assert total == pytest.approx(6 + 12 - 1, rel=1e-3)


# --- mip


@given(st.integers(0, 50))
def test_states_hold_on_the_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3, 5, 4, 2]
    weights = [rng.normal(size=(b, a)) for a, b in pairwise(sizes)]
    chain = Chain.dense(weights, [rng.normal(size=b) for b in sizes[1:]])
    x, epsilon = rng.normal(size=(3, 3)), 0.3
    told = states(chain, x, "paper", epsilon)
    near = x[:, None] + epsilon * rng.uniform(-1, 1, size=(3, 40, 3))
    h = near
    for number, (name, W) in enumerate(zip(told, weights, strict=False)):
        a = h @ W.T + chain.steps[2 * number].b
        never, always = (a <= 0).all(1).mean(), (a >= 0).all(1).mean()
        assert told[name]["off"] <= never + 1e-4 and told[name]["on"] <= always + 1e-4
        assert told[name]["off"] + told[name]["on"] + told[name]["open"] == pytest.approx(1, abs=1e-4)
        h = np.maximum(a, 0)


def test_scores_are_those_that_decided() -> None:
    result = pruned(perceptron(), sc.methods.MIP(images=6), labelled(6))
    structure = result.report.structure
    assert structure["images"] == 6 and set(structure["bounds"]) == {"0.weight", "2.weight"}
    assert "scores" not in structure["solver"] and structure["solver"]["status"] == "optimal"
    for name, layer in structure["layers"].items():
        scores, stays = np.array(layer["scores"]), np.array(layer["stays"])
        assert np.flatnonzero(stays).tolist() == result.plan.keep[name].tolist()
        assert scores[stays].min() >= scores[~stays].max() - 1e-5
        assert ((scores >= 0) & (scores <= 1)).all()


def test_a_plan_without_scores_is_told() -> None:
    model, batches = perceptron(), labelled(6)
    result = sc.prune(model, batches[0][0][:2], "magnitude", sc.Units(0.5), batches, batch_sizes=())
    with pytest.raises(InputError, match="no importance scores"):
        diagnose(result, model, batches, "mip")


# --- lattice


def reachable(count: int, covers: list[list[int]]) -> np.ndarray:
    closure = np.eye(count, dtype=bool)
    for a, b in covers:
        closure[a, b] = True
    for k in range(count):
        closure |= closure[:, [k]] & closure[[k], :]
    return closure


@pytest.mark.parametrize("options", [{}, {"adjacency": "weights", "density": 0.1}], ids=["data", "weights"])
@pytest.mark.parametrize("make", [perceptron, Reader], ids=["chain", "recurrent"])
def test_hasse_diagram_is_the_order(make: Callable[[], nn.Module], options: dict) -> None:
    model = make()
    batches = labelled(6) if make is perceptron else labelled(5, 4)
    method = sc.methods.Lattice(**options)
    result = pruned(model, method, batches)
    statistics = sc.collect_statistics(model, result.graph, batches, method.needs(sc.Units(0.5)), 0)
    for name, order in method.orders(result.graph, statistics).items():
        told = result.report.structure["orders"][name]
        units = sorted(unit for node in told["nodes"] for unit in node["units"])
        assert units == list(range(told["units"])) and told["elements"] == len(told["nodes"])
        elements = [node["element"] for node in told["nodes"]]
        relation = order.poset.relation()[np.ix_(elements, elements)]
        assert (reachable(len(elements), told["covers"]) == relation).all()
        for node in told["nodes"]:
            assert node["irreducible"] is bool(order.irreducible[node["units"]].any())
            assert node["stays"] is bool(set(node["units"]) & set(result.plan.keep[name].tolist()))


def test_profile_is_of_the_recurrent_weights() -> None:
    model = Reader()
    told = pruned(model, "lattice", labelled(5, 4)).report.structure["orders"]
    W = model.rnn.weight_hh_l0.detach().double().reshape(4, 10, 10)
    strength = W.square().sum(0).sqrt().T.numpy()
    (order,) = told.values()
    densities = [row["density"] for row in order["profile"]]
    expected = [p.as_dict() for p in density_profile(strength, densities)]
    assert order["profile"] == expected and len(expected) >= 4


def test_a_drawn_adjacency_has_no_diagram() -> None:
    structure = pruned(Reader(), sc.methods.Lattice(adjacency="binary"), labelled(5, 4)).report.structure
    (order,), (reason,) = structure["orders"].values(), structure["skipped"].values()
    assert order["nodes"] == [] and "no order" in reason


def test_large_orders_are_drawn_in_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, NODES + 50), nn.ReLU(), nn.Linear(NODES + 50, 3))
    batches = labelled(4, batches=8)
    (order,) = pruned(model, "lattice", batches).report.structure["orders"].values()
    assert order["elements"] > NODES == len(order["nodes"])
    assert all(0 <= a < NODES and 0 <= b < NODES for a, b in order["covers"])


# --- all


@pytest.mark.parametrize("method", list(PORTRAITS))
def test_a_portrait_changes_nothing_else_and_survives_json(method: str) -> None:
    model, batches = perceptron(), labelled(6)
    result = sc.prune(model, batches[0][0][:2], method, sc.Units(0.5), batches, batch_sizes=())
    found = diagnose(result, model, batches)
    assert found.model is result.model and found.plan is result.plan
    assert found.report.structure["structure"] == method and result.report.structure == {}
    assert sc.Report.from_json(found.report.to_json()).structure == found.report.structure


def test_a_portrait_of_a_folded_network_looks_at_what_the_method_saw() -> None:
    model, batches = Reader(), labelled(5, 4, batches=10)
    result = sc.prune(
        model, batches[0][0][:2], "lattice", sc.Units(0.5), batches, repair="fold", batch_sizes=()
    )
    (order,) = diagnose(result, model, batches).report.structure["orders"].values()
    (note,) = result.plan.notes["order"].values()
    assert order["irreducible"] == note["irreducible"]


def test_what_cannot_be_portrayed() -> None:
    model, batches = perceptron(), labelled(6)
    result = sc.prune(model, batches[0][0][:2], "magnitude", sc.Units(0.5), batches, batch_sizes=())
    with pytest.raises(InputError, match="follows no structure"):
        diagnose(result, model, batches)
    with pytest.raises(InputError, match="pass data="):
        diagnose(result, model, None, "lattice")


# --- on the command line


def prune_to(folder: Path, method: str) -> str:
    spoken = [
        "prune",
        "secateur.zoo:lenet5",
        "--method",
        method,
        "--budget",
        "units=0.5",
        "--out",
        str(folder),
    ]
    done = CliRunner().invoke(cli.app, spoken)
    assert done.exit_code == 0, done.output
    return done.output + done.stderr


@pytest.mark.parametrize(("method", "drawn"), [("spectral", True), ("magnitude", False)])
def test_saved_results_hold_the_portrait(method: str, drawn: bool, tmp_path: Path) -> None:
    prune_to(tmp_path, method)
    assert (sc.load_report(tmp_path).structure != {}) is drawn
    assert ("Spectrum: how each layer hangs together" in (tmp_path / "report.html").read_text()) is drawn
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(tmp_path / "all.html")])
    assert done.exit_code == 0, done.output
    assert ("Spectrum: how each layer hangs together" in (tmp_path / "all.html").read_text()) is drawn


def test_a_portrait_that_fails_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InputError("no picture today")

    monkeypatch.setattr(cli, "portray", fail)
    assert "no picture today" in prune_to(tmp_path, "spectral")
    assert sc.load_report(tmp_path).structure == {}
