"""Refit: solve each consumer again, one after the other, from what reaches it in the shrunk model.

`fold` fits every consumer, a layer that reads a group, to the activations of the original model, so later
layers do not see the errors of earlier ones.  `refit` follows the order of execution.  From the inputs z of a
consumer in the shrunk model as repaired so far, and its inputs x in the original, it solves

    min over V, c of  mean |V z + c - (W x + b)|^2 + ridge |V - V_now|^2

for its weight and bias, in float64 from streamed moments of the pairs (z, W x).  The ridge is chosen on
batches kept apart.  A step that brings the model no nearer to the original there is undone.

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
from secateur.execution import read_batches, untouched
from secateur.repair.fold import FARTHER, as_matrix, set_matrix
from secateur.statistics.collect import consumer_layers, observe_inputs
from secateur.statistics.moments import patches
from secateur.statistics.weight_inputs import WeightInput

__all__ = ["refit"]

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
WIDEST = 2304  # features, taps included, above which a consumer is skipped: its matrices would be too large
ROWS, EXAMPLES = 4096, 16  # rows, and examples of images cut into patches, in a block

Judge = Callable[[nn.Module], float]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Means over all rows that reach a consumer: z in the shrunk model, t = W x in the original.

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
    """Return a repaired copy of the shrunk model, and by weight of each consumer what was done.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`, folded or not.
        plan: What went from that model.
        fitting: Batches to fit on.
        guard: Batches kept apart, on which the ridge is chosen; by default those of `fitting`.
        judge: Measures how far a model is from the original on batches kept apart; smaller is better.  A step
            that does not reduce it is undone.

    Returns:
        The model, and for each consumer the relative output error `before` and `after` on the batches that
        chose the ridge, the `ridge`, and whether the step was `undone`, and `why`; or why it was `skipped`.

    Raises:
        InputError: If the models cannot take the batches, or `small` is not `model` shrunk by the plan.

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
        solved = reason or _Step(model, small, plan, key, layer).solve(fitting, guard)
        if solved is None:
            continue
        if isinstance(solved, str):
            notes[layer.weight] = {"skipped": solved}
            continue
        trial, note = solved
        distance = judge(trial) if judge is not None else note["after"] - note["before"]
        nearer = distance < best
        notes[layer.weight] = {**note, "undone": not nearer} | ({} if nearer else {"why": FARTHER})
        if nearer:
            small, best = trial, distance if judge is not None else 0.0
    return copy.deepcopy(small), notes


def _obstacle(layer: Layer, small: nn.Module, plan: Plan, uses: int) -> str:
    """Return why a consumer cannot be solved, or an empty string."""
    if layer.weight in plan.masks:
        return "single weights are masked"
    if layer.kind == "conv_transpose" or layer.groups > 1:
        return "grouped and transposed convolutions are folded only"
    try:
        weight = small.get_parameter(layer.weight)
    except AttributeError as error:
        raise InputError(f"the shrunk model has no {layer.weight!r}: it does not fit this plan") from error
    if uses + sum(p is weight for _, p in small.named_parameters(remove_duplicate=False)) > 2:
        return "the weight is tied to another"
    _, read, taps = as_matrix(weight, layer).shape
    if taps > 1 and layer.kind != "conv":
        return "the weight has more than two axes"
    return f"{read * taps} features are more than {WIDEST}" if read * taps > WIDEST else ""


class _Step:
    """One consumer of the shrunk model, to be solved."""

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
        """Return the model with this consumer solved, and a note.

        Return None if the same inputs reach it in both models, and the reason if it cannot be solved.
        """
        pairs = self._pairs(fitting)
        if not isinstance(pairs, Pairs):
            return pairs
        apart = self._pairs(guard) if guard else pairs
        if not isinstance(apart, Pairs):
            return apart
        now = as_matrix(self.small.get_parameter(self.layer.weight), self.layer).double()
        V, bias = now.flatten(1), self._bias(self.small)
        start = torch.zeros_like(pairs.t) if bias is None else bias - self._original_bias()
        before = apart.error(V, start)
        trials = [(r, *_solve(pairs, V, r, bias is not None)) for r in RIDGES]
        ridge, best, c = min(trials, key=lambda trial: apart.error(*trial[1:]))
        scale = max(apart.square, 1e-300)
        note = {"before": before / scale, "after": apart.error(best, c) / scale, "ridge": ridge}
        return self._copy_with(best.reshape(now.shape), c), note

    def _bias(self, model: nn.Module) -> Tensor | None:
        return None if self.layer.bias is None else model.get_parameter(self.layer.bias).detach().double()

    def _original_bias(self) -> Tensor:
        bias = self._bias(self.model)
        return self.W.new_zeros(len(self.rows)) if bias is None else bias[self.rows]

    def _copy_with(self, matrix: Tensor, shift: Tensor) -> nn.Module:
        """Return a copy of the shrunk model with this weight, and the shift added to the original's bias."""
        result = copy.deepcopy(self.small)
        set_matrix(result.get_parameter(self.layer.weight), self.layer, matrix)
        if self.layer.bias is not None:
            with torch.no_grad():
                result.get_parameter(self.layer.bias).copy_(self._original_bias() + shift)
        return result

    def _pairs(self, batches: Sequence[Any]) -> Pairs | str | None:
        """Run both models and add up what reaches the consumer in each."""
        total: list[Tensor] = []
        count = 0
        with untouched(self.model), untouched(self.small):
            for _, args, kwargs, _ in read_batches(batches, self.model):
                inputs = [_inputs_of(m, self.graph, self.key, args, kwargs) for m in (self.model, self.small)]
                if len(inputs[0]) != len(inputs[1]):
                    return "the shrunk model calls it a different number of times"
                both = list(zip(*inputs, strict=True))
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


def _solve(pairs: Pairs, V: Tensor, ridge: float, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the weight and the constant that solve the least squares with a ridge towards V.

    With the covariances S of z and C of t with z, the weight V + U satisfies U A = C - V S, where A is S plus
    the ridge times the mean of S's diagonal.
    """
    z, t = (pairs.z, pairs.t) if centred else (torch.zeros_like(pairs.z), torch.zeros_like(pairs.t))
    S, C = pairs.gram - torch.outer(z, z), pairs.cross - torch.outer(t, z)
    A = S + ridge * S.diagonal().mean().clamp_min(1e-24) * torch.eye(len(S), dtype=S.dtype, device=S.device)
    best = V + torch.cholesky_solve((C - V @ S).T, torch.linalg.cholesky(A)).T
    return best, t - best @ z


def _inputs_of(
    model: nn.Module, graph: PruningGraph, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[WeightInput]:
    """Return what reaches a consumer in one forward pass, one entry for each of its calls."""
    inputs: list[WeightInput] = []

    def record(weight_input: WeightInput) -> None:
        if weight_input.key == key:
            inputs.append(weight_input)

    with torch.no_grad(), observe_inputs(model, graph, record):
        model(*args, **kwargs)
    return inputs


def _row_pairs(x: WeightInput, z: WeightInput, W: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the number of rows of each block, and the sums of its products."""
    for a, b in zip(_row_blocks(x), _row_blocks(z), strict=True):
        t = a @ W.T
        yield len(b), [b.T @ b, t.T @ b, b.sum(0), t.sum(0), t.square().sum()]


def _row_blocks(given: WeightInput) -> Iterator[Tensor]:
    """Yield the rows that a weight multiplies, float64 [rows, features], a block at a time."""
    if given.window is not None:
        for example in given.x.split(EXAMPLES):
            yield patches(example, given.window).double()
    else:
        rows = given.x.movedim(given.axis, -1).reshape(-1, given.x.shape[given.axis])
        for block in rows.split(ROWS):
            yield block.double()
