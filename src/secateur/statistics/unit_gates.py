"""Derivatives of a loss by gates on units, one for each example."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import Group, InputError, PruningGraph, Slot
from secateur.statistics.loss import Loss
from secateur.statistics.weight_inputs import InputHooks, WeightInput

__all__ = ["Gates"]

PARTS = 8  # of a batch, to find out which axis counts its examples


class Gates:
    """Derivatives of the loss by a gate on each unit, one for each example.

    A gate z multiplies a unit wherever a weight reads it; at z = 1 nothing changes, at z = 0 the unit is
    gone.  A unit that no weight reads has its gate on all that produces it.

    If possible, the gates multiply the inputs of the weights, and one backward pass is enough for a batch.
    Otherwise (recurrent kernels, units that nothing reads, models that vmap does not take over examples)
    they multiply the weights, W[:, i] z_i, which is equivalent, and the examples are run one by one.

    Args:
        model: The model.
        graph: Its trace.
        loss: (outputs, targets) -> mean over the examples of a batch.
    """

    def __init__(self, model: nn.Module, graph: PruningGraph, loss: Loss) -> None:
        """Find the weights and inputs that each group's gates multiply."""
        self._model, self._loss = model, loss
        self._parameters = {k: p.detach() for k, p in model.named_parameters()}
        self._sizes = {g.name: g.size for g in graph.groups}
        self._weights: dict[str, list[tuple[str, int, Tensor]]] = defaultdict(list)
        self._inputs: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
        self._reading: dict[str, tuple[str, int]] = {}
        self._batched = True
        for group in graph.groups:
            self._add_group(graph, group)
        self._split: tuple[int, int] | None = None

    def _add_group(self, graph: PruningGraph, group: Group) -> None:
        consumers = graph.consumers(group)
        for slot in [slot for _, slot in consumers] or group.slots_with("out"):
            if slot.tensor in self._parameters:
                for owner in _owners(slot, graph.shapes[slot.tensor][slot.axis]):
                    owner = owner.to(self._parameters[slot.tensor].device)
                    self._weights[slot.tensor].append((group.name, slot.axis, owner))
        self._batched &= bool(consumers) and all(layer.kind != "recurrent" for layer, _ in consumers)
        for layer, slot in consumers:
            key = graph.input_key(layer)
            self._reading[key] = (layer.weight, slot.axis)
            for owner in _owners(slot, graph.shapes[slot.tensor][slot.axis]):
                owner = owner.repeat(layer.groups if layer.kind == "conv" else 1)
                self._inputs[key].append((group.name, owner.to(self._parameters[layer.weight].device)))

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any) -> dict[str, Tensor]:
        """Return, by group, the sum over the examples of (d loss / d gate)^2, float64 [units]."""
        if not self._weights:
            return {}
        inputs = (args, dict(kwargs))
        if self._split is None:
            self._split = self._find_split(inputs, targets)
        count, axes = _axes(inputs, targets, self._split)
        per_example = self._together(inputs, targets, axes) if self._batched else None
        if per_example is None:
            self._batched = False
            per_example = self._one_by_one(inputs, targets, axes, count)
        return {k: g.detach().double().square().sum(0) for k, g in per_example.items()}

    def _gates(self) -> dict[str, Tensor]:
        like = next(p for p in self._parameters.values() if p.is_floating_point())
        return {k: torch.ones(n, dtype=like.dtype, device=like.device) for k, n in self._sizes.items()}

    def _together(self, inputs: Any, targets: Any, axes: Any) -> dict[str, Tensor] | None:
        seen: set[str] = set()

        def loss(gates: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
            def gate(read: WeightInput) -> Tensor:
                seen.add(read.key)
                value = read.x
                for group, owner in self._inputs[read.key]:
                    value = value * _spread(gates[group], owner, read.axis, value)
                return value

            (args, kwargs), target = _unsqueezed((x, y), axes)
            weights = {k: (self._parameters[name], axis) for k, (name, axis) in self._reading.items()}
            with InputHooks(weights, gate):
                outputs = functional_call(self._model, self._parameters, args, kwargs)
            return self._loss(outputs, target)

        try:
            # Fused attention has no rule for batches of batches.
            with sdpa_kernel(SDPBackend.MATH):
                derivatives = vmap(grad_and_value(loss), (None, *axes))(self._gates(), inputs, targets)[0]
        except (RuntimeError, TypeError, ValueError):
            # The examples one by one give the same numbers, or the model's own error.
            return None
        return derivatives if seen == set(self._reading) else None

    def _one_by_one(self, inputs: Any, targets: Any, axes: Any, count: int) -> dict[str, Tensor]:
        derive = grad_and_value(self._weighted)
        parts = [derive(self._gates(), *_examples((inputs, targets), axes, i, 1))[0] for i in range(count)]
        return {k: torch.stack([part[k] for part in parts]) for k in self._sizes}

    def _weighted(self, gates: Mapping[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        gated = dict(self._parameters)
        for name, places in self._weights.items():
            for group, axis, owner in places:
                gated[name] = gated[name] * _spread(gates[group], owner, axis, gated[name])
        args, kwargs = inputs
        return self._loss(functional_call(self._model, gated, args, kwargs), targets)

    def _find_split(self, inputs: Any, targets: Any) -> tuple[int, int]:
        """Return the axes of inputs and targets that count the examples: the losses of parts add up.

        The first axes are taken if they fit to half a percent, else those that fit best.
        """
        with torch.no_grad():
            whole = self._plain_loss((inputs, targets))
            misfits = {}
            for split in itertools.product((0, 1), (0, 1)):
                if (misfit := self._misfit(whole, inputs, targets, split)) is not None:
                    misfits[split] = round(misfit / (abs(whole) + 1e-12), 2)
                    if misfits[split] == 0:
                        return split
        if not misfits:
            raise InputError(
                "Taylor needs the loss of one example at a time, and the loss or the model cannot take one, "
                "along the first or second axis of inputs and targets"
            )
        return min(misfits, key=lambda split: (misfits[split], split))

    def _misfit(self, whole: float, inputs: Any, targets: Any, split: tuple[int, int]) -> float | None:
        """Return how far the losses of parts of a batch are from adding up; None if one cannot be taken.

        The second axis of a text counts its tokens, hundreds of them: a few parts show as well whether the
        loss adds up over them.
        """
        try:
            count, axes = _axes(inputs, targets, split)
            cuts = [count * i // min(count, PARTS) for i in range(min(count, PARTS) + 1)]
            if count > PARTS:
                self._plain_loss(_examples((inputs, targets), axes, 0, 1))  # one alone must be possible
            losses = [
                self._plain_loss(_examples((inputs, targets), axes, start, end - start))
                for start, end in itertools.pairwise(cuts)
            ]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return None
        sizes = [(end - start) / count for start, end in itertools.pairwise(cuts)]
        mean = sum(size * loss for size, loss in zip(sizes, losses, strict=True))
        return min(abs(mean - whole), abs(sum(losses) - whole))

    def _plain_loss(self, batch: tuple[Any, Any]) -> float:
        (args, kwargs), targets = batch
        return float(self._loss(functional_call(self._model, self._parameters, args, kwargs), targets))


def _spread(gates: Tensor, owner: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return the gate of each index of an axis, 1 if it has no owner, in a shape that multiplies `like`."""
    z = torch.cat([gates, gates.new_ones(1)])[owner].to(like.dtype)
    return z.reshape([-1 if d == axis else 1 for d in range(like.ndim)])


def _owners(slot: Slot, size: int) -> Iterator[Tensor]:
    """Yield which unit owns each index of the axis (-1: none), several times if owners overlap."""
    index = slot.index.reshape(-1)
    unit = np.repeat(np.arange(len(slot.index)), slot.index.shape[1])
    while len(index):
        _, first = np.unique(index, return_index=True)
        owner = np.full(size, -1, dtype=np.int64)
        owner[index[first]] = unit[first]
        yield torch.from_numpy(owner)
        index, unit = np.delete(index, first), np.delete(unit, first)


def _axes(inputs: Any, targets: Any, split: tuple[int, int]) -> tuple[int, Any]:
    """Return the number of examples, and the axis of each tensor that counts them (None if it is shared).

    The targets say how many there are; without targets, the first input.
    """
    counted, main = (targets, split[1]) if _tensors(targets) else (inputs, split[0])
    count = _tensors(counted)[0].shape[main]

    def find_axes(tree: Any, first: int) -> Any:
        def axis(x: Any) -> int | None:
            fits = isinstance(x, Tensor)
            return next((d for d in (first, 1 - first) if fits and d < x.ndim and x.shape[d] == count), None)

        return tree_map(axis, tree)

    axes = find_axes(inputs, split[0]), find_axes(targets, split[1])
    if all(a is None for a in _leaves(axes[0])):
        raise IndexError(f"no input has {count} examples")
    return count, axes


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=lambda x: x is None)


def _examples(value: Any, axes: Any, start: int, count: int) -> Any:
    def pick(x: Any, a: int | None) -> Any:
        return x if a is None else x.narrow(a, start, count)

    return tree_map(pick, value, axes, is_leaf=lambda x: x is None)


def _unsqueezed(value: Any, axes: Any) -> Any:
    def restore(x: Any, a: int | None) -> Any:
        return x if a is None else x.unsqueeze(a)

    return tree_map(restore, value, axes, is_leaf=lambda x: x is None)
