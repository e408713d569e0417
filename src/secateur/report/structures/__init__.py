"""Pages on the structure behind a method: plain portraits in, sections of the report out.

A portrait is what `secateur.portrait.portray` leaves in ``Report.structure``: numbers, words and lists, under
``"structure"`` the name of the structure.  Nothing here looks at a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from secateur.report.payload import name_of, network_of
from secateur.report.rows import Row, flatten
from secateur.report.section import Section
from secateur.report.structures.lattice import lattice_sections
from secateur.report.structures.matroid import matroid_sections
from secateur.report.structures.mip import mip_sections
from secateur.report.structures.spectral import spectral_sections

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
    rows = [flatten(run) for run in held]
    names = [network_of(row) for row in rows]
    twice = Counter((run["structure"]["structure"], name) for run, name in zip(held, names, strict=True))
    found = []
    for kind, draw in DRAWN.items():
        for run, row, name in zip(held, rows, names, strict=True):
            if run["structure"]["structure"] == kind:
                told = f"{name}: {name_of(row, rows)}" if twice[kind, name] > 1 else name
                found += [replace(s, chapter=TITLES[kind], network=told) for s in draw(run["structure"])]
    return found


__all__ = ["DRAWN", "structure_sections"]
