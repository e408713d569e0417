"""Groups that fail the exactness check stay whole, and the others go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur import Params, Steps, Tolerance, Units, prune
from secateur.apply.exactness import verify
from secateur.apply.inexact_groups import find_inexact_groups
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import ExactnessError, Plan
from secateur.tracing.trace import trace


class Block(nn.Module):
    """A residual block; a bad one computes with a length that the graph does not show."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        self.up, self.down, self.bad = nn.Linear(6, 8), nn.Linear(8, 6), bad

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        return x + self.down(h * len(h[0]) if self.bad else h)


class Net(nn.Module):
    """Blocks, some of them bad, between two linear layers."""

    def __init__(self, bad: tuple[int, ...] = (1, 4), blocks: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.blocks = nn.Sequential(*(Block(i in bad) for i in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(x)))


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
BAD = {"blocks.1.up", "blocks.4.up"}


def model(**options) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**options)


def half(graph) -> Plan:
    return Plan(graph, "test", {g.name: list(range(g.size // 2)) for g in graph.groups})


@pytest.mark.parametrize("bad", [(0,), (5,), (1, 4), (0, 1, 2)])
def test_exactly_the_bad_groups_are_found(bad: tuple[int, ...]) -> None:
    net = model(bad=bad)
    plan = half(trace(net, X))
    with pytest.raises(ExactnessError):
        shrink(net, plan)
    assert find_inexact_groups(net, plan) == tuple(f"blocks.{i}.up" for i in bad)


def test_a_pair_that_fails_only_together_loses_one_of_the_two() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat([self.a(x), self.b(x)], 1)
            return self.last(h * (2.0 if len(h[0]) < 6 else 1.0))

    net = Pair()
    plan = half(trace(net, X))
    assert find_inexact_groups(net, plan) == ("b",)


def test_the_search_ends_after_a_fixed_number_of_comparisons(monkeypatch) -> None:
    counted = []
    monkeypatch.setattr("secateur.apply.inexact_groups._is_exact", lambda *_: bool(counted.append(1)))
    net = model(blocks=30)
    plan = half(trace(net, X))
    assert len(find_inexact_groups(net, plan)) == len(plan.keep)
    assert len(counted) <= 13


@pytest.mark.parametrize("budget", [Units(0.5), Params(0.6), Units(0.5, scope="global")])
def test_pruning_goes_on_without_the_groups_that_fail(budget) -> None:
    net = model()
    with pytest.warns(UserWarning, match=r"stay whole: 'blocks.1.up', 'blocks.4.up'.*aten.mul"):
        result = prune(net, X, budget, method="magnitude")
    assert set(result.report.notes["inexact groups"]) == BAD
    assert set(result.plan.keep) == {"first", "blocks.0.up", "blocks.2.up", "blocks.3.up", "blocks.5.up"}
    assert {f["tensor"] for f in result.report.frozen if "fails the exactness check" in f["reason"]} == {
        f"{name}.weight" for n in (1, 4) for name in (f"blocks.{n}.up", f"blocks.{n}.down")
    }
    assert "failed the check: 2" in repr(result.report)
    assert verify(mask(net, result.plan), result.model, result.plan).deviation < 1e-10
    reached = result.plan.notes["reached"]["params" if isinstance(budget, Params) else "units"]
    assert reached == pytest.approx(budget.keep, abs=0.05)


@pytest.mark.filterwarnings("ignore:groups that fail")
@pytest.mark.parametrize("schedule", [Steps(2), Tolerance(1e9, [(X, None)], metric="agreement", step=0.25)])
def test_other_schedules_leave_the_same_groups_whole(schedule) -> None:
    result = prune(model(), X, Units(0.5), method="magnitude", schedule=schedule)
    assert set(result.report.notes["inexact groups"]) == BAD
    assert {len(kept) for kept in result.plan.keep.values()} == {3, 4}
    assert not BAD & {group.name for group in result.graph.groups}


def test_a_group_that_fails_in_a_later_step_keeps_what_it_has(monkeypatch) -> None:
    monkeypatch.setattr(Block, "forward", small_enough)
    with pytest.warns(UserWarning, match="'blocks.0.up'"):
        result = prune(model(bad=(0,), blocks=2), X, Units(0.25), method="magnitude", schedule=Steps(2))
    kept = {name: len(units) for name, units in result.plan.keep.items()}
    assert kept == {"first": 2, "blocks.0.up": 4, "blocks.1.up": 2}


def small_enough(self: Block, x: Tensor) -> Tensor:
    h = torch.relu(self.up(x))
    return x + self.down(h * 2 if self.bad and len(h[0]) < 4 else h)


def test_if_every_group_fails_so_does_the_pruning() -> None:
    net = nn.Sequential(nn.Linear(5, 8), Scaled(), nn.Linear(8, 3))
    with pytest.raises(ExactnessError, match=r"aten\.mul"):
        prune(net, X, Units(0.5), method="magnitude")


class Scaled(nn.Module):
    """Multiplies by a length."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x[0])


class Single(nn.Module):
    """A network whose operations refuse float64, as grouped matrix products do."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.bad = nn.Linear(5, 8), nn.Linear(8, 3), bad

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("got Double")
        h = self.first(x).relu()
        return self.last(h * len(h[0]) if self.bad else h)


def test_a_model_without_float64_is_compared_in_float32() -> None:
    net = Single()
    plan = half(trace(net, X))
    small = shrink(net, plan)
    assert 0 <= verify(mask(net, plan), small, plan).deviation < 1e-6
    with pytest.raises(ExactnessError, match=r"float32; at most 0.00035 is accepted.*aten.mul"):
        shrink(Single(bad=True), half(trace(Single(bad=True), X)))


class TwoDirections(nn.Module):
    """Computes with the number of units of one direction, which the graph does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, bidirectional=True, batch_first=True)
        self.up, self.last = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x[:, None])[0][:, 0]
        return self.last(torch.relu(self.up(y * len(y[0]))))


def test_groups_that_keep_equal_counts_stay_whole_together() -> None:
    net = TwoDirections()
    with pytest.warns(UserWarning, match=r"stay whole: 'rnn', 'rnn #2'"):
        result = prune(net, X, Units(0.5), method="magnitude")
    assert set(result.plan.keep) == {"up"}
    assert result.graph.equal_counts == ()
    left = trace(net, X).without_groups(["rnn #2"], "because")
    assert [g.name for g in left.groups] == [g.name for g in result.graph.groups] == ["up"]
