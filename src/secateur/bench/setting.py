"""Compare methods on a user's own model: which prunings there are to do, and their rows.

A cell is one pruning: a method with its options, a budget, a repair, a seed.  At one place (budget and
repair) all methods get the same model, examples, allocation and repair, and are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.bench.models import SAMPLE, examples, method_hash, subject
from secateur.bench.prune_trial import DRAWN, check_rows
from secateur.bench.run import find_engine, run_trials
from secateur.bench.runner import execute
from secateur.bench.trial import Row, Trial, TrialResult
from secateur.bench.worker import Worker
from secateur.cli.specs import is_folder, make_budget, make_method
from secateur.core import InputError, StoreError, Tolerance, unknown
from secateur.data import DATASETS
from secateur.diagnostics import DIAGNOSTICS
from secateur.measure.metrics import METRICS
from secateur.methods import METHODS
from secateur.pruning import REPAIRS

JOB, LOOK = "secateur.bench.prune_trial:prune_once", "secateur.bench.prune_trial:look"
LEDGER = "cells.jsonl"
CONTROL = "random"
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Bench:
    """What to compare.

    Attributes:
        model: ``package.module:factory``, ``file.py:factory``, or a folder that transformers saved.  A
            factory with a parameter `seed` is called for each seed, and may train.
        data: A data set, or a function that returns batches.
        holdout: Function that returns the batches for the metric; a data set brings its own.
        methods: Names with options; "random" is added, as the control of every comparison.
        ratios: What stays, each in (0, 1].
        seeds: Seeds, each a pair for every pair of methods.
        repairs: ``"none"``, or names of `secateur.pruning.Repair`.
        kind: What the ratios count: ``"units"``, ``"params"``, ``"macs"`` or ``"weights"``.
        scope: ``"layer"``, ``"global"`` or ``"erk"``.
        weights: Safetensors file with the model's state.
        shape: Shape of the example inputs, as in ``"2,3,32,32"``.
        ignore: Layers whose units all stay.
        draws: Draws of "random" for each seed; their mean counts.
        count: Examples to calibrate and fine-tune on, at most.
        epochs: Epochs of a fine-tuning.
        lr: Its learning rate.
        metric: ``"accuracy"`` or ``"log_likelihood"``.
        latency: Whether to measure latencies, at batch 1 and 64.

    Raises:
        InputError: Names, ratios, seeds or options that cannot be, with near matches.
    """

    model: str
    data: str
    holdout: str | None = None
    methods: Sequence[str] = ("magnitude",)
    ratios: Sequence[float] = (0.75, 0.5, 0.35, 0.25, 0.125)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    repairs: Sequence[str] = ("none", "fold")
    kind: str = "units"
    scope: str = "layer"
    weights: str | None = None
    shape: str | None = None
    ignore: Sequence[str] = ()
    draws: int = 3
    count: int | None = None
    epochs: int = 1
    lr: float = 1e-3
    metric: str = "accuracy"
    latency: bool = True

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model."""
        for what in ("methods", "ratios", "seeds", "repairs"):
            values = list(getattr(self, what))
            if not values or len(set(values)) < len(values):
                raise InputError(f"{what} are one or more, each once; got {values}")
        for method in self.methods:
            make_method(method)
        for repair in self.repairs:
            if repair != "none" and repair not in REPAIRS:
                raise InputError(unknown("repair", repair, ["none", *(name for name in REPAIRS if name)]))
        for budget in self.budgets:
            if isinstance(make_budget(budget, self.scope), Tolerance):
                raise InputError("ratios count units, params, macs or weights: a tolerance has no ratio")
        if self.metric not in METRICS:
            raise InputError(unknown("metric", self.metric, list(METRICS)))
        self._check_numbers()

    def _check_numbers(self) -> None:
        for what in ("draws", "epochs", "count"):
            if (given := getattr(self, what)) is not None and given < 1:
                raise InputError(f"{what} must be positive, at least 1; got {given}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr (the learning rate) must be positive and finite, as 0.001; got {self.lr}")
        largest = LARGEST - DRAWN * self.draws
        if wrong := [seed for seed in self.seeds if not 0 <= seed <= largest]:
            raise InputError(
                f"seeds are not negative and at most {largest}, so that each of {self.draws} draws has one "
                f"below 2**63; got {wrong[0]}"
            )

    @property
    def budgets(self) -> list[str]:
        """The budgets as the command line writes them."""
        return [f"{self.kind}={ratio}" for ratio in self.ratios]

    @property
    def contestants(self) -> list[str]:
        """The methods, the control among them."""
        return [*self.methods, *([] if CONTROL in self.methods else [CONTROL])]


@dataclass(frozen=True)
class Grid:
    """The cells of a comparison.

    Attributes:
        cells: One a pruning.
        varies: What differs between seeds, in words.
    """

    cells: Sequence[Trial]
    varies: str


def make_grid(bench: Bench, inline: bool = False, limit: float | None = None) -> Grid:
    """Make the cells, once the model is known to run and to be captured.

    Args:
        bench: What to compare.
        inline: Whether to make model and data in this process, rather than in one like those that prune.
        limit: Seconds for each seed, as for one pruning; not with `inline`.

    Raises:
        InputError: The model or the data cannot be or take too long, or the model cannot be captured.
    """
    absolute = _Absolute(bench)
    tuned = sorted({"finetune" in repair for repair in bench.repairs})
    seen = _look(absolute, tuned, bench.seeds, inline, limit)
    hashes, own = seen["models"], len(set(seen["models"])) == len(bench.seeds) > 1
    if seen["seeded"] and not own and len(set(hashes)) > 1:
        raise InputError(f"{bench.model} gives the same model for some of the seeds {list(bench.seeds)}")
    data, code = (dict(zip(tuned, seen[what], strict=True)) for what in ("data", "code"))
    first = (bench.seeds[0], bench.repairs[0], bench.budgets[0])
    cells = [
        Trial(
            JOB,
            {
                **absolute.params,
                **absolute.tuning("finetune" in repair),
                "model_hash": hashes[at],
                "model_seed": seed if seen["seeded"] else None,
                "data_hash": data["finetune" in repair],
                "part_of_holdout": [0, 1] if own else [at, len(bench.seeds)],
                "method": method.name,
                "method_hash": method.hash,
                "draw": draw,
                "budget": budget,
                "repair": None if repair == "none" else repair,
                "portrait": (seed, repair, budget) == first and method.kind in DIAGNOSTICS,
                "seed": seed,
            },
            {**absolute.paths, "method_at": method.at},
            {"code": code["finetune" in repair]},
        )
        for at, seed in enumerate(bench.seeds)
        for repair in bench.repairs
        for method in absolute.methods
        for budget in bench.budgets
        for draw in range(bench.draws if method.kind == CONTROL else 1)
    ]
    return Grid(cells, _varies(bench, own))


@dataclass(frozen=True)
class _Contestant:
    """A method: as the user named it, the same without folders, with them, and what its code is."""

    given: str
    name: str
    at: str
    hash: str | None

    @property
    def kind(self) -> str:
        return self.given.partition(":")[0]


def _contestant(given: str) -> _Contestant:
    file, colon, rest = given.partition(":")
    name = f"{Path(file).name}{colon}{rest}" if file.endswith(".py") else given
    return _Contestant(given, name, _code_at(given), method_hash(given))


class _Absolute:
    """Names that mean the same in any folder and on any machine that has the files."""

    def __init__(self, bench: Bench) -> None:
        self.methods = [_contestant(method) for method in bench.contestants]
        self.paths: dict[str, Any] = {
            "model": _model_at(bench.model),
            "weights": None if bench.weights is None else str(Path(bench.weights).resolve()),
            "data": _data_at(bench.data),
            "holdout": None if bench.holdout is None else _data_at(bench.holdout),
        }
        self.params: dict[str, Any] = {
            "shape": bench.shape,
            "ignore": list(bench.ignore),
            "examples_at_most": bench.count,
            "scope": bench.scope,
            "metric": bench.metric,
            "latency": bench.latency,
        }
        self._tuning = {"epochs": bench.epochs, "lr": bench.lr}

    def tuning(self, tuned: bool) -> dict[str, Any]:
        """Return how long and how fast a repair tunes; None where it does not."""
        return self._tuning if tuned else dict.fromkeys(self._tuning)


def _code_at(name: str) -> str:
    """Return the name of a method, or of other code, with the folder of its file."""
    file, colon, rest = name.partition(":")
    return f"{Path(file).resolve()}{colon}{rest}" if file.endswith(".py") else name


def _model_at(name: str) -> str:
    return str(Path(name).resolve()) if is_folder(name) else _code_at(name)


def _data_at(name: str) -> str:
    known, _, folder = name.partition(":")
    return f"{known}:{Path(folder).resolve()}" if known in DATASETS and folder else _code_at(name)


def _look(
    absolute: _Absolute, tuned: list[bool], seeds: Sequence[int], inline: bool, limit: float | None
) -> Row:
    """Make model and data as the cells will, so that they are the same to the last bit."""
    asked = {name: absolute.params[name] for name in ("shape", "ignore")}
    params = {**absolute.paths, **asked, "tuned": tuned, "seeds": list(seeds)}
    if inline:
        subject.cache_clear()
        examples.cache_clear()
        done = execute(LOOK, params)
    else:
        with Worker() as worker:
            done = worker.run(LOOK, params, None if limit is None else limit * len(seeds))
    if done["status"] == "timeout":
        raise InputError(
            f"making {absolute.paths['model']} and its data took longer than {limit:g} s for each of "
            f"{len(seeds)} seeds: raise the limit, or leave it away"
        )
    if done["status"] != "ok":
        raise InputError(done["error"].removeprefix("InputError: "))
    return done["rows"][0]


def _varies(bench: Bench, own: bool) -> str:
    what = (
        "the model, which the factory makes for each seed"
        if own
        else ("the held-out examples: one model, and each seed has a part of them of its own")
    )
    draws = f"; {CONTROL} is the mean of {bench.draws} draws a seed" if bench.draws > 1 else ""
    return (
        f"Seeds differ in {what}; in the sample ({SAMPLE:.0%}) of the examples that methods and repairs look "
        f"at, and its order; and in the methods' own draws{draws}. Samples overlap between seeds."
    )


def run_bench(
    bench: Bench,
    out: str | Path,
    *,
    engine: str = "local",
    jobs: int = 2,
    address: str | None = None,
    limit: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[list[Row], str]:
    """Run a comparison, or what is left of it, and return its rows and what varies between seeds.

    Args:
        bench: What to compare.
        out: Folder; its file ``cells.jsonl`` keeps each pruning as it comes.
        engine: As in `run_trials`.
        jobs: Prunings at a time.
        address: Of a Ray cluster.
        limit: Seconds for one pruning, and for making the model and the data of one seed.
        tell: Called with words on how far it is.

    Raises:
        SecateurError: As `make_grid` and `run_trials`.
    """
    find_engine(engine, jobs, address, limit)
    if tell is not None:
        tell("making the model and the data")
    grid = make_grid(bench, inline=engine == "inline", limit=limit)
    path = Path(out) / LEDGER
    records = run_trials(grid.cells, path, engine=engine, jobs=jobs, address=address, limit=limit, log=tell)
    pairs = list(zip(grid.cells, records, strict=True))
    for cell, record in pairs:
        _check(cell, record, path)
    return [row for cell, record in pairs for row in _rows(cell, record, bench)], grid.varies


def split_methods(text: str) -> list[str]:
    """Return the methods in a list with commas, in which options have commas too; "all" is all of METHODS.

    Example:
        >>> split_methods("random,magnitude:p=2,over=both,file.py:Mine")
        ['random', 'magnitude:p=2,over=both', 'file.py:Mine']
    """
    if text == "all":
        return list(METHODS)
    found: list[str] = []
    for piece in text.split(","):
        if found and "=" in piece.partition(":")[0]:
            found[-1] += f",{piece}"
        else:
            found.append(piece.strip())
    return found


def ratios_of(text: str) -> list[float]:
    """Return the ratios in a list with commas.

    Raises:
        InputError: Something else stands there.

    Example:
        >>> ratios_of("0.5,0.25")
        [0.5, 0.25]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"ratios are numbers with commas, as in 0.5,0.25; got {text!r}") from error


def seeds_of(text: str) -> list[int]:
    """Return the seeds in a list with commas.

    Raises:
        InputError: Something else stands there.

    Example:
        >>> seeds_of("0,1,2")
        [0, 1, 2]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"seeds are whole numbers with commas, as in 0,1,2; got {text!r}") from error


def _check(cell: Trial, record: TrialResult, path: Path) -> None:
    try:
        if record.status == "ok":
            check_rows(record.rows, cell.params)
    except InputError as error:
        raise StoreError(
            f"the line of {path} with the key {cell.key} is not what a pruning left there ({error}): take it "
            "out, then its cell runs again"
        ) from error


def _rows(cell: Trial, record: TrialResult, bench: Bench) -> list[Row]:
    """Return the row of a record, named as the user names things now; of a failed one too."""
    params = cell.params
    said = {
        "model": bench.model,
        "data": bench.data,
        "method": next(m for m in bench.contestants if _code_at(m) == cell.paths["method_at"]),
        "ratio": float(params["budget"].partition("=")[2]),
        "scope": bench.scope,
        "shared": params["part_of_holdout"][1] == 1,
        "memory": round(record.memory, 1),
    }
    if record.status == "ok":
        return [{**row, **said} for row in record.rows]
    word = "stopped" if record.status == "timeout" else "failed"
    budget = repr(make_budget(params["budget"], bench.scope))
    what = {"repair": params["repair"], "seed": params["seed"], "draw": params["draw"]}
    return [{**said, **what, "budget": budget, "status": f"{word}: {record.error}"}]


__all__ = ["Bench", "Grid", "make_grid", "ratios_of", "run_bench", "seeds_of", "split_methods"]
