"""One trial of `benchmarks/real.py`: prune a network once by Secateur or Torch-Pruning, repair, measure."""

from __future__ import annotations

import copy
import subprocess
import time
import warnings
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from real_networks import NETWORKS
from torch import nn

import secateur as sc
from secateur.batches import split_batch
from secateur.core import InputError, Plan
from secateur.measure.cost import macs, parameters
from secateur.methods.decided import Decided
from secateur.specs import Batches

__all__ = ["commit", "prune_network"]

PEER = "torch-pruning"
TEACHER = "teacher"
UNREPAIRED = {"none": None, TEACHER: "refit"}  # the repair before the teacher
HALVINGS = 8
DECISIONS: dict[tuple[Any, ...], tuple[Plan, float]] = {}  # the last one, with its processor seconds


def prune_network(
    *, network: str, method: str, scope: str, repair: str, keep: float, seed: int, steps: int, folder: str
) -> list[dict[str, Any]]:
    """Prune a network and return one row: what is left, the metrics, and processor seconds.

    Args:
        network: Name in `NETWORKS`.
        method: ``"default"``, a method of Secateur, or ``"torch-pruning"``.
        scope: Scope of the budget, or ``"default"``; for Torch-Pruning ``"local"`` or ``"global"``.
        repair: ``"none"``, ``"fold"``, ``"refit"``, ``"batchnorm"`` for new statistics (Torch-Pruning),
            or ``"teacher"`` for a refit (Torch-Pruning: these statistics) and steps with a teacher.
        keep: Share of the multiply-accumulates that stays.
        seed: Seed of the calibration data and of every random choice.
        steps: Optimiser steps with the teacher; 0 for other repairs.
        folder: Where trained networks are kept.
    """
    warnings.simplefilter("ignore")  # in a process of its own
    entry = NETWORKS[network]
    model, measure, whole = _original(network, folder)
    example = Batches(_calibration(network, seed)).example(model)
    row: dict[str, Any] = {"commit": commit(), "original": whole}
    if method == PEER:
        small, row["prune seconds"] = _torch_pruning(network, model, example, keep, scope)
        start = time.process_time()
        if entry.batchnorm and repair != "none":
            small = sc.update_bn(small, _calibration(network, seed))
        row["repair seconds"] = time.process_time() - start
    else:
        small, seconds = _secateur(network, folder, method, scope, UNREPAIRED.get(repair, repair), keep, seed)
        row |= seconds
    lessons = entry.lessons(model, seed) if repair == TEACHER else []
    start = time.process_time()
    if lessons:
        small, _ = sc.finetune(
            small, lessons, steps=steps, lr=entry.lr, teacher=model, seed=seed, progress=False
        )
    row["teacher seconds"] = time.process_time() - start
    row["macs"] = _macs(small, example) / _macs(model, example)
    row["parameters"] = parameters(small) / parameters(model)
    return [{**row, **measure(small)}]


@lru_cache(maxsize=1)
def _original(network: str, folder: str) -> tuple[nn.Module, Any, dict[str, float]]:
    """Return a network, the function that measures a pruned one against it, and its own metrics."""
    entry = NETWORKS[network]
    model = entry.model(Path(folder))
    measure = entry.measurer(model)
    return model, measure, measure(model) if entry.absolute else {}


@lru_cache(maxsize=1)
def _calibration(network: str, seed: int) -> list[Any]:
    return NETWORKS[network].calibration(seed)


@cache
def commit() -> str:
    """Return the commit of the library's checkout, with a plus sign if its files differ from it."""
    here = Path(sc.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")


@lru_cache(maxsize=1)  # the steps with the teacher start where the refit ended
def _secateur(
    network: str, folder: str, method: str, scope: str, repair: str | None, keep: float, seed: int
) -> tuple[nn.Module, dict[str, float]]:
    """Return the pruned network, and processor seconds of the decision and of the repair."""
    model, calibration = _original(network, folder)[0], _calibration(network, seed)
    # All repairs get the plan of a pruning with a repair, which keeps some batches apart as a judge.
    key = (network, folder, method, scope, keep, seed)
    if repair is None and key not in DECISIONS:
        _secateur(network, folder, method, scope, "fold", keep, seed)
    made = DECISIONS.get(key)
    chosen = None if method == "default" else method
    start = time.process_time()
    result = sc.prune(
        model,
        Batches(calibration).example(model),
        sc.Macs(keep) if scope == "default" or made else sc.Macs(keep, scope=scope),
        calibration,
        method=chosen if made is None else Decided(made[0]),
        repair=repair,
        seed=seed,
        progress=False,
    )
    seconds, stages = time.process_time() - start, result.report.seconds
    repairing = seconds * stages.get("repair", 0.0) / sum(stages.values())
    if made is None:
        DECISIONS.clear()
        DECISIONS[key] = made = (result.plan, seconds - repairing)
    return result.model, {"prune seconds": made[1], "repair seconds": repairing}


def _torch_pruning(
    network: str, model: nn.Module, example: Any, keep: float, scope: str
) -> tuple[nn.Module, float]:
    """Return the largest network that fits the budget, and the seconds of the pruning that made it.

    Torch-Pruning takes a share of the channels; the one that leaves the multiply-accumulates is bisected.
    """
    low, high, best, seconds = 0.0, 1.0, None, 0.0
    whole = _macs(model, example)
    for _ in range(HALVINGS):
        ratio, start = (low + high) / 2, time.process_time()
        small = _torch_pruning_once(network, model, example, ratio, scope)
        if _macs(small, example) <= keep * whole:
            high, best, seconds = ratio, small, time.process_time() - start
        else:
            low = ratio
    if best is None:
        raise InputError(f"no share of the channels leaves {keep:.0%} of the multiply-accumulates")
    return best, seconds


def _torch_pruning_once(network: str, model: nn.Module, example: Any, ratio: float, scope: str) -> nn.Module:
    import torch_pruning as tp

    entry, model = NETWORKS[network], copy.deepcopy(model)
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        global_pruning=scope == "global",
        ignored_layers=list(entry.outputs(model)),
        num_heads=entry.heads(model),
    )
    pruner.step()
    entry.after_torch_pruning(model, pruner.num_heads)
    return model


def _macs(model: nn.Module, example: Any) -> int:
    args, kwargs, _ = split_batch(example)
    return macs(model, args, kwargs)
