"""Portraits: a pruned network along the structure that its method follows, as plain numbers.

`diagnose` computes them from the original model, the plan and the data, and puts them into
``Report.structure``, from where the HTML report draws them.  Each structure has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.core import InputError
from secateur.diagnostics.context import Look
from secateur.diagnostics.lattice import lattice_portrait
from secateur.diagnostics.matroid import matroid_portrait
from secateur.diagnostics.mip import mip_portrait
from secateur.diagnostics.spectral import spectral_portrait
from secateur.methods import Method
from secateur.pruning import Result, apart, find_method

PORTRAITS: dict[str, Callable[[Look], dict[str, Any]]] = {
    "matroid": matroid_portrait,
    "spectral": spectral_portrait,
    "mip": mip_portrait,
    "lattice": lattice_portrait,
}


def diagnose(
    result: Result,
    model: nn.Module,
    data: Iterable[Any] | None = None,
    method: str | Method | None = None,
) -> Result:
    """Return the result with a portrait in its report; nothing else is changed.

    Args:
        result: What `prune` returned.
        model: The original model.
        data: The batches that the pruning looked at, where its method needs any.
        method: The method with its options; by default the one that the plan names, with its defaults.

    Raises:
        InputError: The method follows none of the structures, or a step of it fails.

    Example:
        >>> import torch
        >>> from secateur import Weights, prune
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = prune(mlp, torch.ones(2, 4), "spectral", Weights(0.5), batch_sizes=())
        >>> structure = diagnose(result, mlp).report.structure
        >>> structure["structure"], structure["layers"]["0.weight"]["before"]["components"]
        ('spectral', 1)
    """
    chosen = find_method(method if method is not None else result.plan.method)
    if chosen.name not in PORTRAITS:
        raise InputError(
            f"{chosen.name!r} follows no structure that could be drawn; those that do: {', '.join(PORTRAITS)}"
        )
    batches = None if data is None else list(data)
    if "fold" in (result.report.repair or ""):
        batches, _ = apart(batches)  # the method did not see what the fold was judged on
    look = Look(model, result.plan, chosen, batches)
    return replace(result, report=replace(result.report, structure=PORTRAITS[chosen.name](look)))


__all__ = ["PORTRAITS", "diagnose"]
