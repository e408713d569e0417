"""The tensors of a model that a plan keeps: check their shapes, copy them from the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.core import IntArray, PlanError, PruningGraph, shorten
from secateur.core.indices import kept_axes
from secateur.execution import plain_tensors, tensors_of
from secateur.modules.padded_linear import PaddedLinear

__all__ = [
    "check_shapes",
    "copy_kept_tensors",
    "named_tensors",
    "places",
    "state_without_places",
]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, a tied tensor under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def places(model: nn.Module) -> set[str]:
    """Return the names of the buffers that say where zeros are, which the original does not have."""
    padded = (name for name, module in model.named_modules() if isinstance(module, PaddedLinear))
    return {f"{name}.{table}".lstrip(".") for name in padded for table in ("inputs", "outputs")}


def state_without_places(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model without the buffers of `places`."""
    gone = places(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in gone}


def check_shapes(model: nn.Module, expected: Mapping[str, tuple[int, ...]], what: str, remedy: str) -> None:
    """Compare the shapes of a model's tensors, each by its first name, with the expected ones.

    Raises:
        PlanError: If a tensor is missing, has another shape, or is not expected.
    """
    plain = {name: tensor for name, tensor in plain_tensors(model).items() if name in expected}
    gone, tensors = places(model), {**tensors_of(model), **plain}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in gone}
    wrong = [
        f"{name!r} is missing"
        if name not in shapes
        else f"{name!r} is not expected"
        if name not in expected
        else f"{name!r} has shape {shapes[name]} instead of {tuple(expected[name])}"
        for name in {**expected, **shapes}
        if shapes.get(name) != expected.get(name)
    ]
    if wrong:
        raise PlanError(f"{what} does not fit the plan: {shorten(wrong, '; ')}. {remedy}")


@torch.no_grad()
def copy_kept_tensors(
    source: nn.Module, target: nn.Module, graph: PruningGraph, keep: Mapping[str, IntArray]
) -> None:
    """Copy into `target`, in place, the tensors of `source` without the removed units.

    Args:
        source: A model of the graph.
        target: The same model after the removal, with any values.
        graph: The graph that `keep` refers to.
        keep: Group name -> units that stay.
    """
    kept = kept_axes(graph, keep)
    sources, zeros = dict(named_tensors(source)), places(target)
    for name, tensor in named_tensors(target):
        if name in zeros:
            continue
        value = sources[name].detach()
        for axis in range(value.ndim):
            if (name, axis) in kept:
                index = torch.from_numpy(kept[name, axis].nonzero()[0])
                value = value.index_select(axis, index.to(value.device))
        tensor.data = value.clone()
