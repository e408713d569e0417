"""The diagnostics in reports as sections of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.html.rows import Row, flatten, network_of
from secateur.html.section import Section

__all__ = ["diagnostic_sections"]

TITLES = {
    "matroid": "Matroid: which units depend on others",
    "spectral": "Spectrum: how each layer hangs together",
    "mip": "Integer program: how much each unit matters",
    "lattice": "Lattice: the order of influence",
}
OLD = "This section was written by an older version of Secateur. Prune again to draw it."


def diagnostic_sections(runs: Sequence[Row]) -> list[Section]:
    """Return the sections of the diagnostics in runs, one chapter a structure.

    Args:
        runs: Runs as dictionaries. Runs without diagnostics of a known structure are ignored.
    """
    sections, seen = [], Counter[tuple[str, str]]()
    for kind, chapter in TITLES.items():
        for run in runs:
            structure = run.get("structure") or {}
            if structure.get("structure") != kind:
                continue
            name = run_name(flatten(run))
            seen[kind, name] += 1
            if seen[kind, name] > 1:
                name += f", run {seen[kind, name]}"
            stored = structure.get("sections", [{"title": "Not drawn", "text": OLD}])
            sections += [Section(**part, chapter=chapter, network=name) for part in stored]
    return sections


def run_name(row: Mapping[str, Any]) -> str:
    """Return network, method, budget, repair and seed of a run as text.

    Example:
        >>> run_name({"data": "digits", "model": "mlp", "method": "mip", "budget": "Units(0.5)", "seed": 3})
        'digits, mlp: mip, Units(0.5), repair none, seed 3'
    """
    parts = [str(row[key]) for key in ("method", "budget") if row.get(key) is not None]
    parts += [f"{key} {row.get(key, missing)}" for key, missing in (("repair", "none"), ("seed", "unknown"))]
    return f"{network_of(row)}: {', '.join(parts)}"
