"""Pages on the structure behind a method: plain portraits in, sections of the report out.

A portrait is what `secateur.diagnostics.portray` leaves in ``Report.structure``: numbers and lists, under
``"structure"`` the name of the structure.  Nothing here looks at a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from secateur.html.payload import network_of
from secateur.html.rows import Row, flatten
from secateur.html.section import Section
from secateur.html.structures.lattice import lattice_sections
from secateur.html.structures.matroid import matroid_sections
from secateur.html.structures.mip import mip_sections
from secateur.html.structures.spectral import spectral_sections

DRAWN: dict[str, Callable[[Mapping[str, Any]], list[Section]]] = {
    "matroid": matroid_sections,
    "spectral": spectral_sections,
    "mip": mip_sections,
    "lattice": lattice_sections,
}
TITLES = {
    "matroid": "Matroid: which units depend on others",
    "spectral": "Spectrum: how each layer hangs together",
    "mip": "Mixed-integer program: how much each unit matters",
    "lattice": "Lattice: the order of influence",
}


def structure_sections(values: Sequence[Row]) -> list[Section]:
    """Draw the portraits that runs hold, one chapter a structure.

    Args:
        values: Runs as dictionaries; those without a portrait of a known structure count for nothing.
    """
    held = [run for run in values if (run.get("structure") or {}).get("structure") in DRAWN]
    found, seen = [], Counter[tuple[str, str]]()
    for kind, draw in DRAWN.items():
        for run in held:
            if run["structure"]["structure"] == kind:
                told = whose(flatten(run))
                seen[kind, told] += 1
                if seen[kind, told] > 1:
                    told += f", run {seen[kind, told]}"
                found += [replace(s, chapter=TITLES[kind], network=told) for s in draw(run["structure"])]
    return found


def whose(row: Row) -> str:
    """Say whose picture it is: network, method, budget, repair and seed.

    Example:
        >>> whose({"data": "digits", "model": "mlp", "method": "mip", "budget": "Units(0.5)", "seed": 3})
        'digits, mlp: mip, Units(0.5), repair none, seed 3'
    """
    told = [str(row[key]) for key in ("method", "budget") if row.get(key) is not None]
    told += [f"{key} {row.get(key, missing)}" for key, missing in (("repair", "none"), ("seed", "unknown"))]
    return f"{network_of(row)}: {', '.join(told)}"


__all__ = ["DRAWN", "structure_sections", "whose"]
