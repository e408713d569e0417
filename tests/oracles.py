"""What a shrunk network should compute, found without looking at any plan.

The parameters of a perturbed network are distinct random numbers.  So the values of a shrunk network
say which entries of the original they are: `unshrunk` puts each back where it came from, zeros
everywhere else, and the original class, at its original size, then says what the output should be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from bank import Entry
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.float64 import in_float64
from secateur.core import Plan, PruningGraph

TOLERANCE = 1e-10
PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class NotAPart(Exception):
    """A network's parameters are not entries of the original's."""


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter and running statistic off its initial value, in place.

    Biases that are 0, gains that are 1 and statistics of 0 and 1 hide mistakes; and afterwards all
    entries are distinct, which `unshrunk` needs.
    """
    generator = Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter += noise(parameter) * (fan**-0.5 if parameter.ndim > 1 else 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.2 * noise(buffer)
            if name.endswith("running_var"):
                buffer *= 0.5 + noise(buffer).abs()
    return model


def entries(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return all parameter entries sorted, and for each its place in the concatenation of parameters."""
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    order = np.argsort(flat, kind="stable")
    if (np.diff(flat[order]) == 0).any():
        raise ValueError("the original has equal entries; perturb it first")
    return flat[order], order


def places(original: nn.Module, small: nn.Module) -> dict[str, np.ndarray]:
    """Return, for each parameter of `small`, the places of its entries among those of `original`.

    A place is an index into the concatenation of the original's parameters.  A parameter whose
    entries come from several, or which are no entries at all, raises `NotAPart`.
    """
    values, order = entries(original)
    ends = np.cumsum([p.numel() for p in original.parameters()])
    found = {}
    for name, parameter in small.named_parameters():
        flat = parameter.detach().to(torch.float64).numpy().reshape(-1)
        at = np.minimum(np.searchsorted(values, flat), len(values) - 1)
        if (values[at] != flat).any():
            raise NotAPart(f"{name} holds values that the original does not have")
        found[name] = order[at]
        if len(np.unique(np.searchsorted(ends, order[at], side="right"))) > 1:
            raise NotAPart(f"{name} mixes several of the original's parameters")
    return found


def unshrunk(original: nn.Module, small: nn.Module) -> nn.Module:
    """Return a copy of `original` in which every tensor entry that `small` lacks is zero."""
    full = copy.deepcopy(original)
    kept = torch.zeros(sum(p.numel() for p in original.parameters()), dtype=torch.bool)
    for place in places(original, small).values():
        kept[torch.from_numpy(place)] = True
    start = 0
    with torch.no_grad():
        for parameter in full.parameters():
            alive = kept[start : start + parameter.numel()].view(parameter.shape)
            parameter.copy_(torch.where(alive, parameter, 0))
            start += parameter.numel()
        for name, buffer in full.named_buffers():
            shorter = dict(small.named_buffers()).get(name)
            if buffer.is_floating_point() and shorter is not None and shorter.shape != buffer.shape:
                zero_lost_slices(name, buffer, shorter)
        for name, module in full.named_modules():
            for key, value in vars(module).items():  # position tables that are no buffers
                shorter = vars(small.get_submodule(name)).get(key) if isinstance(value, Tensor) else None
                if isinstance(shorter, Tensor) and shorter.shape != value.shape:
                    vars(module)[key] = value.clone()
                    zero_lost_slices(f"{name}.{key}", vars(module)[key], shorter)
    return full.train().eval()  # some models compute tables from weights when they change the mode


def zero_lost_slices(name: str, buffer: Tensor, shorter: Tensor) -> None:
    """Set the slices of a buffer that `shorter` lacks along one axis to zero, in place."""
    axis, *more = (i for i in range(buffer.ndim) if buffer.shape[i] != shorter.shape[i])
    if more:
        raise NotAPart(f"{name} lost indices on several axes")
    slices, kept = buffer.movedim(axis, 0), torch.zeros(buffer.shape[axis], dtype=torch.bool)
    position = 0
    for left in shorter.movedim(axis, 0):
        while not torch.equal(slices[position], left):
            position += 1
            if position == len(slices):
                raise NotAPart(f"{name} holds values that the original does not have")
        kept[position] = True
        position += 1
    slices[~kept] = 0


def narrow(norm: nn.Module, kept: Tensor, axis: int) -> Callable[..., Tensor]:
    """Return a forward hook that replaces a module by `norm` on the kept features, zeros elsewhere."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        y = norm(args[0].index_select(axis, kept))
        return torch.zeros_like(output).index_copy(axis, kept, y)

    return hook


def renormalised(original: nn.Module, small: nn.Module) -> nn.Module | None:
    """Return `unshrunk` with every layer or group normalisation that `small` narrowed narrowed too.

    None if no such layer was narrowed.  Where `small` agrees with this network but not with
    `unshrunk`, its indices are right, but it is not the masked network: other statistics are taken.
    """
    full, where, found = unshrunk(original, small), places(original, small), False
    starts = np.cumsum([0] + [p.numel() for p in original.parameters()])
    first = {name: start for (name, _), start in zip(original.named_parameters(), starts, strict=False)}
    for name, norm in small.named_modules():
        weight = f"{name}.weight"
        if "Norm" not in type(norm).__name__ or weight not in where or isinstance(norm, PER_CHANNEL):
            continue
        if len(where[weight]) < original.get_parameter(weight).numel():
            kept = torch.from_numpy(where[weight] - first[weight])
            axis = 1 if isinstance(norm, nn.GroupNorm) else -1
            full.get_submodule(name).register_forward_hook(narrow(norm, kept, axis))
            found = True
    return full if found else None


def tensors(outputs: Any) -> list[Tensor]:
    """Return the floating tensors of a model's outputs, in order."""
    leaves = tree_leaves(dict(outputs) if isinstance(outputs, dict) else outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def run(model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    """Run a model without gradients, its casts to float32 undone, and return its floating outputs."""
    with in_float64(), torch.random.fork_rng():
        torch.manual_seed(0)  # some models draw numbers
        return tensors(model(*example[0], **example[1]))


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference relative to the largest value, inf where shapes differ."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return float("inf")
    scale = max(float(y.abs().max()) for y in theirs)
    worst = max(float((x - y).abs().max()) for x, y in zip(ours, theirs, strict=True))
    return worst / scale if np.isfinite(worst) else float("inf")


def other_examples(entry: Entry) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Make inputs that tracing has not seen: the same batch size, and another."""
    yield entry.example(seed=1)
    yield entry.example(batch=entry.batch + 2, seed=2)


def deviation(entry: Entry, original: nn.Module, small: nn.Module) -> float:
    """Return how far `small` is from the original with the entries that `small` lacks set to zero."""
    return gap(entry, small, unshrunk(original, small))


def gap(entry: Entry, small: nn.Module, full: nn.Module) -> float:
    """Return the largest relative difference of two networks on inputs that tracing has not seen."""
    return max(distance(run(small, example), run(full, example)) for example in other_examples(entry))


def size(model: nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def random_plan(graph: PruningGraph, seed: int = 0, keep: float = 0.5, only: str | None = None) -> Plan:
    """Keep a random share, rounded up, of the units of every group, or of one and those it counts with."""
    generator = np.random.default_rng(seed)
    kept = {}
    named = next(
        ({g.name for g in s} for s in graph.counted_together() if only in [g.name for g in s]), set()
    )
    for group in graph.groups:
        order = generator.permutation(group.size)
        if group.size > 1 and (only is None or group.name in named):
            kept[group.name] = np.sort(order[: math.ceil(keep * group.size)]).astype(np.int64)
    return Plan(graph, "random units", kept, seed=seed)


def half_plan(graph: PruningGraph, seed: int = 0, only: str | None = None) -> Plan:
    """Keep a random half of the units of every group, or of one and those it counts with."""
    return random_plan(graph, seed, 0.5, only)
