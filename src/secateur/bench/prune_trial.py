"""The job behind a cell of a comparison: prune the user's model once, and measure."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from torch import nn

from secateur.bench.models import (
    code_hash,
    example_inputs,
    examples,
    method_hash,
    part,
    sample,
    subject,
    takes_seed,
)
from secateur.bench.trial import Row
from secateur.cli.specs import make_budget, make_method, try_inputs
from secateur.core import InputError, SecateurError
from secateur.core.jsonable import plain
from secateur.diagnostics import diagnose
from secateur.methods import Method
from secateur.pruning import Repair, Result, prune
from secateur.report import Report
from secateur.tracing.trace import trace

LIGHT: Row = {"notes": {}, "folds": {}, "frozen": [], "steps": [], "finetune": {}}
DRAWN = 1_000_003
WORDS = ("NaN", "Infinity", "-Infinity")  # as `plain` writes them


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """One pruning, in words.

    Attributes:
        model: As on the command line.
        model_hash: What the model must be.
        weights: Safetensors file, or None.
        model_seed: Seed that its factory gets, or None.
        shape: Shape of the example inputs, or None.
        ignore: Layers whose units all stay.
        data: As on the command line.
        data_hash: What the data must be.
        holdout: Function that returns the batches for the metric, or None.
        examples_at_most: Examples that methods and repairs get, at most.
        part_of_holdout: Number of the part of the held-out examples, and of how many.
        method: Name with options, without folders.
        method_at: The same with folders.
        method_hash: What the code of the method must be; None for one of Secateur's.
        draw: Number of the draw, for methods that only draw.
        budget: What stays, as in ``units=0.5``.
        scope: ``layer``, ``global`` or ``erk``.
        repair: A repair, or None.
        epochs: Epochs of a fine-tuning; None where there is none.
        lr: Its learning rate; None likewise.
        metric: ``accuracy`` or ``log_likelihood``.
        latency: Whether to measure it.
        portrait: Whether the row shows what the method's structure looks like.
        seed: Seed of the sample, the method and the fine-tuning.
    """

    model: str
    model_hash: str
    weights: str | None
    model_seed: int | None
    shape: str | None
    ignore: Sequence[str]
    data: str
    data_hash: str
    holdout: str | None
    examples_at_most: int | None
    part_of_holdout: Sequence[int]
    method: str
    method_at: str
    method_hash: str | None
    draw: int
    budget: str
    scope: str
    repair: str | None
    epochs: int | None
    lr: float | None
    metric: str
    latency: bool
    portrait: bool
    seed: int

    def run(self) -> Result:
        """Make model and data, and prune.

        Raises:
            InputError: Model, data or method are not the same as when the cells were made.
        """
        made, example, found = subject(self.model, self.weights, self.model_seed)
        if found != self.model_hash:
            raise ChangedError(
                f"{self.model} gives another model each time (or on each machine): seed it, or give --weights"
            )
        batches, hashed = examples(self.data, self.holdout, "finetune" in (self.repair or ""))
        if hashed != self.data_hash:
            raise ChangedError(f"{self.data} gives other batches each time it is called: seed it")
        if method_hash(self.method_at) != self.method_hash:
            raise ChangedError(f"the code of {self.method} changed since the run began: run it again")
        first, of = self.part_of_holdout
        method = make_method(self.method_at)
        fitting = sample(batches.fit or [], self.seed, count=self.examples_at_most)
        tuning: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs, "lr": self.lr}
        result = prune(
            made,
            example_inputs(example, self.shape, batches),
            method,
            make_budget(self.budget, self.scope),
            fitting,
            holdout=part(batches.holdout or [], first, of),
            repair=cast(Repair, self.repair),
            metric=self.metric,
            ignored_layers=self.ignore,
            **tuning,
            batch_sizes=(1, 64) if self.latency else (),
            progress=False,
            seed=self.seed + DRAWN * self.draw,
        )
        return _portrayed(result, made, fitting, method) if self.portrait else result


def _portrayed(result: Result, made: nn.Module, fitting: list[Any], method: Method) -> Result:
    try:
        return diagnose(result, made, fitting, method)
    except SecateurError as error:
        warnings.warn(f"no page on the structure of {method.name!r}: {error}", stacklevel=2)
        return result


class ChangedError(InputError):
    """A model or data that are not what the cells were made for: no result, rather than a refusal."""


def prune_once(**params: Any) -> list[Row]:
    """Prune a model once and return one row: the report, and what the cell was.

    A method that refuses is a row whose "status" says why.

    Args:
        params: The attributes of a `Pruning`.

    Raises:
        InputError: The model or the data are not the same as when the cells were made.
    """
    work = Pruning(**params)
    what = {
        "data": work.data,
        "method": work.method,
        "budget": repr(make_budget(work.budget, work.scope)),
        "repair": work.repair,
        "seed": work.seed,
        "draw": work.draw,
    }
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = work.run()
    except ChangedError:
        raise
    except SecateurError as error:
        status = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [{"model": work.model, **what, "status": status}]
    report = result.report.to_dict()
    if not work.portrait:
        del report["structure"]
    warned = sorted({" ".join(str(warning.message).split()) for warning in said})
    return [plain({**report, **LIGHT, **what, "status": "ok", "warnings": warned})]


def check_rows(rows: Sequence[Row], params: Mapping[str, Any]) -> None:
    """Check that rows are what `prune_once` returns: the file that kept them may have been edited.

    Args:
        rows: The rows.
        params: What `prune_once` was called with.

    Raises:
        InputError: They are not; names the field.
    """
    if len(rows) != 1:
        raise InputError(f"a pruning leaves one row, not {len(rows)}")
    (row,) = rows
    for name in ("repair", "seed", "draw"):
        if name not in row or row[name] != params[name]:
            raise InputError(f"{name!r} should be {params[name]!r}, not {ascii(row.get(name))[:60]}")
    if not isinstance(row.get("status"), str):
        raise InputError(f"'status' should be words, not {ascii(row.get('status'))[:60]}")
    if row["status"] != "ok":
        return
    report = Report.from_dict({field.name: row[field.name] for field in fields(Report) if field.name in row})
    for name in ("groups", "masks", "seconds", "versions"):
        if not isinstance(getattr(report, name), Mapping):
            raise InputError(f"{name!r} should be a mapping, not {ascii(getattr(report, name))[:60]}")
    for name, value in _numbers(report):
        if not (value in WORDS if isinstance(value, str) else _finite(value)):
            raise InputError(f"{name} should be a number, not {ascii(value)[:60]}")


def _numbers(report: Report) -> Iterator[tuple[str, Any]]:
    for name, side in (("before", report.before), ("after", report.after)):
        yield f"the metric {name}", side.metric
        yield from ((f"{key} {name}", value) for key, value in asdict(side.cost).items())
        yield from ((f"a latency {name}", latency.median) for latency in side.latency)
    yield from ((f"the time to {key}", value) for key, value in report.seconds.items())


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def look(
    *,
    model: str,
    weights: str | None,
    shape: str | None,
    ignore: list[str],
    data: str,
    holdout: str | None,
    tuned: list[bool],
    seeds: list[int],
) -> list[Row]:
    """Make model and data, find out what would make every pruning fail, and return their hashes.

    Args:
        model: As on the command line, as all that follows.
        weights: Safetensors file, or None.
        shape: Shape of the example inputs, or None.
        ignore: Layers whose units all stay.
        data: Data set or function.
        holdout: Function, or None.
        tuned: Whether batches are for fine-tuning as well, and whether not.
        seeds: Seeds.

    Returns:
        One row: "models" holds hashes in the order of `seeds`, "data" and "code" in that of `tuned`; "seeded"
        says whether the factory takes the seed.

    Raises:
        InputError: The model or the data cannot be.
        CaptureError: The model cannot be captured.
    """
    seeded = takes_seed(model, weights)
    hashed = []
    for kind in tuned:
        batches, found = examples(data, holdout, kind)
        sample(batches.fit or [], seeds[0])
        part(batches.holdout or [], 0, len(seeds))
        hashed.append(found)
    made, example, _ = subject(model, weights, seeds[0] if seeded else None)
    inputs = example_inputs(example, shape, batches)
    try_inputs(made, inputs)
    network = trace(made, inputs, ignored_layers=ignore)
    models = [subject(model, weights, seed if seeded else None)[2] for seed in seeds]
    code = [code_hash(network, made, kind) for kind in tuned]
    return [{"seeded": seeded, "models": models, "data": hashed, "code": code}]


__all__ = ["ChangedError", "Pruning", "check_rows", "look", "prune_once"]
