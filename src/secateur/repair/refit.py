"""Repair one reader after the other: solve it anew from what really reaches it in the shrunk network.

`fold` fits every reader to the activations of the original, so what earlier layers get wrong reaches later
ones unseen.  Here, in the order of execution, the weights and the bias of each reader are solved from its
inputs z in the network as it is by then, so that it gives what it gives in the original on x:

    min over V, c of  mean |V z + c - (W x + b)|^2 + ridge |V - V_now|^2,

in float64 from streamed moments of the pairs (z, W x), the ridge chosen on batches kept apart.  A step that
brings the network no nearer to the original there is not taken.

Source: the asymmetric reconstruction of He, Zhang and Sun, ICCV 2017 (arXiv:1707.06168), section 3.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError, IntArray, Layer, Plan, PruningGraph
from secateur.core.indices import kept_indices
from secateur.execution import untouched
from secateur.repair.fold import FARTHER, as_matrix, set_matrix
from secateur.statistics.collect import checked_batches, consumer_layers, observe_inputs
from secateur.statistics.moments import patches
from secateur.statistics.weight_inputs import WeightInput

__all__ = ["refit"]

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
WIDEST = 2304  # features, taps included, above which a reader is left alone: its matrices would be too large
ROWS, EXAMPLES = 4096, 16  # rows, and examples of images whose patches are cut, in a block

Judge = Callable[[nn.Module], float]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Means over all rows that reached a reader: z in the shrunk network, t = W x in the original.

    Attributes:
        gram: mean z z^T, float64 [F, F].
        cross: mean t z^T, float64 [R, F].
        z: mean z [F].
        t: mean t [R].
        square: mean |t|^2.
    """

    gram: Tensor
    cross: Tensor
    z: Tensor
    t: Tensor
    square: float

    def error(self, V: Tensor, c: Tensor) -> float:
        """Return the mean squared distance of V z + c from t."""
        quadratic = (V @ self.gram * V).sum() + 2 * (c * (V @ self.z)).sum() + c.square().sum()
        return float(quadratic - 2 * (V * self.cross).sum() - 2 * (c * self.t).sum()) + self.square


def refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    fitting: Sequence[Any],
    guard: Sequence[Any] | None = None,
    judge: Judge | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a repaired copy of the shrunk model, and by reading weight what was done.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`, folded or not.
        plan: What went, on that model.
        fitting: Batches to fit on.
        guard: Batches kept apart, on which the ridge is chosen; those of `fitting` otherwise.
        judge: Says how far a model is from the original on batches kept apart (smaller is better); a step
            that it does not like is not taken.

    Returns:
        The model, and notes: for each reader the relative output error before (`before`) and after (`after`)
        on the batches that chose the ridge, the `ridge`, and whether the step was `undone`, and why; or
        why it was left alone (`skipped`).

    Raises:
        InputError: Batches that the models cannot take, or a `small` that is no shrunk `model`.

    Example:
        >>> from secateur.apply.shrink import shrink
        >>> from secateur.tracing.trace import trace
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        >>> plan = Plan(trace(mlp, x[:2]), "first six", keep={"0": np.arange(6)})
        >>> small = shrink(mlp, plan)
        >>> better, notes = refit(mlp, small, plan, [(x, None)])
        >>> bool((better(x) - mlp(x)).square().sum() < (small(x) - mlp(x)).square().sum())
        True
    """
    best = judge(small) if judge is not None else 0.0
    notes: dict[str, Any] = {}
    consumers = consumer_layers(plan.graph)
    uses = Counter(layer.weight for layer in consumers.values())
    for key, layer in consumers.items():
        reason = _obstacle(layer, small, plan, uses[layer.weight])
        found = None if reason else _Step(model, small, plan, key, layer).solve(fitting, guard)
        if reason or isinstance(found, str):
            notes[layer.weight] = {"skipped": reason or found}
        if found is None or isinstance(found, str):
            continue
        trial, note = found
        far = judge(trial) if judge is not None else note["after"] - note["before"]
        note["undone"] = not far < best
        if note["undone"]:
            note["why"] = FARTHER
        notes[layer.weight] = note
        if not note["undone"]:
            small, best = trial, far if judge is not None else 0.0
    return copy.deepcopy(small), notes


def _obstacle(layer: Layer, small: nn.Module, plan: Plan, uses: int) -> str:
    if layer.weight in plan.masks:
        return "single weights are masked"
    if layer.kind == "conv_transpose" or layer.groups > 1:
        return "grouped and transposed convolutions are folded only"
    try:
        weight = small.get_parameter(layer.weight)
    except AttributeError as error:
        raise InputError(f"the shrunk model has no {layer.weight!r}: it is not of this plan") from error
    if uses + sum(p is weight for _, p in small.named_parameters(remove_duplicate=False)) > 2:
        return "the weight is tied to another"
    _, read, taps = as_matrix(weight, layer).shape
    if taps > 1 and layer.kind != "conv":
        return "the weight has more than two axes"
    return f"{read * taps} features are more than {WIDEST}" if read * taps > WIDEST else ""


class _Step:
    """One reader of the shrunk model."""

    def __init__(self, model: nn.Module, small: nn.Module, plan: Plan, key: str, layer: Layer) -> None:
        self.model, self.small, self.graph = model, small, plan.graph
        self.key, self.layer = key, layer
        whole = as_matrix(model.get_parameter(layer.weight), layer).double()
        kept = kept_indices(plan.graph, plan.keep).get(layer.weight, {})
        self.rows: IntArray = kept.get(layer.out_axis or 0, np.arange(len(whole)))
        self.W = whole.flatten(1)[self.rows]

    def solve(
        self, fitting: Sequence[Any], guard: Sequence[Any] | None
    ) -> tuple[nn.Module, dict[str, Any]] | str | None:
        """Return the model with this reader solved anew, and a note.

        None where the same reaches it in both models; a text where it is not called alike in both.
        """
        pairs = self._pairs(fitting)
        if not isinstance(pairs, Pairs):
            return pairs
        held = self._pairs(guard) if guard else pairs
        if not isinstance(held, Pairs):
            return held
        now = as_matrix(self.small.get_parameter(self.layer.weight), self.layer).double()
        V, bias = now.flatten(1), self._bias(self.small)
        start = torch.zeros_like(pairs.t) if bias is None else bias - self._own_bias()
        before = held.error(V, start)
        trials = [(r, *_solved(pairs, V, r, bias is not None)) for r in RIDGES]
        ridge, best, c = min(trials, key=lambda trial: held.error(*trial[1:]))
        scale = max(held.square, 1e-300)
        note = {"before": before / scale, "after": held.error(best, c) / scale, "ridge": ridge}
        return self._written(best.reshape(now.shape), c), note

    def _bias(self, model: nn.Module) -> Tensor | None:
        return None if self.layer.bias is None else model.get_parameter(self.layer.bias).detach().double()

    def _own_bias(self) -> Tensor:
        bias = self._bias(self.model)
        return self.W.new_zeros(len(self.rows)) if bias is None else bias[self.rows]

    def _written(self, matrix: Tensor, shift: Tensor) -> nn.Module:
        result = copy.deepcopy(self.small)
        set_matrix(result.get_parameter(self.layer.weight), self.layer, matrix)
        if self.layer.bias is not None:
            with torch.no_grad():
                result.get_parameter(self.layer.bias).copy_(self._own_bias() + shift)
        return result

    def _pairs(self, batches: Sequence[Any]) -> Pairs | str | None:
        """Run both models and add up what reaches the reader in each."""
        total: list[Tensor] = []
        count = 0
        with untouched(self.model), untouched(self.small):
            for _, args, kwargs, _ in checked_batches(batches, self.model, {"gram"}):
                reads = [_reads_of(m, self.graph, self.key, args, kwargs) for m in (self.model, self.small)]
                if len({len(found) for found in reads}) > 1:
                    return "the shrunk module reads it in another way"
                both = list(zip(*reads, strict=True))
                if not total and all(_same(x.x, z.x) for x, z in both):
                    return None
                for x, z in both:
                    for rows, part in _row_pairs(x, z, self.W):
                        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
                        count += rows
        gram, cross, z_mean, t_mean, square = (part / count for part in total)
        return Pairs(gram, cross, z_mean, t_mean, float(square))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _solved(pairs: Pairs, V: Tensor, ridge: float, centred: bool) -> tuple[Tensor, Tensor]:
    z, t = (pairs.z, pairs.t) if centred else (torch.zeros_like(pairs.z), torch.zeros_like(pairs.t))
    S, C = pairs.gram - torch.outer(z, z), pairs.cross - torch.outer(t, z)
    A = S + ridge * S.diagonal().mean().clamp_min(1e-24) * torch.eye(len(S), dtype=S.dtype, device=S.device)
    best = V + torch.cholesky_solve((C - V @ S).T, torch.linalg.cholesky(A)).T
    return best, t - best @ z


def _reads_of(
    model: nn.Module, graph: PruningGraph, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[WeightInput]:
    found: list[WeightInput] = []

    def record(read: WeightInput) -> None:
        if read.key == key:
            found.append(read)

    with torch.no_grad(), observe_inputs(model, graph, record):
        model(*args, **kwargs)
    return found


def _row_pairs(x: WeightInput, z: WeightInput, W: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the number of rows of each block, and the sums of its products."""
    for a, b in zip(_row_blocks(x), _row_blocks(z), strict=True):
        t = a @ W.T
        yield len(b), [b.T @ b, t.T @ b, b.sum(0), t.sum(0), t.square().sum()]


def _row_blocks(read: WeightInput) -> Iterator[Tensor]:
    if read.window is not None:
        for example in read.x.split(EXAMPLES):
            yield patches(example, read.window).double()
    else:
        rows = read.x.movedim(read.axis, -1).reshape(-1, read.x.shape[read.axis])
        for block in rows.split(ROWS):
            yield block.double()
