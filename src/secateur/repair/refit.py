"""Refit: solve each layer again from what reaches it in the pruned network, in one walk over the network.

`fold` fits every consumer to the activations of the original model, so later layers do not see the errors
of earlier ones.  `refit` walks along the order of execution (`sweep`).  At each weight it has the inputs z in
the pruned network as repaired so far, and what the original computes there, t = W x.  It solves for the
correction of the weight (`least_squares`) and goes on with what the solved layer gives.  Where the statistics
of a BatchNorm layer no longer fit its input, they are renewed on the way, by as much as the input changed on
the same data.

A weight that is used several times in a pass is solved from all its calls, at the end of a first walk; a
second one then solves the others from what it gives.

Source: the asymmetric reconstruction of He, Zhang and Sun, ICCV 2017 (arXiv:1707.06168), section 3.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.copying import check_tensors
from secateur.batches import as_batches, few_tokens
from secateur.core import InputError, IntArray, Layer, Plan, brief
from secateur.core.indices import kept_indices
from secateur.execution import (
    all_finite,
    check_flags,
    check_module,
    duplicate,
    one_at_a_time,
    read_batches,
    tensors_by_name,
    untouched,
)
from secateur.measure.metrics import distance_from
from secateur.progress import progress_bar
from secateur.repair.batchnorm import NormInput, norm_layers
from secateur.repair.fold import FARTHER, NO_BETTER
from secateur.repair.spill import Spill
from secateur.repair.sweep import Batch, Cut, Outline, Pair, outline, sweep, version_of
from secateur.repair.weight_fit import SharedSums, WeightFit
from secateur.repair.weight_matrix import in_axis_of
from secateur.statistics.collect import consumer_layers
from secateur.tracing.replay import as_replayed, record_batches
from secateur.views import view, without_view

__all__ = ["MEMORY", "refit", "refit_in_place"]

WIDEST = 6144  # features, taps included, above which a layer is skipped: its matrices would be too large
MEMORY = 8 * 2**30  # bytes of activations in memory, beyond which they go to disk


@one_at_a_time
def refit(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    fitting: Sequence[Any],
    guard: Sequence[Any] | None = None,
    *,
    memory: float = MEMORY,
    progress: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a repaired copy of the shrunk model, and a note on each of its weights.

    The cost: one forward pass of both models, and a matrix product and a linear solve for each layer.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`, folded or not.
        plan: What went from that model.
        fitting: Batches to fit on.
        guard: Batches kept apart.  They choose each ridge and judge the whole at the end; by default those of
            `fitting` do.
        memory: Bytes of activations that stay in memory; the rest goes to a temporary folder.
        progress: Whether to show progress on a terminal.

    Returns:
        The model, and for each layer the output error `before` and `after` on the batches that chose the
        ridge, relative to the variance of the output, the `ridge` and whether the step was `undone`, and
        `why`; or why it was `skipped`.

    Raises:
        InputError: If the models cannot take the batches, give other outputs on a second call, or `small` is
            not `model` shrunk by the plan.

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
    check_tensors(model, plan)
    check_module(small, "small")
    check_flags(progress=progress)
    if isinstance(memory, bool) or not isinstance(memory, Real) or not memory >= 0:
        raise InputError(f"memory must be a number of bytes; got {brief(memory)}")
    fitting = record_batches(model, plan.graph, as_batches(fitting))
    none = guard is None or (isinstance(guard, (list, tuple)) and not guard)
    guard = None if none else record_batches(model, plan.graph, as_batches(guard))
    model, small = view(model, plan.graph.interface), view(small, plan.graph.interface, plan)
    repaired = duplicate(small)
    original, before, after = (as_replayed(x, fitting) for x in (model, small, repaired))
    notes, changed = refit_in_place(original, after, plan, fitting, guard, memory=memory, progress=progress)
    judge = distance_from(original, few_tokens(guard or fitting))
    if changed and not judge(after) < judge(before):
        notes = {k: {**v, "undone": True, "why": FARTHER} if "ridge" in v else v for k, v in notes.items()}
        return without_view(duplicate(small)), notes
    return without_view(repaired), notes


def refit_in_place(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    fitting: Sequence[Any],
    guard: Sequence[Any] | None,
    *,
    memory: float = MEMORY,
    progress: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Solve the weights of a shrunk model in place; nothing judges the whole.

    The arguments are those of `refit`.

    Returns:
        The notes of `refit`, and whether anything changed.
    """
    batches = [Batch(*b[:3]) for b in read_batches(fitting, model)]
    fitted = len(batches)
    for where, args, kwargs, _ in read_batches(guard, model) if guard else ():
        batches.append(Batch(f"{where} kept apart", args, kwargs))
    with untouched(model), _evaluation_mode(small), torch.no_grad():
        walk = _Refit(model, small, plan, batches, fitted)
        walk.run(memory, progress)
    return walk.notes, walk.changed


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; restore its modes, but not its buffers."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class _Refit:
    """A walk that solves the weights of `small` in place."""

    def __init__(
        self, model: nn.Module, small: nn.Module, plan: Plan, batches: Sequence[Batch], fitted: int
    ) -> None:
        self.model, self.small, self.plan, self.batches, self.fitted = model, small, plan, batches, fitted
        self.kept = kept_indices(plan.graph, plan.keep)
        self.layers = consumer_layers(plan.graph)
        self.norms = norm_layers(model)
        self.before, self.after = tensors_by_name(model), tensors_by_name(small)
        for layer in self.layers.values():
            if layer.weight not in self.after:
                raise InputError(f"the shrunk model has no {layer.weight!r}: it does not fit this plan")
        self.notes: dict[str, Any] = {}
        self.changed = False
        self._inputs = _LastInputs()

    def run(self, memory: float, progress: bool) -> None:
        """Walk once, and a second time if weights were solved from several calls."""
        observed = self._observed(self.before), self._observed(self.after)
        # The longest one shows best how often a weight is used.
        longest = _one_sequence(max(self.batches, key=_size))
        outlined = outline(self.model, observed[0], longest)
        several = {k for k, calls in outlined.calls.items() if calls > 1 and k in self.layers}
        fits: dict[str, WeightFit] = {}
        for turn in range(2 if several else 1):
            spill = Spill(memory)
            walk = sweep((self.model, self.small), observed, self.batches, outlined, spill)
            bar = progress_bar("refit", len(outlined.calls), progress)
            seen = set[str]()
            with closing(walk), closing(spill), bar as show:
                for cut in walk:
                    if not cut.once:
                        if turn == 0 and cut.key in self.layers:
                            self._add_call(cut, outlined, fits)
                        continue
                    if cut.key in seen:
                        continue  # used again, or earlier, by some of the batches only
                    seen.add(cut.key)
                    show(len(seen), cut.key)
                    if any(not _same(pair) for pair in cut):
                        (self._renew if cut.key in self.norms else self._solve)(cut, outlined)
            for key, fit in fits.items() if turn == 0 else ():
                self._finish(key, fit)
        self._warn()

    def _add_call(self, cut: Cut, outlined: Outline, fits: dict[str, WeightFit]) -> None:
        """Add one call of a weight that is used several times to its fit, which is solved after the walk."""
        fit = fits.setdefault(cut.key, self._fit(cut.key, outlined))
        fit.add(cut, outlined.calls[cut.key] * len(self.batches))
        if not fit.finite():
            self._refuse_nan(cut)

    def _refuse_nan(self, cut: Cut) -> None:
        """Raise `InputError` with the layer and the batch if NaN or infinite values reach the weight."""
        for pair in cut:
            for which, entry in (("original", pair.x), ("pruned", pair.z)):
                if not all_finite(entry.x):
                    owner = cut.key.rpartition(".")[0] or cut.key
                    raise InputError(
                        f"NaN or infinite activations reach layer {owner!r} of the {which} model in "
                        f"{self.batches[pair.batch].where}: leave this batch out, or use a wider dtype"
                    )

    def _observed(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Return what the walk stops at: the weights that can be solved, and BatchNorm layers."""
        stops = {name: (tensors[name], 0) for name in self.norms}
        for key, layer in self.layers.items():
            if reason := self._obstacle(layer):
                self.notes[layer.weight] = {"skipped": reason}
            else:
                stops[key] = (tensors[layer.weight], in_axis_of(layer))
        return stops

    def _obstacle(self, layer: Layer) -> str:
        """Return why a weight cannot be solved, or an empty string."""
        if layer.weight in self.plan.masks:
            return "single weights are masked"
        if any(x.weight == layer.weight and x is not layer for x in self.plan.graph.layers):
            return "the weight is tied to another"
        weight = self.after[layer.weight]
        features = math.prod(n for axis, n in enumerate(weight.shape) if axis != layer.out_axis)
        return f"{features} features are more than {WIDEST}" if features > WIDEST else ""

    def _renew(self, cut: Cut, outlined: Outline) -> None:
        # Where least squares has just made the input, or found nothing better, a change of scale costs
        # (measured on EfficientNet-Lite0).
        makers = [k for k, norm in outlined.follows.items() if norm == cut.key and k in self.layers]
        tried = any("ridge" in self.notes.get(self.layers[k].weight, {}) for k in makers)
        inputs = NormInput(self.kept_of(cut.key, 0, len(self.before[cut.key])), spread=not tried)
        for pair in cut:
            inputs.add(pair.x.x, pair.z.x)
        if not inputs.finite():
            self._refuse_nan(cut)
        mean, variance = (self.after[name] for name in (cut.key, self.norms[cut.key]))
        inputs.renew(mean, variance, (self.before[cut.key], self.before[self.norms[cut.key]]))
        self.changed = True

    def _solve(self, cut: Cut, outlined: Outline) -> None:
        fit = self._fit(cut.key, outlined, cut)
        fit.add(cut)
        if not fit.finite():
            self._refuse_nan(cut)
        self._inputs.put(cut, fit.sums)
        self._finish(cut.key, fit)

    def _fit(self, key: str, outlined: Outline, cut: Cut | None = None) -> WeightFit:
        layer = self.layers[key]
        out = layer.out_axis or 0
        biases, bias = None, layer.bias
        if bias is not None and sum(x.bias == bias for x in self.layers.values()) == 1:
            kept = self.kept_of(bias, 0, len(self.before[bias]))
            biases = self.before[bias][torch.from_numpy(kept).to(self.before[bias].device)], self.after[bias]
        norm = outlined.follows.get(key)
        takes_constant = biases is not None or (norm in self.norms and outlined.calls[norm] == 1)
        centred = takes_constant and layer.kind != "conv_transpose"
        weights = self.before[layer.weight], self.after[layer.weight]
        kept = self.kept_of(layer.weight, out, weights[0].shape[out])
        shared = None if cut is None else self._inputs.get(cut, centred)
        return WeightFit(layer, weights, biases if centred else None, kept, centred, self.fitted, shared)

    def _finish(self, key: str, fit: WeightFit) -> None:
        note = fit.solve()
        if note.get("undone"):
            note["why"] = NO_BETTER
        weight = self.layers[key].weight
        if note.get("undone", True) and not self.notes.get(weight, {}).get("undone", True):
            return  # what the first walk found stays
        self.notes[weight] = note
        self.changed |= not note.get("undone", True)

    def kept_of(self, name: str, axis: int, size: int) -> IntArray:
        """Return the indices that stay on an axis of a tensor."""
        return self.kept.get(name, {}).get(axis, np.arange(size))

    def _warn(self) -> None:
        narrow = [
            name for name, note in self.notes.items() if note.get("rows", math.inf) < note.get("features", 0)
        ]
        if narrow:
            name = max(narrow, key=lambda x: self.notes[x]["features"] / self.notes[x]["rows"])
            note = self.notes[name]
            which = "1 layer reads" if len(narrow) == 1 else f"{len(narrow)} layers read"
            warnings.warn(
                f"{which} more features than there are rows of calibration data ({name!r}: "
                f"{note['features']} features, {note['rows']} rows): the ridge damps the repair; more "
                "batches would help",
                stacklevel=5,
            )


def _size(batch: Batch) -> int:
    """Return the number of values in a batch."""
    return sum(x.numel() for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor))


def _one_sequence(batch: Batch) -> Batch:
    """Return a batch of tokens with its first sequence only, which uses the weights as all do."""
    where, args, kwargs = batch
    if args and kwargs:
        return batch
    [few] = few_tokens([kwargs or args], 1)
    return Batch(where, (), few) if kwargs else Batch(where, few, kwargs)


def _same(pair: Pair) -> bool:
    return pair.x.x.shape == pair.z.x.shape and torch.equal(pair.x.x, pair.z.x)


class _LastInputs:
    """The sums over the inputs of the last weight: queries, keys and values read the same tensors."""

    def __init__(self) -> None:
        self._tensors: list[weakref.ref[Tensor]] = []
        self._sums: SharedSums | None = None
        self._form: Any = None

    @staticmethod
    def _form_of(cut: Cut) -> Any:
        # The version counts the writes into a tensor.
        return [
            (pair.batch, entry.axis, entry.window, version_of(entry.x))
            for pair in cut.pairs
            for entry in (pair.x, pair.z)
        ]

    def get(self, cut: Cut, centred: bool) -> SharedSums | None:
        """Return the sums if a cut has the same inputs."""
        tensors = [entry.x for pair in cut.pairs for entry in (pair.x, pair.z)]
        same = len(tensors) == len(self._tensors) and self._form == self._form_of(cut)
        same = same and all(a() is b for a, b in zip(self._tensors, tensors, strict=True))
        fits = self._sums is not None and self._sums.inputs[0].centred == centred
        return self._sums if same and fits else None

    def put(self, cut: Cut, sums: SharedSums | None) -> None:
        """Remember the sums of a cut."""
        self._tensors = [weakref.ref(entry.x) for pair in cut.pairs for entry in (pair.x, pair.z)]
        self._form = self._form_of(cut)
        self._sums = sums
