"""Prune a transformers folder block by block, with one block in memory.

The structure is traced without weights.  A budget of scope "layer" gives the counts from the shapes alone, so
each block is decided, shrunk, repaired and written before the next one is read.  Two streams of hidden states
walk along, as in `refit`: those of the original, and those of the pruned network as repaired so far.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.batches import as_batches, split_off_guard
from secateur.core import (
    Budget,
    InputError,
    IntArray,
    Latency,
    Plan,
    PruningGraph,
    StoreError,
    Units,
    Weights,
)
from secateur.core.budget import BY_LOSS, as_budget
from secateur.core.indices import kept_shapes
from secateur.core.jsonable import versions
from secateur.core.paths import to_path
from secateur.execution import check_seed
from secateur.formats.plan_json import plan_digest
from secateur.formats.transformers import KEY, write_companions
from secateur.methods import Method, find_method
from secateur.methods.contract import check_step, needs_of
from secateur.pretrained import INDEX
from secateur.progress import progress_bar
from secateur.repair.base import Finetune, Fold, Repair, parse_repair, repair_name, repair_needs
from secateur.repair.fold import fold, merge
from secateur.repair.refit import refit_in_place
from secateur.report import Report, start_report
from secateur.statistics.collect import collect_statistics
from secateur.streaming.blocks import BlockChain, BlockModel, Call, graph_of_block
from secateur.streaming.journal import Journal, sizes_of
from secateur.streaming.shards import ShardReader
from secateur.streaming.sizes import EXAMPLE, choose_sizes, trace_chain

__all__ = ["StreamedPruning", "prune_folder"]

STATISTICS = frozenset({"activations", "gram", "moments"})  # that one block at a time can give
ACTIVATIONS = 2**30  # bytes of paused passes in memory
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class StreamedPruning:
    """The result of `prune_folder`.

    Attributes:
        folder: The pruned model, which `from_pretrained` loads.
        plan: What went.
        report: Sizes and perplexity before and after, what fold and refit did, and the seconds of all runs
            together, if it was interrupted.
    """

    folder: Path
    plan: Plan
    report: Report

    def __repr__(self) -> str:
        """Return a summary of a few lines."""
        return f"{self.folder}: {self.report!r}"


def prune_folder(
    folder: str | Path,
    out: str | Path,
    budget: Budget | Sequence[Budget],
    data: Iterable[Any],
    *,
    method: str | Method | type | None = None,
    repair: str | Repair | Sequence[Repair] | None = "auto",
    judged: Mapping[str, Sequence[Any]] | None = None,
    ignored_layers: Iterable[str] = (),
    tokenizer: Any = None,
    check: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> StreamedPruning:
    """Prune a transformers folder into another one, with one block of the model in memory at a time.

    A run that was killed goes on when it is called again with the same arguments, and gives the same bits.
    Until the end everything is in a folder beside `out`, with ``.unfinished`` behind its name.

    Layers of the same kind keep equal counts, and the residual stream and the output layer stay as they are.
    The counts come from the shapes, so a scope "auto" is "layer" here.  Nothing judges the whole network;
    each repair of a layer is judged by its own output on batches kept apart.

    Args:
        folder: A folder of transformers with safetensors, whose model is a chain of equal blocks: Llama,
            Mistral, Qwen 2 and 3, Gemma 2 and 3.
        out: A new folder, or an empty one, for the pruned model.
        budget: How much stays.
        data: Batches of tokens; a repair keeps a fifth of them apart to judge itself.
        method: A method that decides a group by activations of its units, or by weights; "activation" by
            default, which needs no matrices.  Those of "matroid" take 13 GiB at 14336 units.
        repair: "fold", "refit", or None; "auto" is "fold".
        judged: By name of a text, batches on which the perplexity before and after is measured.
        ignored_layers: Names or patterns of what stays whole, as for `trace`.
        tokenizer: A tokenizer, or its folder; by default that of `folder`.
        check: Whether to compare each shrunk block with the masked one.
        seed: Seed of every random choice.
        progress: Whether to show progress on a terminal.

    Raises:
        InputError: If an argument is invalid, or the model is no chain of equal blocks.
        NothingToPrune: If nothing would go.
        StoreError: If a folder cannot be read or written, holds other files, or is of another run.
        ExactnessError: If a shrunk block does not compute what the masked one does.
    """
    started = time.perf_counter()
    source, place = to_path(folder), to_path(out).resolve()
    budget, chosen, repairs = _check_arguments(budget, method, repair, seed)
    data, texts = as_batches(data), {name: list(batches) for name, batches in (judged or {}).items()}
    fitting, guard = split_off_guard(data) if repair_needs(repairs) else (data, None)
    batches = [*fitting, *(guard or ()), *(batch for text in texts.values() for batch in text)]
    chain = BlockChain(source)
    ignored = list(ignored_layers)
    graph = trace_chain(chain, budget, ignored)
    graph, counts, config = choose_sizes(chain, graph, budget)
    parts = len(fitting), len(fitting) + len(guard or ())
    task = _Task(chain, graph, counts, chosen, repairs, batches, parts, check, seed)
    journal = Journal(place, _identity(task, budget, ignored))
    if (result := journal.result()) is None:
        _check_space(task, journal)
        journal.start()
        result = _walk(task, journal, progress)
        result["perplexity"] = _perplexities(task, texts, journal)
        result["seconds"] += time.perf_counter() - started - result.pop("this run")
        with journal.writing():
            _assemble(task, journal, config, _plan(task, budget, result), tokenizer)
    with journal.writing():
        journal.complete(result)
    plan = _plan(task, budget, result)
    return StreamedPruning(place, plan, _report(task, plan, result))


@dataclass(frozen=True, eq=False)
class _Task:
    """What a run does.

    Attributes:
        chain: The model.
        graph: Its structure.
        counts: By group, the units that stay.
        method: Decides which.
        repairs: What follows.
        batches: All of them: those to fit on, those kept apart, those of the texts that judge.
        parts: Where the second and the third kind begin.
        check: Whether shrunk blocks are compared with masked ones.
        seed: The seed.
    """

    chain: BlockChain
    graph: PruningGraph
    counts: Mapping[str, int]
    method: Method
    repairs: Sequence[Repair]
    batches: Sequence[Any]
    parts: tuple[int, int]
    check: bool
    seed: int


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


# --- before anything is written


def _check_arguments(
    budget: Any, method: Any, repair: Any, seed: int
) -> tuple[Budget, Method, tuple[Repair, ...]]:
    """Return budget, method and repairs, or raise `InputError` if they need more than one block."""
    check_seed(seed)
    budget = as_budget(budget)
    if budget.scope in ("global", *BY_LOSS):
        raise InputError(
            f"scope={budget.scope!r} compares all layers before the first one is pruned, which a stream "
            "cannot: use scope='layer' or 'erk', or prune in memory"
        )
    if other := [x for x in budget.parts if isinstance(x, (Latency, Weights))]:
        raise InputError(
            f"{other[0]} is not for a stream: use Params, Units, Macs or Bytes, or prune in memory"
        )
    if not isinstance(budget.keep, Mapping):
        budget = as_budget([dataclasses.replace(part, even=True) for part in budget.parts])
    chosen = find_method("activation" if method is None else method)
    if extra := sorted(needs_of(chosen, Units(0.5)) - STATISTICS):
        raise InputError(
            f"{chosen.name!r} looks at the whole network ({', '.join(extra)}), of which one block is in "
            "memory: use matroid, leverage, wanda, flap, activation or magnitude, or prune in memory"
        )
    repairs = parse_repair("fold" if repair == "auto" else repair)
    if any(isinstance(x, Finetune) for x in repairs):
        raise InputError("a fine-tuning needs the whole network in memory: use repair='refit' or 'fold'")
    return budget, chosen, repairs


def _identity(task: _Task, budget: Budget, ignored_layers: Sequence[str]) -> dict[str, Any]:
    """Return what decides the bits of the result."""
    folder = task.chain.shards.folder
    return {
        "folder": str(folder.resolve()),
        "files": sizes_of([folder / name for name in ("config.json", *task.chain.shards.files())]),
        "budget": repr(budget),
        "method": repr(task.method),
        "repair": repair_name(task.repairs),
        "ignored layers": list(map(str, ignored_layers)),
        "seed": task.seed,
        "tokens": _digest(task.batches),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _digest(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for x in torch.utils._pytree.tree_leaves([dict(b) if isinstance(b, Mapping) else b for b in batches]):
        digest.update(repr(x.tolist() if isinstance(x, Tensor) else x).encode())
    return digest.hexdigest()


def _check_space(task: _Task, journal: Journal) -> None:
    """Raise `StoreError` if the disk is too small for the new model and the hidden states of two blocks."""
    keep = {name: np.arange(count) for name, count in task.counts.items()}
    shapes = kept_shapes(task.graph, keep)
    need = sum(math.prod(shapes[name]) * size for name, size in task.graph.element_sizes.items())
    width = task.chain.empty.get_input_embeddings().weight
    leaves = torch.utils._pytree.tree_leaves([dict(b) if isinstance(b, Mapping) else b for b in task.batches])
    tokens = sum(x.numel() for x in leaves if isinstance(x, Tensor))
    need += 4 * tokens * width.shape[1] * width.element_size()
    need -= sum(x.stat().st_size for x in journal.folder.rglob("*") if x.is_file())
    there = next(path for path in journal.folder.parents if path.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise StoreError(
            f"{there} has {free / 2**30:.1f} GiB free, and the pruned model and its activations take up to "
            f"{need / 2**30:.1f} GiB: make space, or give another --out"
        )


# --- block by block


def _walk(task: _Task, journal: Journal, progress: bool) -> dict[str, Any]:
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


def _embedded(task: _Task, calls: list[Sequence[Call]]) -> Iterator[dict[str, Tensor]]:
    """Yield the hidden states before the first block, and add what the blocks get beside them to a list."""
    for hidden, call in task.chain.calls(task.batches):
        calls.append(call)
        yield {"original": hidden}


def _prune_block(
    task: _Task, number: int, batches: _HiddenBatches
) -> tuple[BlockModel, BlockModel, dict[str, Any]]:
    """Return a block, the block pruned and repaired, and the record of it."""
    original = task.chain.block(number)
    ids = torch.arange(math.prod(EXAMPLE)).reshape(EXAMPLE) % len(
        task.chain.empty.get_input_embeddings().weight
    )
    ((hidden, calls),) = task.chain.calls([{"input_ids": ids}])
    example = {"original": hidden, "pruned": hidden, **calls[number]}
    graph = graph_of_block(task.graph, original.name, example)
    shares = {g.name: task.counts[g.name] / g.size for g in graph.groups}
    fitting, guard = batches[: task.parts[0]], batches[slice(*task.parts)]
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


# --- the end


def _perplexities(task: _Task, texts: Mapping[str, Sequence[Any]], journal: Journal) -> dict[str, Any]:
    """Return the perplexity of both networks on each text."""
    files, start, found = journal.hidden(len(task.chain.names)), task.parts[1], {}
    for name, batches in texts.items():
        some = files[start : start + len(batches)]
        found[name] = [
            task.chain.perplexity(batches, (ShardReader.read_file(file)[which] for file in some))
            for which in ("original", "pruned")
        ]
        start += len(batches)
    return found


def _plan(task: _Task, budget: Budget, result: Mapping[str, Any]) -> Plan:
    keep: dict[str, IntArray] = {name: np.array(units, np.int64) for name, units in result["keep"].items()}
    return Plan(task.graph, task.method.name, keep, budget=repr(budget), seed=task.seed)


def _report(task: _Task, plan: Plan, result: Mapping[str, Any]) -> Report:
    """Return the report; sizes come from models without values."""
    ids = torch.zeros(EXAMPLE, dtype=torch.long, device="meta")
    # Without a cache transformers looks for packed sequences, in values that are not there.
    graph = dataclasses.replace(plan.graph, example_inputs=(ids,), example_kwargs={"use_cache": True})
    seen = dataclasses.replace(plan, graph=graph)
    small = shrink(task.chain.empty, plan, check=False).to("meta")
    whole = copy.deepcopy(task.chain.empty).to("meta")
    seconds = {"stream": result["seconds"]}
    how: dict[str, Any] = {"repair": repair_name(task.repairs), "seed": task.seed, "seconds": seconds}
    how["schedule"] = "block by block"
    report = start_report(whole, small, seen, result["folds"], {}, **how)
    if not (perplexity := result["perplexity"]):
        return report
    before, after = (
        dataclasses.replace(
            measured,
            metric=list(perplexity.values())[-1][which],
            metrics={name: both[which] for name, both in perplexity.items()},
        )
        for which, measured in enumerate((report.before, report.after))
    )
    return dataclasses.replace(report, metric="perplexity", before=before, after=after)


def _assemble(task: _Task, journal: Journal, config: Any, plan: Plan, tokenizer: Any) -> None:
    """Write what a folder of transformers has beside the weights."""
    chain, folder = task.chain, journal.model
    for path in folder.iterdir():
        if not path.name.startswith("model-"):  # of a run that was killed here
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    places, size = {}, 0
    for shard in sorted(folder.glob("model-*.safetensors")):
        for name, tensor in ShardReader.read_file(shard).items():
            places[name] = shard.name
            size += tensor.nbytes
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = copy.deepcopy(config)
    setattr(config, KEY, {"plan": plan_digest(plan)})
    config.save_pretrained(folder)
    if (chain.shards.folder / GENERATION).is_file():
        shutil.copyfile(chain.shards.folder / GENERATION, folder / GENERATION)
    write_companions(folder, chain.empty, tokenizer)


def _shard(chain: BlockChain, number: int) -> str:
    total = len(chain.outer) + len(chain.names)
    return f"model-{number + 1:05d}-of-{total:05d}.safetensors"
