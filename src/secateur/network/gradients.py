"""Gradients of a loss, gates on units, and synaptic flow; the model's own parameters are not touched."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import Group, InputError, IntArray, Network, Slot
from secateur.network.state import tensors_of, untouched

__all__ = ["Gates", "SynapticFlow", "cross_entropy", "gradients", "logits"]

Loss = Callable[[Any, Any], Tensor]


def logits(outputs: Any) -> Tensor:
    """Return the tensor of scores in a model's outputs: the tensor, `.logits`, or the first of a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return outputs.logits
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    first = next(iter(values), None) if isinstance(outputs, (Mapping, tuple, list)) else None
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    if isinstance(first, Tensor):
        return first
    raise InputError(f"no tensor of logits among the outputs ({type(outputs).__name__}); pass loss=callable")


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Return the mean cross-entropy of logits.

    Args:
        outputs: Logits [B, C] with targets [B]; [B, T, V] with [B, T]; [B, C, *space] with [B, *space];
            or an object with `.logits`.
        targets: Class numbers (-100: left out), or probabilities of the logits' shape.

    Raises:
        InputError: Shapes that do not match, one class only, or class numbers out of range.
    """
    scores = logits(outputs)
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor for cross-entropy; got {type(targets).__name__}")
    if scores.ndim > 2 and targets.shape == scores.shape[:-1]:
        scores, targets = scores.reshape(-1, scores.shape[-1]), targets.reshape(-1)
    soft = targets.is_floating_point() and targets.shape == scores.shape
    if scores.ndim < 2 or scores.shape[1] < 2 or not (
        soft or (not targets.is_floating_point() and targets.shape == (scores.shape[0], *scores.shape[2:]))
    ):
        raise InputError(
            f"cross-entropy cannot compare outputs {tuple(scores.shape)} with {targets.dtype} targets "
            f"{tuple(targets.shape)}; pass loss=callable(outputs, targets)"
        )
    if not soft:
        targets = targets.long()
        _check_classes(targets, scores.shape[1])
    return F.cross_entropy(scores, targets)


def _check_classes(targets: Tensor, classes: int) -> None:
    if torch._C._functorch.is_batchedtensor(targets):
        return
    wrong = targets[(targets >= classes) | ((targets < 0) & (targets != -100))]
    if wrong.numel():
        raise InputError(f"targets go from 0 to {classes - 1} for {classes} classes; got {int(wrong[0])}")


def gradients(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any, loss: Loss
) -> dict[str, Tensor]:
    """Return the gradient of the loss of one batch by every floating parameter, zero where it has none."""
    parameters = {k: p.detach().requires_grad_() for k, p in model.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        value = loss(functional_call(model, parameters, args, dict(kwargs)), targets)
        _check_loss(value)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {k: torch.zeros_like(p) if g is None else g.detach() for (k, p), g in pairs}


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a loss must be one number for the batch; got {shape}")
    if not value.requires_grad:
        raise InputError("the loss does not depend on the parameters: nothing can be derived from it")


class Gates:
    """Derivatives of the loss by a gate on each unit, example by example.

    A gate z multiplies a unit wherever a weight reads it; at z = 1 nothing changes, at z = 0 the unit is
    gone.  Since reading is linear, the gates are put on the weights: W[:, i] z_i.  A unit that no weight
    reads has its gate on everything that makes it.

    Args:
        model: The model.
        network: Its trace.
        loss: (outputs, targets) -> mean over the examples of a batch.
    """

    def __init__(self, model: nn.Module, network: Network, loss: Loss) -> None:
        """Find where each group's gates sit."""
        self._model, self._loss = model, loss
        self._parameters = {k: p.detach() for k, p in model.named_parameters()}
        self._maps: dict[str, list[tuple[str, int, Tensor]]] = defaultdict(list)
        self._sizes = {g.name: g.size for g in network.groups}
        for group in network.groups:
            for slot in _gated_slots(network, group):
                for owner in _owners(slot, network.shapes[slot.tensor][slot.axis]):
                    device = self._parameters[slot.tensor].device
                    self._maps[slot.tensor].append((group.name, slot.axis, torch.as_tensor(owner, device=device)))
        self._split: tuple[int, int] | None = None
        self._batched = True

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any) -> dict[str, Tensor]:
        """Return, by group, the sum over the examples of (d loss / d gate)^2, float64 [units]."""
        inputs = (args, dict(kwargs))
        if self._split is None:
            self._split = self._find_split(inputs, targets)
        count, axes = _axes(inputs, targets, self._split)
        per_example = self._vmapped(inputs, targets, axes, count) if self._batched else None
        if per_example is None:
            self._batched = False
            per_example = self._looped(inputs, targets, axes, count)
        return {k: g.double().square().sum(0) for k, g in per_example.items()}

    def _gates(self) -> dict[str, Tensor]:
        like = next(iter(self._parameters.values()))
        return {k: torch.ones(n, dtype=like.dtype, device=like.device) for k, n in self._sizes.items()}

    def _one(self, gates: Mapping[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        gated = {}
        for tensor, maps in self._maps.items():
            value = self._parameters[tensor]
            for group, axis, owner in maps:
                z = torch.cat([gates[group], gates[group].new_ones(1)])[owner]
                value = value * z.reshape([-1 if d == axis else 1 for d in range(value.ndim)]).to(value.dtype)
            gated[tensor] = value
        args, kwargs = inputs
        return self._loss(functional_call(self._model, gated, args, kwargs), targets)

    def _vmapped(self, inputs: Any, targets: Any, axes: Any, count: int) -> dict[str, Tensor] | None:
        def one(gates: Any, x: Any, y: Any) -> Tensor:
            return self._one(gates, *_unsqueezed((x, y), axes))

        largest = max(self._parameters[k].numel() for k in self._maps)
        chunk = max(1, min(count, (1 << 25) // largest))
        derive = vmap(grad_and_value(one), (None, *axes), chunk_size=chunk)
        try:
            return derive(self._gates(), inputs, targets)[0]
        except (RuntimeError, TypeError, ValueError):
            # Some models cannot be vectorised over examples; one by one gives the same numbers, or the
            # model's own error.
            return None

    def _looped(self, inputs: Any, targets: Any, axes: Any, count: int) -> dict[str, Tensor]:
        derive = grad_and_value(self._one)
        parts = [derive(self._gates(), *_example((inputs, targets), axes, i))[0] for i in range(count)]
        return {k: torch.stack([part[k] for part in parts]) for k in self._sizes}

    def _find_split(self, inputs: Any, targets: Any) -> tuple[int, int]:
        """Find along which axes of inputs and targets the examples lie: there the losses add up."""
        with torch.no_grad():
            gates = self._gates()
            whole = float(self._one(gates, inputs, targets))
            for split in itertools.product((0, 1), (0, 1)):
                losses = self._losses(gates, inputs, targets, split)
                if losses and np.isclose(sum(losses) / len(losses), whole, rtol=1e-2, atol=1e-6):
                    return split
                if losses and np.isclose(sum(losses), whole, rtol=1e-2, atol=1e-6):
                    return split
        raise InputError(
            "the loss of a batch is neither the mean nor the sum of the losses of its examples, taken along "
            "the first or second axis of inputs and targets: Taylor needs a loss of single examples"
        )

    def _losses(self, gates: Any, inputs: Any, targets: Any, split: tuple[int, int]) -> list[float]:
        try:
            count, axes = _axes(inputs, targets, split)
            parts = (_example((inputs, targets), axes, i) for i in range(count))
            return [float(self._one(gates, *part)) for part in parts]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return []


def _gated_slots(network: Network, group: Group) -> Iterator[Slot]:
    own = [slot for _, slot in network.readers(group)] or list(group.makers())
    yield from (slot for slot in own if slot.tensor in network.parameters)


def _owners(slot: Slot, size: int) -> Iterator[IntArray]:
    """Yield arrays that say which unit owns each index of the axis, -1: none; several where owners overlap."""
    index = slot.index.reshape(-1)
    unit = np.repeat(np.arange(len(slot.index)), slot.index.shape[1])
    while len(index):
        _, first = np.unique(index, return_index=True)
        owner = np.full(size, -1, dtype=np.int64)
        owner[index[first]] = unit[first]
        yield owner
        index, unit = np.delete(index, first), np.delete(unit, first)


def _axes(inputs: Any, targets: Any, split: tuple[int, int]) -> tuple[int, Any]:
    """Return the number of examples, and the axis of each tensor that counts them (None: shared)."""
    main, other = split[0], 1 - split[0]
    count = next(t.shape[split[1]] for t in tree_leaves(targets) if isinstance(t, Tensor))

    def axis(x: Any) -> int | None:
        if not isinstance(x, Tensor):
            return None
        return next((d for d in (main, other) if d < x.ndim and x.shape[d] == count), None)

    axes = tree_map(axis, inputs), tree_map(lambda t: split[1] if isinstance(t, Tensor) else None, targets)
    if all(a is None for a in _leaves(axes[0])):
        raise IndexError(f"no input has {count} examples")
    return count, axes


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=lambda x: x is None)


def _example(value: Any, axes: Any, i: int) -> Any:
    def pick(x: Any, a: int | None) -> Any:
        return x if a is None else x.narrow(a, i, 1)

    return tree_map(pick, value, axes, is_leaf=lambda x: x is None)


def _unsqueezed(value: Any, axes: Any) -> Any:
    def restore(x: Any, a: int | None) -> Any:
        return x if a is None else x.unsqueeze(a)

    return tree_map(restore, value, axes, is_leaf=lambda x: x is None)
