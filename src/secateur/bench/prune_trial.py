"""The function of a comparison's trials: prune the user's model once, and measure."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.bench.models import (
    example_inputs,
    find_metric,
    hash_metric,
    hash_source,
    load_batches,
    load_model,
    part,
    sample,
    takes_seed,
)
from secateur.bench.trial import Row
from secateur.core import Budget, InputError, SecateurError
from secateur.core.jsonable import plain
from secateur.diagnostics import diagnose
from secateur.methods import Method
from secateur.pruning import prune
from secateur.repair.base import Finetune, parse_repair
from secateur.result import Result
from secateur.specs import make_budgets, make_method, try_inputs
from secateur.tracing.trace import trace

__all__ = ["ChangedError", "check_inputs", "prune_once"]

LIGHT: Row = {"notes": {}, "folds": {}, "frozen": [], "steps": [], "finetune": {}}


class ChangedError(InputError):
    """The model, the data or a method has changed since the trials were made; there is no result."""


def prune_once(
    *,
    files: Mapping[str, Any],
    hashes: Mapping[str, str | None],
    model_seed: int | None,
    example_shape: str | None,
    examples: int | None,
    part_of_holdout: Sequence[int],
    seed: int,
    draw: int,
    pruning: Mapping[str, Any],
    metric: str,
    latency: bool,
    diagnosed: bool,
) -> list[Row]:
    """Prune a model once and return one row: the report, and what was pruned how.

    If the method refuses the model, the row's "status" says why.

    Args:
        files: Names with absolute paths: "model", "weights", "data", "holdout", "method", "metric".
        hashes: Hashes that "model", "data", "method" and "metric" must have.
        model_seed: Argument of the model's factory, or None.
        example_shape: Shape of the example inputs, or None.
        examples: Examples that methods and repairs get at most, or None.
        part_of_holdout: Number of the part of the held-out examples, and of how many.
        seed: Seed of the sample of examples.
        draw: Number of the draw, for methods that only draw.
        pruning: Keyword arguments of `secateur.prune` as JSON: method, budgets and scope, repair,
            ignored_layers, seed, and epochs and lr of a fine-tuning.
        metric: Name of the metric, without the folder.
        latency: Whether to measure latencies.
        diagnosed: Whether the row explains the structure of the method.

    Raises:
        ChangedError: If a hash is another.
    """
    model, model_example, model_hash = load_model(files["model"], files["weights"], model_seed)
    fit, held_out, data_example, data_hash = load_batches(
        files["data"], files["holdout"], "finetune" in (pruning["repair"] or "")
    )
    _check_hashes(files, hashes, model_hash, data_hash)
    budget = make_budgets(pruning["budgets"], pruning["scope"])
    row = {name: pruning[name] for name in ("method", "repair")}
    row |= {"budget": repr(budget), "seed": seed, "draw": draw}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data, method = sample(fit, seed, count=examples), make_method(files["method"])
            example = example_inputs(example_shape, data_example, model_example)
            result = _prune(model, example, budget, data, method, pruning)
            metric_function = find_metric(files["metric"])
            result = result.measure(part(held_out, *part_of_holdout), metric_function, latency=latency)
            if diagnosed:
                result = _diagnose(result, model, data, method)
    except SecateurError as error:
        return [{**row, "status": f"{type(error).__name__}: {' '.join(str(error).split())}"}]
    report = result.report.to_dict()
    if not diagnosed:
        del report["structure"]
    messages = sorted({" ".join(str(warning.message).split()) for warning in caught})
    return [plain({**report, **LIGHT, **row, "status": "ok", "warnings": messages})]


def _prune(
    model: nn.Module,
    example: Any,
    budget: Budget,
    data: list[Any],
    method: Method,
    pruning: Mapping[str, Any],
) -> Result:
    """Prune with the settings of a trial."""
    training = {name: pruning[name] for name in ("epochs", "lr") if name in pruning}
    repairs = [
        replace(repair, **training) if isinstance(repair, Finetune) else repair
        for repair in parse_repair(pruning["repair"])
    ]
    return prune(
        model,
        example,
        budget,
        data,
        method=method,
        repair=repairs,
        ignored_layers=pruning["ignored_layers"],
        progress=False,
        seed=pruning["seed"],
    )


def _check_hashes(
    files: Mapping[str, Any], wanted: Mapping[str, Any], model_hash: str, data_hash: str
) -> None:
    """Raise `ChangedError` if trials of one comparison would not be about the same things."""
    found = {
        "model": model_hash,
        "data": data_hash,
        "method": hash_source(files["method"]),
        "metric": hash_metric(files["metric"]),
    }
    for what, value in found.items():
        if value != wanted[what]:
            raise ChangedError(
                f"{files[what]} is not the same {what} as when the comparison began: if it was edited, run "
                "the command again; if it differs each time it is made, seed it, or give the weights"
            )


def _diagnose(result: Result, model: nn.Module, data: list[Any], method: Method) -> Result:
    try:
        return diagnose(result, model, data, method)
    except SecateurError as error:
        warnings.warn(f"no page on the structure of {method.name!r}: {error}", stacklevel=2)
        return result


def check_inputs(
    *,
    files: Mapping[str, Any],
    example_shape: str | None,
    ignored_layers: Sequence[str],
    finetune: Sequence[bool],
    seeds: Sequence[int],
) -> list[Row]:
    """Load the models and the data, report what would make every pruning fail, and return the hashes.

    Args:
        files: As in `prune_once`.
        example_shape: The same.
        ignored_layers: Layers whose units all stay.
        finetune: Whether the batches are for fine-tuning: False, True or both.
        seeds: Seeds.

    Returns:
        One row: "models" holds hashes in the order of `seeds`, "data" in that of `finetune`; "seeded" is
        whether the factory takes the seed.

    Raises:
        InputError: If the model or the data are invalid.
        CaptureError: If the model cannot be traced.
    """
    seeded = takes_seed(files["model"], files["weights"])
    data_hashes = []
    for kind in finetune:
        fit, held_out, data_example, data_hash = load_batches(files["data"], files["holdout"], kind)
        sample(fit, seeds[0])
        part(held_out, 0, len(seeds))
        data_hashes.append(data_hash)
    models = [load_model(files["model"], files["weights"], seed if seeded else None) for seed in seeds]
    model, model_example, _ = models[0]
    inputs = example_inputs(example_shape, data_example, model_example)
    try_inputs(model, inputs)
    trace(model, inputs, ignored_layers=ignored_layers)
    return [{"seeded": seeded, "models": [model_hash for *_, model_hash in models], "data": data_hashes}]
