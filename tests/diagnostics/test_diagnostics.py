"""Diagnostics of pruned networks, compared with what they claim to show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_runs import Reader, diagnosed_runs, labelled, perceptron
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur.cli import main as cli
from secateur.core import InputError
from secateur.diagnostics import DIAGNOSTICS, diagnose
from secateur.diagnostics.figures import not_drawn
from secateur.diagnostics.lattice import MOST_NODES, layered_positions
from secateur.diagnostics.matroid import clip_line
from secateur.diagnostics.mip import relu_states
from secateur.diagnostics.spectral import kept_entries
from secateur.methods.spectral.connectivity import layer_connectivity
from secateur.report import Report
from secateur.result import load_report
from secateur.statistics.collect import collect_statistics
from secateur.structures.order import density_profile
from secateur.structures.relu_mip import Chain

Sections = dict[str, dict[str, Any]]
coordinate = st.floats(-3, 3).map(lambda v: round(v, 3))


def diagnosed(
    model: nn.Module, method: object, batches: list, budget: sc.Budget | None = None
) -> tuple[sc.Result, Sections]:
    """Prune, and return the result with its sections by title."""
    result = sc.prune(model, batches[0][0][:2], budget or sc.Units(0.5), batches, method=method, repair=None)
    sections = diagnose(result, model, batches, method).report.structure["sections"]
    return result, {part["title"]: part for part in sections}


def traces(section: dict[str, Any], name: str = "") -> list[dict[str, Any]]:
    """Return the traces of a figure whose name starts so."""
    return [trace for trace in section["figure"]["data"] if trace["name"].startswith(name)]


def column(section: dict[str, Any], name: str) -> list[Any]:
    return [row[name] for row in section["rows"]]


# --- matroid


@given(coordinate, coordinate, coordinate)
def test_clipped_line_is_the_part_inside_the_box(a: float, b: float, c: float) -> None:
    low, high = np.array([-1.0, -2.0]), np.array([1.5, 0.5])
    corners = [a * s + b * t + c for s in (low[0], high[0]) for t in (low[1], high[1])]
    ends = clip_line(a, b, c, low, high)
    if min(corners) > 1e-6 or max(corners) < -1e-6 or not (a or b):
        assert ends is None
    elif min(corners) < -1e-6 and max(corners) > 1e-6 and a * a + b * b > 1e-6:
        assert ends is not None
        for end in ends:
            assert a * end[0] + b * end[1] + c == pytest.approx(0, abs=1e-6)
            assert (end >= low - 1e-6).all() and (end <= high + 1e-6).all()
            assert min(abs(end - low).min(), abs(end - high).min()) < 1e-6


def flat_data(features: int) -> list:
    """Inputs on a plane, so that the figure shows all of them."""
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(2, features, generator=generator, dtype=torch.float64)
    offset = torch.randn(features, generator=generator, dtype=torch.float64)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) @ plane + offset
    return [(x, (x[:, 0] > 0).long())]


@pytest.mark.parametrize("features", [2, 5])
def test_arrangement_divides_the_inputs_as_the_units_do(features: int) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(features, 9), nn.ReLU(), nn.Linear(9, 2)).double()
    ((x, y),) = batches = flat_data(features)
    result, sections = diagnosed(model, "matroid", batches)
    section = sections["Hyperplane arrangement of group 0"]
    inputs = np.empty((60, 2))
    for label in (0, 1):
        (trace,) = traces(section, f"class {label}")
        inputs[y == label] = np.column_stack([trace["x"], trace["y"]])
    if features == 2:
        assert inputs == pytest.approx(x.numpy(), rel=1e-4, abs=1e-4)
    before = model[0](x).detach().numpy()
    assert len(section["rows"]) > 3
    for line in section["rows"]:
        along = np.array([line["to x"] - line["x"], line["to y"] - line["y"]])
        side = (inputs[:, 0] - line["x"]) * along[1] - (inputs[:, 1] - line["y"]) * along[0]
        value = before[:, line["unit"]]
        clear = (abs(value) > 1e-3) & (abs(side) > 1e-3)
        agree = np.sign(side[clear]) * np.sign(value[clear])
        assert clear.sum() > 40 and abs(agree.sum()) == clear.sum()
        assert line["kept"] is (line["unit"] not in result.plan.removed("0"))


WINDOWS = "Windows of rows of group 0, and their tail"


def with_equal_rows() -> nn.Module:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[8], model[0].bias[8]
    return model


def test_windows_are_the_ranks_of_neighbours() -> None:
    model = with_equal_rows()
    section = diagnosed(model, "matroid", labelled(6))[1][WINDOWS]
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rank = int(np.linalg.matrix_rank(rows))
    ranks = [int(np.linalg.matrix_rank(rows[i : i + rank])) for i in range(12 - rank + 1)]
    assert f"have rank {rank}:" in section["text"] and traces(section)[0]["y"] == ranks
    deficient = [i for i, r in enumerate(ranks) if r < rank]
    counts = [sum(i <= unit < i + rank for i in deficient) for unit in range(12)]
    assert column(section, "deficient windows") == counts
    assert f" {len(deficient)} of them deficient" in section["text"] and deficient
    assert column(section, "part") == ["tail" if count else "essential" for count in counts]


def test_facts_on_the_rows_are_those_of_the_structures() -> None:
    model = with_equal_rows()
    section = diagnosed(model, "matroid", labelled(6))[1]["Matroid of the rows of group 0"]
    facts = {row["fact"]: row["value"] for row in section["rows"]}
    assert (facts["rank"], facts["uniform"]) == ("7", "no")
    assert facts["dimension of its positroid cell"].endswith("of 35")
    assert sum(map(int, facts["maximal minors of [W | b], + / 0 / -"].split(" / "))) == 792
    assert facts["W is totally positive"] == "no"
    # Nine different hyperplanes in general position: the sum of C(9, i) over i = 0 .. 6.
    assert facts["regions of the arrangement"] == "466"


def test_a_page_says_that_exact_facts_on_larger_rows_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(6, 80), nn.ReLU(), nn.Linear(80, 3))
    sections = diagnosed(model.eval(), "matroid", labelled(6))[1]
    assert "Matroid of the rows of group 0" not in sections
    assert "[W | b] of 0: more than 512 entries, which take minutes" in sections["Not drawn"]["text"]


def test_diagnostics_of_windows_show_the_tail_of_the_plan() -> None:
    for exact in (False, True):
        method = sc.methods.Matroid(ground="windows", exact=exact)
        result, sections = diagnosed(with_equal_rows(), method, labelled(6))
        assert not any("unexplained" in title for title in sections)
        rows = sections[WINDOWS]["rows"]
        assert sum(row["part"] == "tail" for row in rows) == result.plan.notes["0"]["tail"]
        assert all(row["part"] == "tail" for row in rows if not row["kept"])


def test_curves_fall_and_meet_the_plan() -> None:
    result, sections = diagnosed(perceptron(), sc.methods.Matroid(swaps=0), labelled(6, batches=8))
    rows = sections["What the kept units leave unexplained"]["rows"]
    for name in ("0", "2"):
        curve = [row for row in rows if row["group"] == name]
        residuals = [row["unexplained"] for row in curve]
        assert residuals[0] == 1 and residuals[-1] == pytest.approx(0, abs=1e-9)
        assert all(b <= a + 1e-9 for a, b in pairwise(residuals))
        (plan,) = [row for row in curve if row["by the plan"] is not None]
        assert plan["unexplained"] == pytest.approx(result.plan.notes[name]["residual"], rel=1e-3)


def test_a_dead_layer_and_a_single_example_are_drawn_as_far_as_possible() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.zero_()
    _, sections = diagnosed(model, "matroid", [(torch.ones(1, 6), torch.zeros(1).long())])
    assert "Hyperplane arrangement of group 0" not in sections
    assert "have rank 0: 0 windows" in sections[WINDOWS]["text"]
    assert set(column(sections[WINDOWS], "part")) == {"essential"}


def test_kernels_of_channels_are_rows() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    _, sections = diagnosed(model, "matroid", labelled(1, 6, 6))
    windows = "Windows of rows of group 0, and their tail"
    rows = "Matroid of the rows of group 0"
    assert set(sections) == {"What the kept units leave unexplained", windows, rows}


def test_reasons_are_listed_once() -> None:
    (section,) = not_drawn({"conv": "no single rows", "rnn": "no single rows"}, "Rows [W | b] of ")
    assert section["text"] == "Rows [W | b] of conv, rnn: no single rows." and not_drawn({}) == []


# --- spectral


@pytest.mark.parametrize("budget", [sc.Units(0.5), sc.Weights(0.3)], ids=["units", "weights"])
@pytest.mark.parametrize("make", [perceptron, Reader], ids=["chain", "recurrent"])
def test_spectrum_is_that_of_the_masked_network(make: Callable[[], nn.Module], budget: sc.Budget) -> None:
    model = make()
    batches = labelled(6) if make is perceptron else labelled(5, 4)
    result, sections = diagnosed(model, "spectral", batches, budget)
    masked = dict(sc.mask(model, result.plan).named_parameters())
    after = layer_connectivity(result.graph, masked)
    for row in sections["lambda_2 of each layer"]["rows"]:
        name = row["layer"]
        assert row["edges after"] == after[name].edges < row["edges before"]
        assert row["lambda_2 after"] == pytest.approx(after[name].lambda2, rel=1e-4)
        left = masked[name].detach().numpy() != 0
        assert (kept_entries(result.plan, name) == left).all()
        histogram = sections[f"Leverage of the weights of {name}"]
        counts = [sum(column(histogram, key)) for key in ("kept", "removed")]
        assert counts == [left.sum(), (~left).sum()]
        assert counts == [sum(trace["y"]) for trace in traces(histogram)]


def test_leverages_add_up_to_the_nodes_of_a_tree() -> None:
    histogram = diagnosed(perceptron(), "spectral", labelled(6))[1]["Leverage of the weights of 0.weight"]
    kept, removed = (sum(column(histogram, key)) for key in ("kept", "removed"))
    words = histogram["text"].split()
    total = float(words[-8]) * kept + float(words[-4]) * removed
    assert total == pytest.approx(6 + 12 - 1, rel=1e-3)


# --- mip


@given(st.integers(0, 50))
def test_states_hold_on_the_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3, 5, 4, 2]
    weights = [rng.normal(size=(b, a)) for a, b in pairwise(sizes)]
    chain = Chain.dense(weights, [rng.normal(size=b) for b in sizes[1:]])
    x, epsilon = rng.normal(size=(3, 3)), 0.3
    states = relu_states(chain, x, "paper", epsilon)
    near = x[:, None] + epsilon * rng.uniform(-1, 1, size=(3, 40, 3))
    h = near
    for number, (name, W) in enumerate(zip(states, weights, strict=False)):
        a = h @ W.T + chain.steps[2 * number].b
        never, always = (a <= 0).all(1).mean(), (a >= 0).all(1).mean()
        assert states[name]["off"] <= never + 1e-4 and states[name]["on"] <= always + 1e-4
        assert states[name]["off"] + states[name]["on"] + states[name]["open"] == pytest.approx(1, abs=1e-4)
        h = np.maximum(a, 0)


def test_scores_are_those_that_decided() -> None:
    result, sections = diagnosed(perceptron(), sc.methods.MIP(images=6), labelled(6))
    bounds = sections["What the bounds decide"]
    assert "on 6 images" in bounds["text"] and column(bounds, "layer") == ["0.weight", "2.weight"]
    solver = {row["quantity"]: row["value"] for row in sections["What the solver proved"]["rows"]}
    assert "scores" not in solver and solver["status"] == "optimal"
    for name in ("0", "2"):
        section = sections[f"Importance scores of group {name}"]
        scores, kept = np.array(column(section, "score")), np.array(column(section, "kept"))
        assert np.flatnonzero(kept).tolist() == result.plan.keep[name].tolist()
        assert scores[kept].min() >= scores[~kept].max() - 1e-5
        assert ((scores >= 0) & (scores <= 1)).all()
        ranked = {x: y for trace in traces(section)[:2] for x, y in zip(trace["x"], trace["y"], strict=True)}
        assert [ranked[place] for place in range(len(scores))] == sorted(scores.tolist(), reverse=True)


def test_a_plan_without_scores_is_refused() -> None:
    model, batches = perceptron(), labelled(6)
    result = sc.prune(model, batches[0][0][:2], sc.Units(0.5), batches, method="magnitude", repair=None)
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


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(", ") if part]


@pytest.mark.parametrize("options", [{}, {"adjacency": "weights", "density": 0.1}], ids=["data", "weights"])
@pytest.mark.parametrize("make", [perceptron, Reader], ids=["chain", "recurrent"])
def test_hasse_diagram_is_the_order(make: Callable[[], nn.Module], options: dict) -> None:
    model = make()
    batches = labelled(6) if make is perceptron else labelled(5, 4)
    method = sc.methods.Lattice(**options)
    result, sections = diagnosed(model, method, batches)
    statistics = collect_statistics(model, result.graph, batches, method.needs(sc.Units(0.5)), 0)
    for name, order in method.orders(result.graph, statistics).items():
        nodes = sections[f"Hasse diagram of group {name}"]["rows"]
        units = sorted(unit for node in nodes for unit in integers(node["units"]))
        assert units == list(range(result.graph.group(name).size))
        elements = [node["element"] for node in nodes]
        covers = [
            [at, elements.index(b)] for at, node in enumerate(nodes) for b in integers(node["covered by"])
        ]
        relation = order.poset.relation()[np.ix_(elements, elements)]
        assert (reachable(len(elements), covers) == relation).all()
        for node in nodes:
            own = integers(node["units"])
            assert node["irreducible"] is bool(order.irreducible[own].any())
            assert node["kept"] is bool(set(own) & set(result.plan.keep[name].tolist()))
        silent = "No two units are comparable" in sections[f"Hasse diagram of group {name}"]["text"]
        assert silent is (not covers and len(nodes) > 1)


def test_profile_is_of_the_recurrent_weights() -> None:
    model = Reader()
    rows = diagnosed(model, "lattice", labelled(5, 4))[1]["Profile of group rnn over density"]["rows"]
    W = model.rnn.weight_hh_l0.detach().double().reshape(4, 10, 10)
    strength = W.square().sum(0).sqrt().T.numpy()
    expected = [p.as_dict() for p in density_profile(strength, [row["density"] for row in rows])]
    assert rows == expected and len(expected) >= 4


def test_a_drawn_adjacency_has_no_diagram() -> None:
    _, sections = diagnosed(Reader(), sc.methods.Lattice(adjacency="binary"), labelled(5, 4))
    assert not any(title.startswith("Hasse") for title in sections)
    assert "no order" in sections["Not drawn"]["text"]


def test_large_orders_are_drawn_in_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, MOST_NODES + 50), nn.ReLU(), nn.Linear(MOST_NODES + 50, 3))
    section = diagnosed(model, "lattice", labelled(4, batches=8))[1]["Hasse diagram of group 0"]
    assert len(section["rows"]) == MOST_NODES and f"Only the {MOST_NODES} elements" in section["text"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_positions_in_a_level_are_apart_and_centred(heights: list[int], random: Any) -> None:
    count = len(heights)
    edges = [(random.randrange(count), random.randrange(count)) for _ in range(count)]
    edges = [(a, b) for a, b in edges if heights[a] < heights[b]]
    positions = layered_positions(heights, edges)
    for height in set(heights):
        level = sorted(x for x, h in zip(positions, heights, strict=True) if h == height)
        assert level == [i - (len(level) - 1) / 2 for i in range(len(level))]


def test_positions_put_a_chain_above_itself_and_uncross() -> None:
    assert layered_positions([0, 1, 2], [(0, 1), (1, 2)]) == [0, 0, 0]
    x = layered_positions([0, 0, 1, 1], [(0, 3), (1, 2)])
    assert (x[0] - x[1]) * (x[3] - x[2]) > 0


# --- all


def numbers(values: Any) -> set[float]:
    """Return the finite numbers among values, rounded."""
    kept = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    return {round(v, 9) for v in kept}


def test_sections_have_words_axes_colours_and_tables() -> None:
    sections = [part for run in diagnosed_runs() for part in run["structure"]["sections"]]
    figures = [part for part in sections if part["figure"]]
    assert len(figures) >= 20
    for part in figures:
        text = json.dumps(part["figure"], allow_nan=False)
        assert "#" not in text and "rgb" not in text  # colours follow the page
        assert len(part["title"]) > 20 and part["text"] and part["rows"]
        assert all("title" in part["figure"]["layout"][axis] for axis in ("xaxis", "yaxis"))
        assert any(trace["x"] for trace in part["figure"]["data"])
    for title in ("unexplained", "Windows", "lambda_2", "Components", "Importance"):
        for part in (part for part in figures if title in part["title"]):
            drawn = set().union(*(numbers(trace["y"]) for trace in part["figure"]["data"]))
            assert drawn and drawn - {0} <= numbers(v for row in part["rows"] for v in row.values())


@pytest.mark.parametrize("method", list(DIAGNOSTICS))
def test_diagnostics_change_nothing_else_and_survive_json(method: str) -> None:
    model, batches = perceptron(), labelled(6)
    before = sc.prune(model, batches[0][0][:2], sc.Units(0.5), batches, method=method, repair=None)
    after = diagnose(before, model, batches)
    assert after.model is before.model and after.plan is before.plan
    assert after.report.structure["structure"] == method and before.report.structure == {}
    assert Report.from_json(after.report.to_json()).structure == after.report.structure


def test_diagnostics_of_a_folded_network_look_at_what_the_method_saw() -> None:
    model, batches = Reader(), labelled(5, 4, batches=10)
    result = sc.prune(model, batches[0][0][:2], sc.Units(0.5), batches, method="lattice", repair="fold")
    text = diagnose(result, model, batches).report.structure["sections"][0]["text"]
    (note,) = result.plan.notes["order"].values()
    assert f"{note['irreducible']} units are meet-irreducible" in text


def test_undiagnosable_results() -> None:
    model, batches = perceptron(), labelled(6)
    result = sc.prune(model, batches[0][0][:2], sc.Units(0.5), batches, method="magnitude", repair=None)
    with pytest.raises(InputError, match="no diagnostics of 'magnitude'"):
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
def test_saved_results_hold_the_diagnostics(method: str, drawn: bool, tmp_path: Path) -> None:
    prune_to(tmp_path, method)
    assert (load_report(tmp_path).structure != {}) is drawn
    assert ("Spectrum: how each layer hangs together" in (tmp_path / "report.html").read_text()) is drawn
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(tmp_path / "all.html")])
    assert done.exit_code == 0, done.output
    assert ("Spectrum: how each layer hangs together" in (tmp_path / "all.html").read_text()) is drawn


def test_failing_diagnostics_cost_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InputError("no picture today")

    monkeypatch.setattr("secateur.cli.prune.diagnose", fail)
    assert "no picture today" in prune_to(tmp_path, "spectral")
    assert load_report(tmp_path).structure == {}
