"""Compare methods on a user's own model: the trials of a comparison, and their rows.

A trial is one pruning: a method with its options, a budget, a repair, a seed. In one setting (budget and
repair) all methods get the same model, examples, allocation and repair, and are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.bench.models import (
    SAMPLE,
    absolute_name,
    find_metric,
    hash_metric,
    hash_source,
    load_batches,
    load_model,
)
from secateur.bench.run import check_engine, run_trials
from secateur.bench.trial import Row, Trial, TrialResult
from secateur.bench.worker import Worker, run_here
from secateur.core import InputError, brief, unknown
from secateur.diagnostics import DIAGNOSTICS
from secateur.methods import METHODS
from secateur.pretrained import is_pretrained
from secateur.repair.base import LEARNING_RATE, REPAIRS
from secateur.specs import make_budgets, make_method

__all__ = ["Bench", "make_trials", "parse_methods", "parse_numbers", "run_bench"]

FUNCTION, CHECK = "secateur.bench.prune_trial:prune_once", "secateur.bench.prune_trial:check_inputs"
RESULTS = "trials.jsonl"
CONTROL = "random"
NEXT_DRAW = 1_000_003  # between the seeds of the draws of one seed
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Bench:
    """What to compare.

    Attributes:
        model: ``package.module:factory``, ``file.py:factory``, or a folder saved by transformers. A factory
            with a parameter `seed` is called for each seed, and may train.
        data: A data set, or a function that returns batches.
        holdout: Function that returns the batches for the metric; a data set brings its own.
        methods: Names with options; "random" is added, as the control of every comparison.
        ratios: What stays, each in (0, 1].
        seeds: Seeds; every pair of methods is compared seed by seed.
        repairs: ``"none"``, or names of repairs.
        budgets: What the ratios count: ``"units"``, ``"params"``, ``"macs"``, ``"bytes"``, ``"latency"`` or
            ``"weights"``; of several all hold, and those with an amount, as ``"bytes=20MB"``, at every ratio.
        scope: ``"layer"``, ``"global"`` or ``"erk"``.
        weights: Safetensors file with the model's state.
        shape: Shape of the example inputs, as in ``"2,3,32,32"``.
        ignore: Layers whose units all stay.
        draws: Draws of "random" for each seed; their mean counts.
        examples: Examples to calibrate and fine-tune on, at most.
        epochs: Epochs of a fine-tuning.
        lr: Learning rate of a fine-tuning.
        metric: ``"accuracy"``, ``"log_likelihood"``, ``"agreement"`` (with the original; needs no labels), or
            a function ``file.py:function`` of a model and batches; more is better.
        latency: Whether to measure latencies, at batch 1 and 64.

    Raises:
        InputError: If an argument is invalid.
    """

    model: str
    data: str
    holdout: str | None = None
    methods: Sequence[str] = ("magnitude",)
    ratios: Sequence[float] = (0.75, 0.5, 0.35, 0.25, 0.125)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    repairs: Sequence[str] = ("none", "fold")
    budgets: Sequence[str] = ("units",)
    scope: str = "layer"
    weights: str | None = None
    shape: str | None = None
    ignore: Sequence[str] = ()
    draws: int = 3
    examples: int | None = None
    epochs: int = 1
    lr: float = LEARNING_RATE
    metric: str = "accuracy"
    latency: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        for what in ("methods", "ratios", "seeds", "repairs", "budgets"):
            values = list(getattr(self, what))
            if not values or len(set(values)) < len(values):
                raise InputError(f"{what} must be one or more values, each once; got {values}")
        if all("=" in budget for budget in self.budgets):
            raise InputError(
                f"at least one budget must have no amount, as 'macs': the ratios are its amounts; "
                f"got {list(self.budgets)}"
            )
        for method in self.methods:
            make_method(method)
        for repair in self.repairs:
            if repair != "none" and repair not in REPAIRS:
                raise InputError(unknown("repair", repair, ["none", *REPAIRS]))
        for ratio in self.ratios:
            make_budgets(self.budgets_at(ratio), self.scope)
        find_metric(self.metric)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for what in ("draws", "epochs", "examples"):
            if (given := getattr(self, what)) is not None and given < 1:
                raise InputError(f"{what} must be positive, at least 1; got {given}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr (the learning rate) must be positive and finite, as 0.001; got {self.lr}")
        largest = LARGEST_SEED - NEXT_DRAW * self.draws
        if wrong := [seed for seed in self.seeds if not 0 <= seed <= largest]:
            raise InputError(
                f"seeds must be from 0 to {largest}, so that each of {self.draws} draws has a seed below "
                f"2**63; got {wrong[0]}"
            )

    def budgets_at(self, ratio: float) -> list[str]:
        """Return the budgets at one ratio, as text."""
        return [budget if "=" in budget else f"{budget}={ratio}" for budget in self.budgets]

    @property
    def all_methods(self) -> list[str]:
        """The methods, the control among them."""
        return [*self.methods, *([] if CONTROL in self.methods else [CONTROL])]

    @property
    def files(self) -> dict[str, str | None]:
        """The names of the model, the weights, the data and the metric, with absolute paths."""
        return {
            "model": str(Path(self.model).resolve())
            if is_pretrained(self.model)
            else absolute_name(self.model),
            "weights": None if self.weights is None else str(Path(self.weights).resolve()),
            "data": absolute_name(self.data),
            "holdout": None if self.holdout is None else absolute_name(self.holdout),
            "metric": absolute_name(self.metric),
        }


def run_bench(
    bench: Bench,
    out: str | Path,
    *,
    engine: str = "local",
    jobs: int = 2,
    address: str | None = None,
    limit: float | None = None,
    log: Callable[[str], None] | None = None,
) -> tuple[list[Row], str]:
    """Run a comparison, or what is left of it; return its rows, and a note on what differs between seeds.

    Args:
        bench: What to compare.
        out: Folder; its file ``trials.jsonl`` keeps each pruning as it comes.
        engine: As in `run_trials`.
        jobs: Prunings at a time.
        address: Address of a Ray cluster.
        limit: Seconds for one pruning, and for loading the model and the data of one seed.
        log: Called with a line of progress.

    Raises:
        SecateurError: As `make_trials` and `run_trials`.
    """
    check_engine(engine, jobs, address, limit)
    if log is not None:
        log("loading the model and the data")
    trials = make_trials(bench, inline=engine == "inline", limit=limit)
    path = Path(out) / RESULTS
    results = run_trials(trials, path, engine=engine, jobs=jobs, address=address, limit=limit, log=log)
    rows = [row for trial, result in zip(trials, results, strict=True) for row in _rows(trial, result, bench)]
    return rows, _seed_note(bench, trials)


def make_trials(bench: Bench, inline: bool = False, limit: float | None = None) -> list[Trial]:
    """Make the trials of a comparison, after checking that the model runs and can be traced.

    Args:
        bench: What to compare.
        inline: Whether to load the model and the data in this process, rather than in a worker.
        limit: Seconds for each seed; not with `inline`.

    Raises:
        InputError: If the model or the data are invalid or take too long, or the model cannot be traced.
    """
    finetune = sorted({"finetune" in repair for repair in bench.repairs})
    checked = _check_inputs(bench, finetune, inline, limit)
    model_hashes = checked["models"]
    one_each = len(set(model_hashes)) == len(bench.seeds) > 1
    if checked["seeded"] and not one_each and len(set(model_hashes)) > 1:
        raise InputError(f"{bench.model} gives the same model for some of the seeds {list(bench.seeds)}")
    data_hashes = dict(zip(finetune, checked["data"], strict=True))
    method_hashes = {method: hash_source(method) for method in bench.all_methods}
    metric_hash = hash_metric(bench.metric)
    first = (bench.seeds[0], bench.repairs[0], bench.ratios[0])
    return [
        Trial(
            FUNCTION,
            {
                "hashes": {
                    "model": model_hashes[number],
                    "data": data_hashes["finetune" in repair],
                    "method": method_hashes[method],
                    "metric": metric_hash,
                },
                "model_seed": seed if checked["seeded"] else None,
                "example_shape": bench.shape,
                "examples": bench.examples,
                "part_of_holdout": [0, 1] if one_each else [number, len(bench.seeds)],
                "seed": seed,
                "draw": draw,
                "pruning": _pruning_options(bench, method, repair, ratio, seed + NEXT_DRAW * draw),
                "metric": _without_folder(bench.metric),
                "latency": bench.latency,
                "diagnosed": (seed, repair, ratio) == first and method.partition(":")[0] in DIAGNOSTICS,
            },
            {"files": {**bench.files, "method": absolute_name(method)}},
        )
        for number, seed in enumerate(bench.seeds)
        for repair in bench.repairs
        for method in bench.all_methods
        for ratio in bench.ratios
        for draw in range(bench.draws if method == CONTROL else 1)
    ]


def _pruning_options(bench: Bench, method: str, repair: str, ratio: float, seed: int) -> Row:
    """Return the keyword arguments of a pruning; see `prune_once`."""
    options = {
        "method": _without_folder(method),
        "budgets": bench.budgets_at(ratio),
        "scope": bench.scope,
        "repair": None if repair == "none" else repair,
        "ignored_layers": list(bench.ignore),
        "seed": seed,
    }
    return {**options, "epochs": bench.epochs, "lr": bench.lr} if "finetune" in repair else options


def _without_folder(name: str) -> str:
    file, colon, rest = name.partition(":")
    return f"{Path(file).name}{colon}{rest}" if file.endswith(".py") else name


def _check_inputs(bench: Bench, finetune: list[bool], inline: bool, limit: float | None) -> Row:
    """Load the model and the data where the trials will, so that they are the same to the last bit."""
    params = {
        "files": bench.files,
        "example_shape": bench.shape,
        "ignored_layers": list(bench.ignore),
        "finetune": finetune,
        "seeds": list(bench.seeds),
    }
    trial = Trial(CHECK, params)
    if inline:
        load_model.cache_clear()
        load_batches.cache_clear()
        result = run_here(trial)
    else:
        with Worker() as worker:
            result = worker.run(trial, None if limit is None else limit * len(bench.seeds))
    if result.status == "timeout":
        raise InputError(
            f"loading {bench.model} and its data took longer than {limit:g} s for each of "
            f"{len(bench.seeds)} seeds: raise the limit, or omit it"
        )
    if result.status != "ok":
        raise InputError(result.error.removeprefix("InputError: "))
    return result.rows[0]


def _seed_note(bench: Bench, trials: Sequence[Trial]) -> str:
    one_each = len({trial.params["hashes"]["model"] for trial in trials}) > 1
    what = (
        "the model, which the factory makes for each seed"
        if one_each
        else "the held-out examples: there is one model, and each seed has its own part of them"
    )
    draws = f"; {CONTROL} is the mean of {bench.draws} draws for each seed" if bench.draws > 1 else ""
    return (
        f"Seeds differ in {what}; in the sample ({SAMPLE:.0%}) of the examples that methods and repairs look "
        f"at, and its order; and in the methods' own random choices{draws}. Samples overlap between seeds."
    )


def _rows(trial: Trial, result: TrialResult, bench: Bench) -> list[Row]:
    """Return the row of a result, also of a failed one, with the names that the user gives now."""
    params, pruning = trial.params, trial.params["pruning"]
    methods = {absolute_name(method): method for method in bench.all_methods}
    names = {
        "model": bench.model,
        "data": bench.data,
        "method": methods[trial.paths["files"]["method"]],
        "ratio": next(r for r in bench.ratios if bench.budgets_at(r) == pruning["budgets"]),
        "scope": bench.scope,
        "shared": params["part_of_holdout"][1] == 1,
        "memory": round(result.memory, 1),
    }
    if result.status == "ok":
        return [{**row, **names} for row in result.rows]
    status = result.error if result.status == "timeout" else f"failed: {result.error}"
    budget = repr(make_budgets(pruning["budgets"], bench.scope))
    what = {"repair": pruning["repair"], "seed": params["seed"], "draw": params["draw"], "budget": budget}
    return [{**names, **what, "status": status}]


def parse_methods(text: str) -> list[str]:
    """Return the methods in a comma-separated list; options may contain commas, and "all" is all methods.

    Example:
        >>> parse_methods("random,magnitude:p=2,over=both,file.py:Mine")
        ['random', 'magnitude:p=2,over=both', 'file.py:Mine']
    """
    if text == "all":
        return list(METHODS)
    methods: list[str] = []
    for piece in text.split(","):
        if methods and "=" in piece.partition(":")[0]:
            methods[-1] += f",{piece}"
        else:
            methods.append(piece.strip())
    return methods


def parse_numbers(text: str, kind: Callable[[str], Any], what: str) -> list[Any]:
    """Return the numbers in a comma-separated list.

    Raises:
        InputError: If something else is in it.

    Example:
        >>> parse_numbers("0,1,2", int, "seeds"), parse_numbers("0.5,0.25", float, "ratios")
        ([0, 1, 2], [0.5, 0.25])
    """
    try:
        return [kind(piece) for piece in text.split(",")]
    except ValueError as error:
        numbers = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{what} are {numbers} separated by commas; got {brief(text)}") from error
