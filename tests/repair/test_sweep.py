"""One walk over two networks: where it stops, what each pass sees, and what it leaves when it ends early."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from greenlet import greenlet
from torch import Tensor, nn

from secateur.core import InputError
from secateur.repair.spill import Spill
from secateur.repair.sweep import Batch, Cut, Outline, outline, sweep

Visit = Callable[[Cut], None]


def observed(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    return {name: (p, 1) for name, p in model.named_parameters() if p.ndim > 1}


def walk(
    model: nn.Module,
    batches: list[Tensor],
    visit: Visit,
    memory: float = torch.inf,
    small: nn.Module | None = None,
) -> Outline:
    given = [Batch(f"batch {i}", (x,), {}) for i, x in enumerate(batches)]
    both, spill = (model, small or model), Spill(memory)
    found = outline(model, observed(model), given[0])
    with torch.no_grad():
        for cut in sweep(both, tuple(map(observed, both)), given, found, spill):
            visit(cut)
    spill.close()
    return found


def alive() -> int:
    """Count the greenlets that have not ended, without the main one."""
    gc.collect()
    return sum(type(x) is greenlet and bool(x) and x.parent is not None for x in gc.get_objects())


class Counted(nn.Module):
    """Two linear layers that store what is between them; a buffer is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.calls = [0]
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3] to [B, 2]."""
        self.hidden = self.one(x)
        self.seen.copy_(self.hidden.mean(0))
        return self.two(self.hidden * 2) + self.seen.sum() + self.hidden.sum()


@pytest.mark.parametrize("memory", [torch.inf, 0])
def test_every_pass_stops_at_every_weight_with_its_own_values(memory: float) -> None:
    model = Counted()
    batches = [torch.randn(n, 3) for n in (2, 5, 3)]
    ends: list[Tensor] = []
    model.two.register_forward_hook(lambda module, args, y: ends.append(y.clone()))
    cuts: list[tuple[str, int]] = []

    def visit(cut: Cut) -> None:
        cuts.append((cut.key, len(cut.pairs)))
        for pair in cut:
            x = batches[pair.batch]
            assert torch.equal(pair.x.x, x if cut.key == "one.weight" else model.one(x) * 2)

    found = walk(model, batches, visit, memory)
    assert cuts == [("one.weight", 3), ("two.weight", 3)]
    assert found.written == {"seen"} and found.calls == {"one.weight": 1, "two.weight": 1}
    assert len(ends) == 2  # for the outline; the walk ends in front of the last weight
    assert not alive()


def test_a_walk_lets_go_of_the_inputs_behind_it() -> None:
    layers = (layer for _ in range(4) for layer in (nn.Linear(3, 3), nn.Tanh()))
    most = 0
    inputs: list[weakref.ref[Tensor]] = []

    def visit(cut: Cut) -> None:
        nonlocal most
        inputs.extend(weakref.ref(entry.x) for pair in cut for entry in (pair.x, pair.z))
        most = max(most, sum(x() is not None for x in inputs))

    batches = [torch.randn(2, 3) for _ in range(5)]
    walk(nn.Sequential(*layers), batches, visit)
    # Two networks, five batches; those of the first layer, which both networks share, were given.
    assert len(inputs) == 4 * 2 * 5 and most == 2 * 5 + 2 * 5


def test_the_buffer_that_a_pass_writes_to_is_its_own() -> None:
    model, seen = Counted(), []
    model.two.register_forward_pre_hook(lambda module, args: None)

    def visit(cut: Cut) -> None:
        seen.append(model.seen.clone())

    walk(model, [torch.randn(2, 3), torch.randn(2, 3)], visit)
    assert torch.equal(seen[0], seen[-1])  # the given model's buffer stays as the outline left it
    assert not torch.equal(seen[0], torch.zeros(4))


def test_a_weight_that_is_changed_at_its_cut_acts_from_there_on() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    small = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    x, inputs = torch.randn(4, 2), {}

    def visit(cut: Cut) -> None:
        if cut.key == "0.weight":
            small[0].weight.zero_()
            small[0].bias.zero_()
        inputs[cut.key] = [(pair.x.x.clone(), pair.z.x.clone()) for pair in cut]

    walk(model, [x], visit, small=small)
    before, after = inputs["2.weight"][0]
    torch.testing.assert_close(before, model[:2](x))
    assert not after.any()


class Loop(nn.Module):
    """As many steps of one layer as there are columns, and an expert for long inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.long, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T] to [B, 1]."""
        h = x.new_zeros(len(x), 2)
        for column in x.unbind(1):
            h = torch.tanh(self.step(h + column[:, None]))
        return self.last(self.long(h) if x.shape[1] > 3 else h)


def test_batches_may_differ_in_length_and_in_the_weights_that_they_use() -> None:
    uses: Counter[tuple[str, bool, int]] = Counter()

    def visit(cut: Cut) -> None:
        uses.update((cut.key, cut.once, pair.batch) for pair in cut)

    walk(Loop(), [torch.randn(2, n) for n in (4, 2, 5)], visit)
    steps = {batch: uses["step.weight", False, batch] for batch in range(3)}
    assert steps == {0: 4, 1: 2, 2: 5}
    assert [uses["long.weight", True, batch] for batch in range(3)] == [1, 0, 1]
    assert [uses["last.weight", True, batch] for batch in range(3)] == [1, 1, 1]


def test_the_outline_sees_which_weight_reads_a_result_as_it_is() -> None:
    class Follow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(3, 3, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            return self.d(self.c(y).relu_())

    model = Follow()
    found = outline(model, observed(model), Batch("batch 0", (torch.randn(2, 3),), {}))
    assert found.follows == {"a.weight": "b.weight", "b.weight": "c.weight"}


def test_the_end_of_a_walk_ends_its_passes() -> None:
    model = Counted()
    model.stop = False

    def interrupt(module: nn.Module, args: Any, y: Tensor) -> None:
        if model.stop:
            raise KeyboardInterrupt

    model.one.register_forward_hook(interrupt)

    def visit(cut: Cut) -> None:
        model.stop = cut.key == "one.weight"

    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error):
            walk(model, [torch.randn(2, 3)] * 3, visit if error is KeyboardInterrupt else lambda cut: 1 / 0)
        model.stop = False
        assert not alive() and torch._C._len_torch_function_stack() == 0


class Context(nn.Module):
    """A layer inside a context."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.context, self.layer = context, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3] to [B, 3]."""
        with self.context():
            return self.layer(x).float()


@pytest.mark.parametrize(
    ("context", "what"),
    [
        (lambda: torch.autocast("cpu", torch.bfloat16), "autocast"),
        (torch.enable_grad, "gradient mode"),
    ],
)
def test_a_layer_inside_a_context_of_the_model_is_refused(context: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=f"{what}.*repair='fold'"):
        walk(Context(context), [torch.ones(2, 3)] * 2, lambda cut: None)
    assert torch._C._len_torch_function_stack() == 0 and not torch.is_autocast_enabled("cpu")


def test_a_layer_may_be_inside_a_function_mode_of_the_model() -> None:
    cuts: list[str] = []
    walk(Context(lambda: torch.device("cpu")), [torch.ones(2, 3)] * 2, lambda cut: cuts.append(cut.key))
    assert cuts == ["layer.weight"] and torch._C._len_torch_function_stack() == 0


def test_a_model_that_changes_from_call_to_call_is_refused() -> None:
    class Noise(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    with pytest.raises(InputError, match="other outputs on the second call"):
        walk(Noise(3, 3), [torch.ones(2, 3)], lambda cut: None)
