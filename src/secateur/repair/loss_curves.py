"""What it costs at the output to remove units of one group alone: trials on a few held-out batches.

For each group and a few counts, the removed units are masked, the layers that read them folded, and the
outputs compared with the original's (`distillation_loss`).  Losses of groups about add up while they are
small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.mask import mask
from secateur.batches import few_tokens
from secateur.core import IntArray, LossCurve, Plan, PruningGraph, Statistics
from secateur.execution import evaluating, explain_errors, read_batches
from secateur.outputs import floating_outputs
from secateur.processes import current_processes, gather_over_processes
from secateur.progress import progress_bar
from secateur.repair.fold import fold_masked
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import distillation_loss
from secateur.tracing.replay import as_replayed, record_batches
from secateur.views import as_returned_by, view

__all__ = ["Divergence", "measure_loss_curves", "with_loss_curves"]

KEPT = (0.85, 0.6, 0.35, 0.1)  # shares of a group's units in the trials
FEW = (0.8, 0.4)  # the same, of a language model
TOKENS = 2**14  # that all trials of a language model run on together, if each gets LEAST or more
LEAST, MOST = 256, 512  # tokens of one trial
RIDGES = (1e-6, 1e-2)  # enough to see what a group costs
RIDGE = 1e-2  # of a language model, whose rows are many
LARGEST = 2**30  # bytes of the original's outputs that are kept; further batches are left out


class Divergence:
    """How far a model's outputs are from the original's on some batches.

    Args:
        original: The original; it is run once.
        batches: The batches; as many as there is memory for their outputs, and of a language model a few
            sequences.
    """

    def __init__(self, original: nn.Module, batches: Sequence[Any]) -> None:
        """Run the original."""
        self._goals: list[tuple[Any, Any]] = []
        size = 0
        batches = few_tokens(batches)
        for batch, (_, output, _) in zip(batches, _outputs(original, batches), strict=True):
            goals = floating_outputs(output)
            size += sum(x.numel() * x.element_size() for x in goals)
            if self._goals and size > LARGEST:
                break
            self._goals.append((batch, output))

    def __call__(self, model: nn.Module) -> float:
        """Return the mean divergence over the batches."""
        outputs = _outputs(model, [batch for batch, _ in self._goals])
        losses = [
            float(distillation_loss(output, as_returned_by(model, goal), targets))
            for (_, output, targets), (_, goal) in zip(outputs, self._goals, strict=True)
        ]
        return max(0.0, sum(losses) / len(losses))  # rounding can take it just below zero


def _outputs(model: nn.Module, batches: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    with evaluating(model):
        for where, args, kwargs, targets in read_batches(batches, model):
            with explain_errors(where, args, kwargs):
                yield where, model(*args, **kwargs), targets


def measure_loss_curves(
    model: nn.Module,
    graph: PruningGraph,
    scores: Mapping[str, Tensor],
    statistics: Statistics,
    batches: Sequence[Any],
    guard: Statistics | None = None,
    progress: bool = False,
    *,
    kept: Sequence[float] = (),
    known: Mapping[str, LossCurve] | None = None,
    each: Callable[[str, LossCurve], None] | None = None,
) -> dict[str, LossCurve]:
    """Measure what removing units of each group alone costs at the output.

    It takes a forward pass of the batches for each group and count, four counts a group.  A language model
    runs on a few sequences only, and for two counts a group.  Inside `split_over_processes` each process
    measures some of the groups.

    Args:
        model: The model that was traced.
        graph: Its trace.
        scores: Group name -> scores of its units; the highest stay.
        statistics: With Gram matrices, the readers of removed units are folded; else units are masked only.
        batches: Batches, best held out from those of the statistics.
        guard: Statistics of held-out batches, which choose the ridge of each fold.
        progress: Whether to show progress on a terminal.
        kept: Shares of a group's units in the trials, instead of these.
        known: Curves that need not be measured again.
        each: Called with every new curve.

    Returns:
        A curve for each group; groups that must keep equal counts are tried together, under the first name.
    """
    sets = graph.counted_together()
    batches, shares = _affordable(batches, len(sets))
    ridges = (RIDGE,) if shares is FEW else RIDGES
    model = view(model, graph.interface)
    batches = record_batches(model, graph, batches)
    divergence = Divergence(as_replayed(model, batches), batches)
    folded = any(moments.gram is not None for moments in statistics.moments.values())
    curves = dict(known or {})
    processes = current_processes()
    with progress_bar("loss of each group", len(sets), progress) as show:
        for done, groups in enumerate(sets, 1):
            name, size = groups[0].name, groups[0].size
            if name in curves or not processes.owns(done):
                continue
            counts = sorted({max(1, round(share * size)) for share in kept or shares} - {size}, reverse=True)
            losses = []
            for count in counts:
                keep = {group.name: _best(scores[group.name], count) for group in groups}
                plan = Plan(graph, "trial", keep)
                trial = view(mask(model, plan), graph.interface, masked=plan)
                if folded:
                    fold_masked(model, trial, plan, statistics, guard, ridges)
                losses.append(divergence(as_replayed(trial, batches)))
            curves[name] = LossCurve(size, tuple(counts), tuple(losses))
            if each is not None:
                each(name, curves[name])
            show(done, name)
    for others in gather_over_processes(curves):
        curves |= others
    return {groups[0].name: curves[groups[0].name] for groups in sets}


def _affordable(batches: Sequence[Any], sets: int) -> tuple[Sequence[Any], tuple[float, ...]]:
    """Return the batches and the shares of the trials of so many sets of groups."""
    few = few_tokens(batches, min(MOST, max(LEAST, TOKENS // (sets * len(FEW)))))
    return few, KEPT if few is batches else FEW


def _best(scores: Tensor, count: int) -> IntArray:
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    return order[:count].sort().values.cpu().numpy()


def with_loss_curves(
    statistics: Statistics,
    scores: Mapping[str, Tensor],
    model: nn.Module,
    graph: PruningGraph,
    fitting: Sequence[Any],
    guard: Sequence[Any] | None,
    progress: bool = False,
    **options: Any,
) -> Statistics:
    """Return the statistics with the loss curves of all groups, measured on batches kept apart.

    Args:
        statistics: What was collected on `fitting`.
        scores: Group name -> scores of its units.
        model: The model.
        graph: Its trace.
        fitting: Batches of the statistics; the trials run on them if there are no others.
        guard: Batches kept apart, or None.
        progress: Whether to show progress on a terminal.
        options: More options of `measure_loss_curves`.
    """
    held_out = None
    tokens = bool(guard) and few_tokens(guard or ()) is not guard
    if guard and not tokens and any(moments.gram is not None for moments in statistics.moments.values()):
        held_out = collect_statistics(model, graph, guard, {"gram"}, statistics.seed, roots=True)
    curves = measure_loss_curves(
        model, graph, scores, statistics, guard or fitting, held_out, progress, **options
    )
    return replace(statistics, losses=curves)
