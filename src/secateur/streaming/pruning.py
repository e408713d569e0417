"""Prune a transformers folder block by block, with one block in memory.

The structure is traced without weights.  A budget of scope "layer" gives the counts from the shapes alone, so
each block is decided, shrunk, repaired and written before the next one is read (see `walk`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.apply.shrink import shrink
from secateur.batches import as_batches, split_off_guard
from secateur.comparison import start_report
from secateur.core import Budget, InputError, IntArray, Latency, Plan, Units, Weights
from secateur.core.budget import BY_LOSS, as_budget
from secateur.core.indices import padded_axes
from secateur.core.paths import to_path
from secateur.execution import check_flags, check_seed
from secateur.formats.modelling_file import auto_map, list_sizes, write_modelling_file
from secateur.formats.plan_json import plan_digest
from secateur.formats.transformers import KEY, write_companions
from secateur.methods import Method, find_method
from secateur.methods.contract import needs_of
from secateur.pretrained import INDEX
from secateur.repair.base import Finetune, Repair, parse_repair, repair_name, repair_needs
from secateur.report import Report
from secateur.streaming.blocks import BlockChain
from secateur.streaming.journal import Journal
from secateur.streaming.shards import ShardReader
from secateur.streaming.sizes import EXAMPLE, choose_sizes, trace_chain
from secateur.streaming.task import StreamTask, check_space, identity_of
from secateur.streaming.walk import prune_blocks

__all__ = ["StreamedPruning", "prune_folder"]

STATISTICS = frozenset({"activations", "gram", "moments"})  # that one block at a time can give
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
    positions: bool = False,
    check: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> StreamedPruning:
    """Prune a transformers folder into another one, with one block of the model in memory at a time.

    A run that was killed goes on when it is called again with the same arguments, and gives the same bits.
    Until the end, all files are in a folder next to `out` whose name ends in ``.unfinished``.

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
        positions: Whether positions within the heads of attention may go, too: see `prune`.  No config states
            them, so the new folder has a modelling file, and loads with ``trust_remote_code=True``.
        check: Whether to compare each shrunk block with the masked one.
        seed: Seed of every random choice.
        progress: Whether to show progress on a terminal.

    Raises:
        InputError: If an argument is invalid, or the model is not a chain of equal blocks.
        NothingToPrune: If nothing would go.
        StoreError: If a folder cannot be read or written, holds other files, or is of another run.
        ExactnessError: If a shrunk block does not compute what the masked one does.
    """
    started = time.perf_counter()
    source, place = to_path(folder), to_path(out).resolve()
    budget, chosen, repairs = _check_arguments(budget, method, repair, seed, positions)
    data, texts = as_batches(data), {name: list(batches) for name, batches in (judged or {}).items()}
    fitting, guard = split_off_guard(data) if repair_needs(repairs) else (data, None)
    batches = [*fitting, *(guard or ()), *(batch for text in texts.values() for batch in text)]
    chain = BlockChain(source)
    ignored = list(ignored_layers)
    graph, counts, config = choose_sizes(chain, trace_chain(chain, budget, ignored, positions), budget)
    parts = len(fitting), len(fitting) + len(guard or ())
    task = StreamTask(chain, graph, budget, counts, ignored, chosen, repairs, batches, parts, check, seed)
    journal = Journal(place, identity_of(task))
    if (result := journal.result()) is None:
        check_space(task, journal)
        journal.start()
        result = prune_blocks(task, journal, progress)
        result["perplexity"] = _perplexities(task, texts, journal)
        result["seconds"] += time.perf_counter() - started - result.pop("this run")
        with journal.writing():
            _assemble(task, journal, config, _plan(task, result), tokenizer)
    with journal.writing():
        journal.complete(result)
    plan = _plan(task, result)
    return StreamedPruning(place, plan, _report(task, plan, result))


def _check_arguments(
    budget: Any, method: Any, repair: Any, seed: int, positions: Any
) -> tuple[Budget, Method, tuple[Repair, ...]]:
    """Return budget, method and repairs, or raise `InputError` if they need more than one block."""
    check_seed(seed)
    check_flags(positions=positions)
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


def _perplexities(task: StreamTask, texts: Mapping[str, Sequence[Any]], journal: Journal) -> dict[str, Any]:
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


def _plan(task: StreamTask, result: Mapping[str, Any]) -> Plan:
    keep: dict[str, IntArray] = {name: np.array(units, np.int64) for name, units in result["keep"].items()}
    return Plan(task.graph, task.method.name, keep, budget=repr(task.budget), seed=task.seed)


def _report(task: StreamTask, plan: Plan, result: Mapping[str, Any]) -> Report:
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


def _assemble(task: StreamTask, journal: Journal, config: Any, plan: Plan, tokenizer: Any) -> None:
    """Write the files of a transformers folder besides the weights."""
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
    setattr(config, KEY, {"plan": plan_digest(plan), **_unstated_sizes(task, folder, plan, config)})
    config.save_pretrained(folder)
    if (chain.shards.folder / GENERATION).is_file():
        shutil.copyfile(chain.shards.folder / GENERATION, folder / GENERATION)
    write_companions(folder, chain.empty, tokenizer)


def _unstated_sizes(task: StreamTask, folder: Path, plan: Plan, config: Any) -> dict[str, Any]:
    """Return the sizes that the config does not state, and write the modelling file that sets them."""
    if not padded_axes(plan.graph, plan.keep):
        return {}
    small = shrink(task.chain.empty, plan, check=False)
    wide = {name: kept for name, kept in plan.keep.items() if not plan.graph.group(name).padded}
    config.auto_map = auto_map(small)
    write_modelling_file(folder, small)
    return list_sizes(small, plan, wide)
