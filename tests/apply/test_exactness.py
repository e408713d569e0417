"""The exactness check: networks that it must refuse, and examples that would hide why."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.apply.check_inputs import other_inputs, with_other_weights
from secateur.apply.deviation import deviation
from secateur.apply.exactness import verify
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import ExactnessError, Plan
from secateur.tracing.trace import trace


class Net(nn.Module):
    """An MLP with some step between its layers."""

    def __init__(self, step: Callable[[Tensor], Any] = torch.relu, last: Callable[[Any], Any] | None = None):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.step, self.last = step, last

    def forward(self, x: Tensor) -> Any:
        y = self.b(self.step(self.a(x)))
        return y if self.last is None else self.last(y)


def halved(model: nn.Module, x: Tensor) -> nn.Module:
    graph = trace(model, x)
    return shrink(model, Plan(graph, "half", {g.name: np.arange(g.size // 2) for g in graph.groups}))


LENGTHS = {
    "root of a length": lambda h: h.relu() / math.sqrt(h.shape[-1]),
    "branch on a length": lambda h: h.relu() if h.shape[-1] > 4 else -h.relu(),
}


@pytest.mark.parametrize("step", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("x", [torch.zeros(2, 6), torch.linspace(-2, 2, 12).reshape(2, 6)])
def test_what_depends_on_a_length_is_refused_whatever_the_example(
    step: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    model = Net(step)
    with torch.no_grad():
        model.a.bias.fill_(-0.1)  # no unit is on for an example of zeros
    with pytest.raises(ExactnessError, match="deviates from the masked one"):
        halved(model, x)


@pytest.mark.parametrize(
    "last",
    [
        lambda y: torch.complex(y, y),
        lambda y: (y * 100).long(),
        lambda y: (y > 0, y.argmax(-1)),
        lambda y: {"scores": y.round().int(), "count": 3},
    ],
)
def test_outputs_of_every_type_are_compared(last: Callable[[Tensor], Any]) -> None:
    x = torch.linspace(-2, 2, 60).reshape(10, 6)
    model = Net(last=last)
    graph = trace(model, x)
    assert graph.groups, "this graph has nothing to prune"
    plan = Plan(graph, "half", {g.name: np.arange(g.size // 2) for g in graph.groups})
    small, masked = shrink(model, plan), mask(model, plan)
    assert verify(masked, small, plan).passes
    with torch.no_grad():
        small.b.bias += 0.7  # type: ignore[union-attr,operator]
    with pytest.raises(ExactnessError, match="deviates"):
        verify(masked, small, plan)


def test_a_last_layer_of_zeros_is_checked_with_other_weights() -> None:
    model = Net()
    nn.init.zeros_(model.b.weight)
    assert halved(model, torch.ones(2, 6)).a.out_features == 4  # type: ignore[union-attr]
    wrong = Net(LENGTHS["root of a length"])
    nn.init.zeros_(wrong.b.weight)
    with pytest.raises(ExactnessError, match="deviates"):
        halved(wrong, torch.ones(2, 6))


def test_equal_words_are_no_other_inputs() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    assert halved(model, torch.ones(2, 7, dtype=torch.long))[1].out_features == 3  # type: ignore[index]


def test_a_comparison_of_constants_is_refused() -> None:
    with pytest.raises(ExactnessError, match="compares constants"):
        halved(Net(last=lambda y: 0 * y + 1), torch.ones(2, 6))


def at_other_batch_size(h: Tensor) -> Tensor:
    return h.relu() if len(h) == 2 or h.shape[-1] > 4 else h.relu() / 2


def test_another_batch_size_is_compared() -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    with pytest.raises(ExactnessError, match="deviates"):
        halved(Net(at_other_batch_size), x)


class Counting(Net):
    """Its second call is another one, which depends on the width; or it raises there."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.calls, self.raises = 0, raises

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        h = torch.relu(self.a(x))
        narrow = self.calls > 1 and h.shape[-1] < 8
        if narrow and self.raises:
            raise RuntimeError("the size has changed")
        return self.b(h * 2 if narrow else h)


@pytest.mark.parametrize(("raises", "why"), [(False, "deviates"), (True, "does not run")])
def test_the_second_call_is_compared(raises: bool, why: str) -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    model = Counting(raises)
    graph = trace(model, x)
    model.calls = 0
    plan = Plan(graph, "half", {g.name: np.arange(4) for g in graph.groups})
    small = shrink(model, plan, check=False)
    with pytest.raises(ExactnessError, match=why):
        verify(mask(model, plan), small, plan)
    assert model.calls == small.calls == 0, "the check must run copies"


class Gated(Net):
    """A branch behind a gain that is zero, beside a layer that is not pruned."""

    def __init__(self, step: Callable[[Tensor], Any]) -> None:
        super().__init__(step)
        self.skip, self.gain = nn.Linear(6, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        return self.skip(x) + self.gain * super().forward(x)


def test_what_a_gain_of_zero_hides_is_compared_with_other_weights() -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    assert halved(Gated(torch.relu), x).a.out_features == 4  # type: ignore[union-attr]
    with pytest.raises(ExactnessError, match="with other weights, the shrunk model deviates"):
        halved(Gated(LENGTHS["root of a length"]), x)


def test_integers_are_compared_with_other_weights() -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    with pytest.raises(ExactnessError, match="deviates"):
        halved(Net(lambda h: h.relu() * (1.5 if h.shape[-1] > 4 else 1), lambda y: y > 0), x)


def test_outputs_that_are_never_finite_are_constants() -> None:
    with pytest.raises(ExactnessError, match="compares constants"):
        halved(Net(last=lambda y: y * float("nan")), torch.ones(2, 6))


class Strict(Net):
    """It takes nothing but what the test allows."""

    def __init__(self, allows: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.allows = allows

    def forward(self, x: Tensor) -> Any:
        if not torch.compiler.is_exporting() and not self.allows(x):
            raise ValueError("not this one")
        return super().forward(x)


@pytest.mark.parametrize(
    ("allows", "other", "other_size"),
    [
        (lambda x: True, True, True),
        (lambda x: len(x) == 2, True, False),
        (lambda x: bool((x == x.sort(0)[0]).all()) and len(x) == 2, False, False),
    ],
)
def test_the_report_says_what_the_check_could_not_use(
    allows: Callable[[Tensor], bool], other: bool, other_size: bool
) -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    report = sc.prune(Strict(allows), x, sc.Units(0.5), method="magnitude").report
    found = report.exactness
    assert found["deviation"] <= found["bound"] == 1e-10 and found["type"] == "float64" and found["reacts"]
    assert (found["other inputs"], found["other batch size"]) == (other, other_size)
    assert ("could not use: other" in repr(report)) == (not (other and other_size))
    assert ("other inputs, other batch size" in repr(report)) == (not other)


def test_other_inputs_keep_ranges_shapes_and_masks() -> None:
    words, mask = torch.arange(6).reshape(2, 3), torch.tensor([[True, False]])
    additive = torch.tensor([0.0, -torch.inf])
    args, kwargs = other_inputs(
        (words, additive, 3), {"mask": mask, "ones": torch.ones(4), "x": [torch.zeros(2)]}
    )
    assert sorted(args[0].flatten().tolist()) == list(range(6)) and not args[0].equal(words)
    assert args[1] is additive and args[2] == 3 and kwargs["mask"] is mask
    assert ((kwargs["ones"] >= 0.5) & (kwargs["ones"] <= 1.5)).all() and kwargs["ones"].std() > 0
    assert (kwargs["x"][0] != 0).all()


def test_other_weights_are_a_copy() -> None:
    model = Net()
    before = model.a.weight.clone()
    other = with_other_weights(model)
    assert model.a.weight.equal(before) and not other.a.weight.equal(before)  # type: ignore[union-attr]


def test_the_deviation_of_integers_is_zero_or_infinite() -> None:
    a, b = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert deviation([a], [a]) == 0 and deviation([a], [b]) == float("inf")
