"""The task of a run of `prune_folder`: what it depends on, to the last bit, and the space that it takes."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.core import Budget, PruningGraph, StoreError
from secateur.core.indices import kept_shapes
from secateur.core.jsonable import versions
from secateur.methods import Method
from secateur.repair.base import Repair, repair_name
from secateur.streaming.blocks import BlockChain
from secateur.streaming.journal import Journal, sizes_of

__all__ = ["StreamTask", "check_space", "identity_of"]


@dataclass(frozen=True, eq=False)
class StreamTask:
    """Everything that a run of `prune_folder` works on.

    Attributes:
        chain: The model.
        graph: Its structure.
        budget: How much stays.
        counts: By group, the units that stay.
        ignored_layers: Names or patterns of what stays whole.
        method: Decides which units stay.
        repairs: What follows.
        batches: All of them: those to fit on, those kept apart, those of the texts that judge.
        parts: Numbers of the first batch kept apart, and of the first that judges.
        check: Whether shrunk blocks are compared with masked ones.
        seed: The seed.
    """

    chain: BlockChain
    graph: PruningGraph
    budget: Budget
    counts: Mapping[str, int]
    ignored_layers: Sequence[str]
    method: Method
    repairs: Sequence[Repair]
    batches: Sequence[Any]
    parts: tuple[int, int]
    check: bool
    seed: int


def identity_of(task: StreamTask) -> dict[str, Any]:
    """Return what decides the bits of the result."""
    folder = task.chain.shards.folder
    positions = any(group.padded for group in task.graph.groups)
    return {
        **({"positions": True} if positions else {}),
        "folder": str(folder.resolve()),
        "files": sizes_of([folder / name for name in ("config.json", *task.chain.shards.files())]),
        "budget": repr(task.budget),
        "method": repr(task.method),
        "repair": repair_name(task.repairs),
        "ignored layers": list(map(str, task.ignored_layers)),
        "seed": task.seed,
        "tokens": _digest(task.batches),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _digest(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for x in _leaves(batches):
        digest.update(repr(x.tolist() if isinstance(x, Tensor) else x).encode())
    return digest.hexdigest()


def _leaves(batches: Iterable[Any]) -> list[Any]:
    return tree_leaves([dict(batch) if isinstance(batch, Mapping) else batch for batch in batches])


def check_space(task: StreamTask, journal: Journal) -> None:
    """Raise `StoreError` if the disk is too small for the new model and the hidden states of two blocks."""
    keep = {name: np.arange(count) for name, count in task.counts.items()}
    shapes = kept_shapes(task.graph, keep)
    need = sum(math.prod(shapes[name]) * size for name, size in task.graph.element_sizes.items())
    width = task.chain.empty.get_input_embeddings().weight
    tokens = sum(x.numel() for x in _leaves(task.batches) if isinstance(x, Tensor))
    need += 4 * tokens * width.shape[1] * width.element_size()
    need -= sum(x.stat().st_size for x in journal.folder.rglob("*") if x.is_file())
    there = next(path for path in journal.folder.parents if path.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise StoreError(
            f"{there} has {free / 2**30:.1f} GiB free, and the pruned model and its activations take up to "
            f"{need / 2**30:.1f} GiB: make space, or give another --out"
        )
