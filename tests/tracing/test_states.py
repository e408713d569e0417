"""States that a model takes and returns: they shrink with their units; the steps are those of masking."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import InputError, NothingToPrune, Plan, PruningGraph
from secateur.core.indices import kept_states
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load_plan
from secateur.measure.metrics import agreement, distance_from
from secateur.views import view

UNITS, WIDTH = 16, 5


class Step(nn.Module):
    """One step of a recurrent network, with a normalisation over its units."""

    def __init__(self, cell: type[nn.Module] = nn.GRUCell) -> None:
        super().__init__()
        self.cell = cell(WIDTH, UNITS)
        self.norm, self.head = nn.LayerNorm(UNITS), nn.Linear(UNITS, 3)

    def forward(self, x: Tensor, h: Any) -> tuple[Tensor, Any]:
        h = self.cell(x, h)
        return self.head(self.norm(h[0] if isinstance(h, tuple) else h)), h


class Offset(nn.Module):
    """A leaky state that is not 0 where its units are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(WIDTH + UNITS, UNITS), nn.Linear(UNITS, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.5 * h + torch.sigmoid(self.inner(torch.cat([x, h], -1)))
        return self.head(h), h


class Sequence(nn.Module):
    """A part of a sequence, from a state to a state."""

    def __init__(self, layers: int = 1, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, UNITS, layers, batch_first=True, **options)
        self.head = nn.Linear(UNITS * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor, hc: Any) -> dict[str, Any]:
        y, hc = self.rnn(x, hc)
        return {"y": self.head(y), "state": hc}


class Attention(nn.Module):
    """Attention with a cache of keys and values, whose heads a view and an attribute count."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v = (nn.Linear(WIDTH, 24) for _ in range(3))
        self.out = nn.Linear(24, WIDTH)

    def forward(self, x: Tensor, *, past: Any) -> dict[str, Any]:
        batch, time, _ = x.shape
        q, k, v = (f(x).view(batch, time, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return {"y": self.out(y.transpose(1, 2).reshape(batch, time, -1)), "past": (k, v)}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def narrow(graph: PruningGraph, keep: Any, states: list[Tensor]) -> list[Tensor]:
    """Return the states that a pruned model starts with."""
    states = list(states)
    for (number, axis), index in kept_states(graph, keep).items():
        states[number] = states[number].index_select(axis, torch.from_numpy(index))
    return states


Call = Callable[[nn.Module, Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]


def call_step(model: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    y, h = model(x, states[0] if len(states) == 1 else tuple(states))
    return y, list(h) if isinstance(h, tuple) else [h]


def call_sequence(model: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    output = model(x, tuple(states))
    return output["y"], list(output["state"])


def call_attention(model: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    output = model(x, past=tuple(states))
    return output["y"], list(output["past"])


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Call, tuple[int, ...], tuple[int, ...], int]] = {
    "GRU cell": (Step, {"h": 1}, call_step, (4, WIDTH), (4, UNITS), 1),
    "RNN cell": (lambda: Step(nn.RNNCell), [(1, 1)], call_step, (4, WIDTH), (4, UNITS), 1),
    "LSTM cell": (lambda: Step(nn.LSTMCell), {"h": 1}, call_step, (4, WIDTH), (4, UNITS), 2),
    "not zero": (Offset, {"h": 1}, call_step, (4, WIDTH), (4, UNITS), 1),
    "LSTM": (Sequence, {"hc": "state"}, call_sequence, (4, 3, WIDTH), (1, 4, UNITS), 2),
    "two layers": (lambda: Sequence(2), {"hc": "state"}, call_sequence, (4, 3, WIDTH), (2, 4, UNITS), 2),
    "both directions": (
        lambda: Sequence(bidirectional=True),
        {"hc.0": "state.0", "hc.1": "state.1"},
        call_sequence,
        (4, 3, WIDTH),
        (2, 4, UNITS),
        2,
    ),
    "cache": (Attention, {"past": "past"}, call_attention, (3, 2, WIDTH), (3, 4, 5, 6), 2),
}


def case(name: str) -> tuple[nn.Module, Any, Call, Tensor, list[Tensor], dict[str, Any]]:
    make, states, call, shape, state, count = CASES[name]
    torch.manual_seed(0)
    model = make().double().eval()
    first = [rand(*state, seed=7 + n) for n in range(count)]
    value = first[0] if name in ("GRU cell", "RNN cell", "not zero") else tuple(first)
    x = rand(*shape)
    given: dict[str, Any] = {"example_inputs": (x, value)}
    if name == "cache":
        given = {"example_inputs": (x,), "example_kwargs": {"past": value}}
    return model, states, call, x, first, given


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_masked_model(name: str) -> None:
    model, states, call, x, first, given = case(name)
    result = sc.prune(model, budget=sc.Units(0.5), method="magnitude", repair=None, states=states, **given)
    graph, plan = result.graph, result.plan
    assert not any(axis.reason == "an input or a constant" for axis in graph.frozen)
    assert all(state.axes for state in graph.interface.states)
    masked = sc.mask(model, plan)
    zeros = [torch.zeros_like(s) for s in first]
    wide, thin = zeros, narrow(graph, plan.keep, zeros)
    assert sum(s.numel() for s in thin) < sum(s.numel() for s in wide)
    for step in range(4):
        x = rand(*x.shape, seed=step)
        expected, wide = call(masked, x, wide)
        actual, thin = call(result.model, x, thin)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(thin, narrow(graph, plan.keep, wide), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["GRU cell", "two layers", "cache"])
def test_without_states_their_axes_are_frozen(name: str) -> None:
    model, _, _, _, _, given = case(name)
    graph = sc.trace(model, **given)
    assert graph.groups == () and graph.interface.is_whole


def test_any_state_will_do_where_units_that_are_gone_do_not_count() -> None:
    """Of a leaky state nothing is assumed: what it holds where units are gone does not change the rest."""
    model, states, _, x, (h,), given = case("not zero")
    plan = sc.plan(sc.trace(model, states=states, **given), "magnitude", sc.Units(0.5))
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)
    (thin,) = narrow(plan.graph, plan.keep, [h])
    for a, b in zip(small(x, thin), masked(x, h), strict=True):
        b = b[:, plan.keep["inner"]] if b.shape != a.shape else b
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_is_printed_says_what_shrinks(tmp_path: Path) -> None:
    model, states, _, _, _, given = case("GRU cell")
    graph = sc.trace(model, states=states, **given)
    assert "state h -> 1: axis 1: 16 with cell" in graph.summary()
    result = sc.prune(model, budget=sc.Units(0.25), method="magnitude", repair=None, states=states, **given)
    assert "state h -> 1: axis 1: 16 -> 4" in repr(result)
    assert "state h -> 1: axis 1: 16 -> 4." in result.report.to_markdown()
    result.save(tmp_path)
    again = load_plan(tmp_path)
    assert kept_states(again.graph, again.keep)[0, 1].tolist() == result.plan.keep["cell"].tolist()
    assert plan_from_json(plan_to_json(result.plan)).graph.interface.states[0].axes[0].value == 16
    loaded = sc.load(tmp_path, lambda: Step().double())
    x, h = rand(2, WIDTH), rand(2, 4)
    assert torch.equal(loaded(x, h)[1], result.model(x, h)[1])
    assert result.report.from_dict(result.report.to_dict()).interface == ["state h -> 1: axis 1: 16 -> 4"]


BATCHES = [((rand(64, WIDTH, seed=n), rand(64, UNITS, seed=99 + n)), None) for n in range(5)]


@pytest.mark.parametrize(
    "how",
    [
        {"repair": None},
        {"repair": "fold"},
        {"repair": "refit"},
        {"repair": "fold+finetune"},
        {"repair": "refit", "schedule": sc.Steps(2)},
        {"repair": "fold", "schedule": sc.Steps(3), "budget": sc.Params(0.5)},
        {"method": "taylor", "repair": (sc.Finetune(steps=30, lr=1e-2, teacher=True),)},
        {"schedule": sc.Tolerance(0.5, BATCHES[:2], "agreement", step=0.3), "repair": "refit"},
    ],
    ids=[
        "none",
        "fold",
        "refit",
        "finetune",
        "refit in steps",
        "loss curves in steps",
        "teacher",
        "tolerance",
    ],
)
def test_batches_hold_the_states_of_the_original(how: Any) -> None:
    torch.manual_seed(0)
    model = Step().double().eval()
    example = BATCHES[0][0][0][:2], BATCHES[0][0][1][:2]
    settings = {"budget": sc.Units(0.5), "data": BATCHES, "states": {"h": 1}, "progress": False, **how}
    result = sc.prune(model, example, **settings)
    kept = result.plan.keep["cell"]
    x, h = rand(64, WIDTH, seed=500), rand(64, UNITS, seed=501)
    with torch.no_grad():
        y, after = result.model(x, h[:, kept])
        wanted, whole = model(x, h)
    measured = result.measure([((x, h), None)]).report.agreement
    assert measured is not None
    far = [float((a - b).abs().max() / b.abs().max()) for a, b in ((y, wanted), (after, whole[:, kept]))]
    assert measured.relative == pytest.approx(max(far), rel=1e-6)
    assert not result.model._forward_hooks and not result.model._forward_pre_hooks
    if not isinstance(how.get("schedule"), sc.Steps):
        plain = sc.shrink(model, result.plan)
        judge = distance_from(view(model, result.graph.interface), [((x, h), None)])
        before, now = (judge(view(m, result.graph.interface, result.plan)) for m in (plain, result.model))
        assert now < before or how["repair"] is None, (before, now)


def test_the_fold_of_an_explained_unit_is_exact() -> None:
    """A unit that equals another one goes without a trace, through the state too."""
    torch.manual_seed(0)
    model = Step(nn.RNNCell).double().eval()
    model.norm = nn.Identity()
    with torch.no_grad():
        for tensor in (model.cell.weight_ih, model.cell.weight_hh, model.cell.bias_ih, model.cell.bias_hh):
            tensor[1] = tensor[0]
    batches = []
    for (x, h), targets in BATCHES:
        h = h.clone()
        h[:, 1] = h[:, 0]
        batches.append(((x, h), targets))
    graph = sc.trace(model, batches[0][0], states={"h": 1})
    plan = Plan(graph, "twin", keep={"cell": np.delete(np.arange(UNITS), 1)})
    small, _ = sc.refit(model, sc.shrink(model, plan), plan, batches)
    a, b = torch.zeros(8, UNITS - 1, dtype=torch.float64), torch.zeros(8, UNITS, dtype=torch.float64)
    for step in range(5):
        x = rand(8, WIDTH, seed=step)
        y, a = small(x, a)
        wanted, b = model(x, b)
        torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-6)


def test_finetune_takes_the_states_of_a_plan() -> None:
    torch.manual_seed(0)
    model = Step().double().eval()
    plan = sc.plan(sc.trace(model, BATCHES[0][0], states={"h": 1}), "magnitude", sc.Units(0.5))
    small = sc.shrink(model, plan)
    tuned, history = sc.finetune(small, BATCHES, teacher=model, plan=plan, steps=30, lr=1e-2, progress=False)
    assert history.losses[-1] < history.losses[0]
    far = [
        agreement(view(model, plan.graph.interface), view(m, plan.graph.interface, plan), BATCHES[:1])
        for m in (small, tuned)
    ]
    assert far[1].relative < far[0].relative


def test_outputs_and_states_together() -> None:
    class Three(Step):
        def forward(self, x: Tensor, h: Tensor) -> Any:
            y, h = super().forward(x, h)
            return {"y": y, "features": h, "h": h}

    torch.manual_seed(0)
    model, x, h = Three().eval(), torch.randn(2, WIDTH), torch.randn(2, UNITS)
    with pytest.warns(UserWarning, match="the state h stays whole"):
        assert sc.trace(model, (x, h), states={"h": "h"}).groups == ()
    result = sc.prune(model, (x, h), sc.Units(0.5), method="magnitude", outputs="y", states={1: "h"})
    assert result.model(x, h[:, :8])["features"].shape == (2, 8)
    assert result.report.interface == ["outputs that count: y", "state h: axis 1: 16 -> 8"]


def test_a_model_that_returns_only_its_state() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, UNITS)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.cell(x, h)

    x, h = torch.randn(2, WIDTH), torch.randn(2, UNITS)
    result = sc.prune(Only(), (x, h), sc.Units(0.5), method="magnitude", states={"h": 0})
    assert result.model(x, h[:, :8]).shape == (2, 8)
    assert result.measure().report.agreement is not None


def test_onnx_takes_the_narrower_state(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x, h = Step().eval(), torch.randn(2, WIDTH), torch.randn(2, UNITS)
    result = sc.prune(model, (x, h), sc.Units(0.5), method="magnitude", states={"h": 1})
    assert result.to_onnx(tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    shapes = [node.shape[1] for node in session.get_inputs()]
    assert shapes == [WIDTH, 8]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"k": 1}, r"no input 'k'.*Known: 'h', 'x'\. The example inputs must hold every state"),
        ({"h": 2}, r"no output '2'.*Known: '0', '1'"),
        ({"h": "hidden"}, "no output 'hidden'"),
        ({5: 1}, "no input '5'"),
        ("h", "states map an input to the output"),
        ({}, "states map an input to the output"),
        ([("h", 1, 2)], "states map an input to the output"),
        ([(True, 1)], "states map an input to the output"),
        ([("h", 1), ("x", 1)], "each state needs its own input and output"),
    ],
)
def test_bad_states_are_refused_with_what_there_is(states: Any, message: str) -> None:
    model, x, h = Step().eval(), torch.randn(2, WIDTH), torch.randn(2, UNITS)
    with pytest.raises(InputError, match=message):
        sc.trace(model, (x, h), states=states)


def test_the_parts_of_a_state_must_fit() -> None:
    model, x, h = Step(nn.LSTMCell).eval(), torch.randn(2, WIDTH), torch.randn(2, UNITS)
    with pytest.raises(
        InputError, match=r"a state comes out as the floating tensors that went in; .*\[\(2, 16\)\]"
    ):
        sc.trace(model, (x, (h, h)), states={"h.0": 1})
    with pytest.raises(InputError, match="no input '2'"):
        sc.trace(model, (x, (h, h)), states={"h.2": 1})


def test_a_state_that_another_input_ties_stays_whole() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, UNITS)

        def forward(self, x: Tensor, h: Tensor, noise: Tensor) -> Tensor:
            return self.cell(x, h + noise)

    example = torch.randn(2, WIDTH), torch.randn(2, UNITS), torch.randn(2, UNITS)
    with (
        pytest.warns(UserWarning, match=r"the state h -> 0 stays whole\. Axis by axis: .*aten\.add"),
        pytest.raises(NothingToPrune),
    ):
        sc.prune(Added(), example, sc.Units(0.5), method="magnitude", states={"h": 0})


def test_shares_of_steps_rise(recwarn: Any) -> None:
    """Several steps keep nested units, and the example of every step fits its network."""
    torch.manual_seed(0)
    model, seen = Step().eval(), []
    sc.prune(
        model,
        (torch.randn(2, WIDTH), torch.randn(2, UNITS)),
        sc.Units(0.25),
        method="synflow",
        schedule=sc.Steps(3),
        states={"h": 1},
        callback=lambda step: seen.append(step.plan.keep["cell"]),
    )
    assert all(set(b) < set(a) for a, b in pairwise(seen)) and len(seen[-1]) == 4
