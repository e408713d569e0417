"""Sections of the page besides the runs: text, a figure, and the table behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from secateur.html.rows import Row, flatten, run_label

__all__ = ["Section", "chapters", "diagnostic_sections"]

DIAGNOSTICS = {
    "matroid": "Matroid: which units depend on others",
    "spectral": "Spectrum: how each layer hangs together",
    "mip": "Integer program: how much each unit matters",
    "lattice": "Lattice: the order of influence",
}
OLD = "This section was written by an older version of Secateur. Prune again to draw it."


@dataclass(frozen=True, eq=False)
class Section:
    """A section of the page: text, a figure, and the table behind it.

    Colours in a figure may be ``"var(--c0)"`` to ``"var(--c11)"``, ``"var(--ink)"``, ``"var(--soft)"`` or
    ``"var(--line)"``; they follow the light and dark colours of the page.

    Attributes:
        title: Heading.
        text: Paragraphs, separated by blank lines, with emphasis, code and links as in Markdown.
        rows: The table, flat dictionaries.
        figure: A plotly figure as a dictionary with "data" and "layout", or None.
        alternative: A text that replaces the figure for readers who cannot see it.
        chapter: Heading that neighbouring sections share; "" for none.
        run: Run that the section is about; a chapter shows one run at a time.
        layer: Layer or group that the section is about; a chapter shows one layer at a time.
    """

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figure: Mapping[str, Any] | None = None
    alternative: str = ""
    chapter: str = ""
    run: str = ""
    layer: str = ""


def chapters(sections: Iterable[Section]) -> list[tuple[str, list[tuple[int, Section]]]]:
    """Group neighbouring sections of the same chapter: its title, and its sections with their numbers.

    Example:
        >>> parts = [Section("a"), Section("b", chapter="C"), Section("c", chapter="C"), Section("d")]
        >>> [(title, [s.title for _, s in numbered]) for title, numbered in chapters(parts)]
        [('', ['a']), ('C', ['b', 'c']), ('', ['d'])]
    """
    numbered = list(enumerate(sections))
    groups = groupby(numbered, key=lambda x: (x[1].chapter, None if x[1].chapter else x[0]))
    return [(title, list(parts)) for (title, _), parts in groups]


def diagnostic_sections(runs: Sequence[Row]) -> list[Section]:
    """Return the sections that `secateur.diagnose` stored in reports, one chapter a structure.

    Args:
        runs: Runs as dictionaries; runs without diagnostics of a known structure are ignored.
    """
    sections, seen = [], Counter[tuple[str, str]]()
    for name, chapter in DIAGNOSTICS.items():
        for run in runs:
            structure = run.get("structure") or {}
            if structure.get("structure") != name:
                continue
            label = run_label(flatten(run))
            seen[name, label] += 1
            if seen[name, label] > 1:
                label += f", run {seen[name, label]}"
            stored = structure.get("sections", [{"title": "Not drawn", "text": OLD}])
            sections += [Section(**part, chapter=chapter, run=label) for part in stored]
    return sections
