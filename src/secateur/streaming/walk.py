"""Walk through the blocks: decide, shrink, repair and write each one before the next is read.

Two streams of hidden states pass through the blocks, as in `refit`: those of the original, and those
of the pruned network as repaired so far.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import Plan, Units
from secateur.methods.contract import check_step, needs_of
from secateur.progress import progress_bar
from secateur.repair.base import Fold, repair_needs
from secateur.repair.fold import fold, merge
from secateur.repair.principal_values import turn_values
from secateur.repair.refit import refit_in_place
from secateur.statistics.collect import collect_statistics
from secateur.streaming.blocks import BlockChain, BlockModel, Call, graph_of_block
from secateur.streaming.journal import Journal
from secateur.streaming.shards import ShardReader
from secateur.streaming.sizes import example_of_block
from secateur.streaming.task import StreamTask

__all__ = ["prune_blocks"]

ACTIVATIONS = 2**30  # bytes of paused passes in memory


class _HiddenBatches(Sequence[Mapping[str, Any]]):
    """Batches of a block, read from the disk whenever they are asked for."""

    def __init__(self, files: Sequence[Path], calls: Sequence[Call]) -> None:
        self._files, self._calls = files, calls

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return _HiddenBatches(self._files[number], self._calls[number])
        hidden = ShardReader.read_file(self._files[number])
        both = {"original": hidden["original"], "pruned": hidden.get("pruned", hidden["original"])}
        return {**both, **self._calls[number]}


def prune_blocks(task: StreamTask, journal: Journal, progress: bool) -> dict[str, Any]:
    """Finish the blocks that are left; return what stays, what the repairs report, and the seconds."""
    chain, calls, begun = task.chain, list[Sequence[Call]](), time.perf_counter()
    with journal.writing():
        for number, name in enumerate(chain.outer):
            journal.write_shard(_shard(chain, number), chain.shards.read([name]))
        inputs = _embedded(task, calls)
        if journal.done() or journal.hidden(0):
            for _ in inputs:
                pass
        else:
            journal.write_hidden(0, inputs)
    total = len(chain.names)
    with progress_bar("blocks", total, progress) as show:
        for number in range(journal.done(), total):
            show(number, chain.names[number])
            started = time.perf_counter()
            batches = _HiddenBatches(journal.hidden(number), [call[number] for call in calls])
            original, small, record = _prune_block(task, number, batches)
            with journal.writing():
                journal.write_shard(_shard(chain, len(chain.outer) + number), small.state_dict())
                journal.write_hidden(number + 1, _forward(original, small, batches))
                journal.finish(number, {**record, "seconds": time.perf_counter() - started})
            del original, small  # before the next block is read
    records = [journal.record(number) for number in range(total)]
    return {
        "keep": {name: units for x in records for name, units in x["keep"].items()},
        "folds": {name: note for x in records for name, note in x["folds"].items()},
        "seconds": sum(x["seconds"] for x in records),
        "this run": time.perf_counter() - begun,
    }


def _embedded(task: StreamTask, calls: list[Sequence[Call]]) -> Iterator[dict[str, Tensor]]:
    """Yield the hidden states before the first block, and add what else the blocks get to a list."""
    for hidden, call in task.chain.calls(task.batches):
        calls.append(call)
        yield {"original": hidden}


def _prune_block(
    task: StreamTask, number: int, batches: _HiddenBatches
) -> tuple[BlockModel, BlockModel, dict[str, Any]]:
    """Return a block, the block pruned and repaired, and the record of it."""
    original: Any = task.chain.block(number)
    graph = graph_of_block(task.graph, original.name, example_of_block(task.chain, number))
    shares = {g.name: task.counts[g.name] / g.size for g in graph.groups}
    fitting, guard = batches[: task.parts[0]], batches[slice(*task.parts)]
    if task.repairs:
        original = turn_values(original, graph, fitting, task.seed)
    small: Any = copy.deepcopy(original)
    plan = Plan(graph, task.method.name)
    needs = repair_needs(task.repairs)
    statistics = None
    if min(shares.values(), default=1.0) < 1:
        budget = Units(shares)
        needs |= needs_of(task.method, budget)
        statistics = collect_statistics(original, graph, fitting, needs, task.seed)
        plan = task.method.plan(graph, statistics, budget)
        check_step(task.method, plan)
        small = shrink(original, plan, task.check)
    small.reads_pruned = True
    if plan.merges and not any(isinstance(x, Fold) for x in task.repairs):
        small = merge(original, small, plan)
    folds: dict[str, Any] = {}
    for repair in task.repairs:
        if isinstance(repair, Fold) and statistics is not None:
            held_out = None
            if guard:
                held_out = collect_statistics(original, graph, guard, {"gram"}, task.seed, roots=True)
            small, folds = fold(original, small, plan, statistics, held_out)
            statistics = held_out = None  # matrices of wide layers take gigabytes
        elif not isinstance(repair, Fold):
            notes, _ = refit_in_place(original, small, plan, fitting, guard or None, memory=ACTIVATIONS)
            folds = {**folds, **{name: {**folds.get(name, {}), "refit": x} for name, x in notes.items()}}
    return original, small, {"keep": plan.keep, "folds": folds}


@torch.no_grad()
def _forward(original: nn.Module, small: nn.Module, batches: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        yield {"original": original(**batch), "pruned": small(**batch)}


def _shard(chain: BlockChain, number: int) -> str:
    total = len(chain.outer) + len(chain.names)
    return f"model-{number + 1:05d}-of-{total:05d}.safetensors"
