"""Diagnostics: why a method removed what it did, as figures and tables of the structure that it follows.

`diagnose` looks at the original model, the plan and the data once more and stores the sections of a page in
``Report.structure``. The HTML report draws them. Each structure has a module here, with its numbers and its
figures.  `measure_sensitivity` asks before any pruning what each group would cost and save.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from secateur.batches import as_batches, split_off_guard
from secateur.core import InputError
from secateur.diagnostics.context import DiagnosticContext
from secateur.diagnostics.sensitivity import GroupSensitivity, Sensitivities, measure_sensitivity
from secateur.methods import Method, find_method
from secateur.result import Result

__all__ = ["DIAGNOSTICS", "GroupSensitivity", "Sensitivities", "diagnose", "measure_sensitivity"]

# Each is a module here with a function NAME_sections; imported on use, since the structures take a second.
DIAGNOSTICS = ("matroid", "spectral", "mip", "lattice")


def diagnose(
    result: Result,
    model: nn.Module,
    data: Iterable[Any] | None = None,
    method: str | Method | None = None,
) -> Result:
    """Return the result with diagnostics in its report; nothing else changes.

    Args:
        result: The result of `prune`.
        model: The original model.
        data: The batches that the method saw, if it needs any.
        method: The method with its options; by default the method that the plan names, with its defaults.

    Returns:
        The result, with ``{"structure": name, "sections": [...]}`` in ``report.structure``.

    Raises:
        InputError: If the method has no diagnostics, or they need data and there is none.

    Example:
        >>> import torch
        >>> from secateur import Weights, prune
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = prune(mlp, torch.ones(2, 4), Weights(0.5), method="spectral")
        >>> diagnose(result, mlp).report.structure["sections"][0]["title"]
        'lambda_2 of each layer'
    """
    chosen = find_method(method if method is not None else result.plan.method)
    if chosen.name not in DIAGNOSTICS:
        raise InputError(
            f"there are no diagnostics of {chosen.name!r}; methods with diagnostics: {', '.join(DIAGNOSTICS)}"
        )
    batches = None if data is None else as_batches(data)
    if batches and "fold" in (result.report.repair or ""):
        batches, _ = split_off_guard(batches)  # the method did not see the batches that judged the fold
    context = DiagnosticContext(model, result.plan, chosen, batches)
    module = import_module(f"secateur.diagnostics.{chosen.name}")
    sections = getattr(module, f"{chosen.name}_sections")(context)
    structure = {"structure": chosen.name, "sections": sections}
    return replace(result, report=replace(result.report, structure=structure))
