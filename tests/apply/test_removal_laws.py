"""Laws that tracing, masking and shrinking obey on every model of the bank."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import oracles
import pytest
import torch
from bank import BANK, Entry
from torch import nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import CaptureError, NothingToPrune, Plan, PruningGraph, SecateurError
from secateur.tracing.trace import trace


def named(choose: str = "all", every: int = 1) -> list[object]:
    """List entries as test parameters; slow ones, and all but every so many, are marked slow."""
    picked = {
        "all": lambda e: not e.refused,
        "fast": lambda e: not e.refused and not e.needs,
        "refused": lambda e: bool(e.refused),
    }[choose]
    chosen = [(name, e.slow) for name, e in BANK.items() if picked(e)]
    return [
        pytest.param(name, marks=pytest.mark.slow if slow or number % every else (), id=name)
        for number, (name, slow) in enumerate(chosen)
    ]


@cache
def traced(name: str) -> tuple[Entry, nn.Module, PruningGraph]:
    """Build, perturb and trace a model of the bank, once."""
    entry = BANK[name]
    if entry.needs:
        pytest.importorskip(entry.needs)
    model = oracles.perturb(entry.build())
    args, kwargs = entry.example()
    return entry, model, trace(model, args, example_kwargs=kwargs)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy every tensor of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states agree to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", named(every=2))
def test_tracing_finds_the_units(name: str) -> None:
    entry, model, graph = traced(name)
    assert sum(g.size for g in graph.groups) >= entry.units
    assert len({g.name for g in graph.groups}) == len(graph.groups)
    for group in graph.groups:
        for slot in group.slots:
            assert slot.index.shape[0] == group.size
            assert 0 <= slot.index.min() <= slot.index.max() < graph.shapes[slot.tensor][slot.axis]
    assert graph.shapes == {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("name", named(every=2))
def test_half_of_every_group_goes_exactly(name: str) -> None:
    entry, model, graph = traced(name)
    before, mode = state(model), model.training
    plan = oracles.half_plan(graph)
    small, masked = shrink(model, plan), mask(model, plan)
    assert same(before, state(model))
    assert model.training == mode == small.training
    assert oracles.size(small) < oracles.size(model) == oracles.size(masked)
    assert oracles.deviation(entry, model, small) < oracles.TOLERANCE
    assert oracles.gap(entry, small, masked) < oracles.TOLERANCE
    assert oracles.gap(entry, masked, model) > 1e-6
    args, kwargs = entry.example()
    with torch.no_grad():
        plain = oracles.tensors(small(*args, **kwargs))
    assert oracles.distance(plain, oracles.run(small, (args, kwargs))) < 1e-5


@pytest.mark.parametrize("name", named(every=3))
def test_other_units_go_as_exactly(name: str) -> None:
    """A second draw, three quarters gone, not checked by the library itself."""
    entry, model, graph = traced(name)
    plan = oracles.random_plan(graph, seed=1, keep=0.25)
    small = shrink(model, plan, check=False)
    assert oracles.deviation(entry, model, small) < oracles.TOLERANCE


@pytest.mark.parametrize("name", named("fast", every=3))
def test_each_group_alone_goes_exactly(name: str) -> None:
    entry, model, graph = traced(name)
    for group in graph.groups:
        plan = oracles.half_plan(graph, seed=2, only=group.name)
        if not plan.keep:
            continue
        small = shrink(model, plan)
        assert oracles.size(small) < oracles.size(model), group.name
        assert oracles.deviation(entry, model, small) < oracles.TOLERANCE, group.name


@pytest.mark.parametrize("name", named("fast", every=3))
def test_one_unit_left_in_every_group_is_exact(name: str) -> None:
    entry, model, graph = traced(name)
    keep = {g.name: np.array([g.size - 1]) for g in graph.groups if g.size > 1}
    small = shrink(model, Plan(graph, "last unit", keep))
    assert oracles.deviation(entry, model, small) < oracles.TOLERANCE


@pytest.mark.parametrize("name", named("fast", every=3))
def test_smaller_plans_give_nested_masks(name: str) -> None:
    _, model, graph = traced(name)
    large = oracles.half_plan(graph, seed=3)
    nested = {group: kept[: max(1, len(kept) // 2)] for group, kept in large.keep.items()}
    more, fewer = mask(model, large), mask(model, Plan(graph, "nested", nested))
    for p, q in zip(more.parameters(), fewer.parameters(), strict=True):
        assert not ((p == 0) & (q != 0)).any()
    assert sum(int((p != 0).sum()) for p in fewer.parameters()) < sum(
        int((p != 0).sum()) for p in more.parameters()
    )


@pytest.mark.parametrize("name", named("fast", every=6))
def test_ignored_layers_keep_their_units(name: str) -> None:
    entry, model, graph = traced(name)
    layers = graph.producers(graph.groups[0])
    if not layers:
        pytest.skip("the first group is made by no layer")
    layer = layers[0][0].name
    prefix = f"{layer}." if layer else ""
    made = [s for g in graph.groups for s in g.slots_with("out") if s.tensor.startswith(prefix)]
    args, kwargs = entry.example()
    held = trace(model, args, ignored_layers=[layer], example_kwargs=kwargs)
    own = [s for g in held.groups for s in g.slots_with("out") if s.tensor.startswith(prefix)]
    assert made
    assert not own
    plan = oracles.half_plan(held)
    if plan.keep:
        small = shrink(model, plan)
        assert oracles.deviation(entry, model, small) < oracles.TOLERANCE
        for slot in made:
            assert small.get_parameter(slot.tensor).shape[slot.axis] == held.shapes[slot.tensor][slot.axis]


@pytest.mark.parametrize("name", named("fast", every=3))
def test_plan_replays_on_a_fresh_instance(name: str) -> None:
    """A plan made on one instance applies to another of the same class, with other weights."""
    entry, _, graph = traced(name)
    other = oracles.perturb(entry.build(), seed=7)
    small = shrink(other, oracles.half_plan(graph))
    assert oracles.deviation(entry, other, small) < oracles.TOLERANCE


@pytest.mark.parametrize("name", named("fast", every=3))
def test_shrunk_models_train(name: str) -> None:
    """Gradients reach every parameter of the shrunk model that they reach in the original."""
    entry, model, graph = traced(name)
    small = copy.deepcopy(shrink(model, oracles.half_plan(graph)))
    args, kwargs = entry.example(seed=4)
    reached = []
    for net in (model, small):
        params = dict(net.named_parameters())
        loss = sum(y.square().sum() for y in oracles.tensors(net(*args, **kwargs)))
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        reached.append({n for n, g in zip(params, grads, strict=True) if g is not None})
    assert reached[0] == reached[1]


@pytest.mark.parametrize("name", named("fast", every=6))
def test_shrunk_models_can_be_traced_and_shrunk_again(name: str) -> None:
    """Pruning in steps: the oracle compares the second step with the very first model."""
    entry, model, graph = traced(name)
    first = oracles.random_plan(graph, keep=0.7)
    once = shrink(model, first, check=False)
    args, kwargs = entry.example()
    again = trace(once, args, example_kwargs=kwargs)
    left = sum(len(first.keep.get(g.name, range(g.size))) for g in graph.groups)
    assert sum(g.size for g in again.groups) >= left
    twice = shrink(once, oracles.half_plan(again, seed=1))
    assert oracles.size(twice) < oracles.size(once) < oracles.size(model)
    assert oracles.deviation(entry, model, twice) < oracles.TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["LeNet-5, Flatten", "MobileNetV2 (depthwise)", "LSTM", "Fused qkv (timm)"])
def test_other_types_stay_what_they_are(name: str, dtype: torch.dtype) -> None:
    """The check computes in float64, the model in its own type."""
    entry = BANK[name]
    model = oracles.perturb(entry.build()).to(dtype)
    args = tuple(x.to(dtype) for x in entry.example()[0])
    small = shrink(model, oracles.half_plan(trace(model, args)))
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(*args).dtype == dtype
    assert oracles.size(small) < oracles.size(model)


@pytest.mark.parametrize("name", named("refused"))
def test_refusals_are_clear(name: str) -> None:
    entry = BANK[name]
    if entry.needs:
        pytest.importorskip(entry.needs)
    model = oracles.perturb(entry.build())
    before = state(model)
    args, kwargs = entry.example()
    with pytest.raises(SecateurError, match=entry.refused) as caught:
        graph = trace(model, args, example_kwargs=kwargs)
        shrink(model, oracles.half_plan(graph))
    assert isinstance(caught.value, (CaptureError, NothingToPrune))
    assert same(before, state(model))
