"""Parts of the page beside the runs: words, a figure, and the table behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page: words, a figure, and the table behind it.

    Colours in a figure may be ``"var(--c0)"`` to ``"var(--c11)"``, ``"var(--ink)"``, ``"var(--soft)"`` or
    ``"var(--line)"``, which follow the page into the dark.

    Attributes:
        title: Heading.
        text: Paragraphs, separated by blank lines; emphasis, code and links as in Markdown.
        rows: The table, flat dictionaries.
        figure: A plotly figure as a dictionary with "data" and "layout", or None.
        alternative: What the figure shows, for those who cannot see it.
        chapter: Heading that the section shares with its neighbours of the same chapter; "" for none.
        network: Network that the section speaks of; the page shows one network of a chapter at a time.
        layer: Layer or group that it speaks of, likewise.
    """

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figure: Mapping[str, Any] | None = None
    alternative: str = ""
    chapter: str = ""
    network: str = ""
    layer: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns, in the order of their appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    @property
    def paragraphs(self) -> list[str]:
        """The text in paragraphs."""
        return [part for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True, eq=False)
class Chapter:
    """Neighbouring sections under one heading, each with its number on the page.

    Attributes:
        title: The heading; "" for a section that stands by itself.
        sections: (number, section).
    """

    title: str
    sections: Sequence[tuple[int, Section]]

    @property
    def networks(self) -> list[str]:
        """What the sections speak of, in the order of appearance."""
        return list(dict.fromkeys(s.network for _, s in self.sections if s.network))

    @property
    def layered(self) -> bool:
        """Whether any section speaks of one layer."""
        return any(s.layer for _, s in self.sections)


def chapters(sections: Iterable[Section]) -> list[Chapter]:
    """Gather neighbouring sections of the same chapter.

    Example:
        >>> parts = [Section("a"), Section("b", chapter="C"), Section("c", chapter="C"), Section("d")]
        >>> [(c.title, [s.title for _, s in c.sections]) for c in chapters(parts)]
        [('', ['a']), ('C', ['b', 'c']), ('', ['d'])]
    """
    numbered = list(enumerate(sections))
    together = groupby(numbered, key=lambda x: (x[1].chapter, None if x[1].chapter else x[0]))
    return [Chapter(title, list(parts)) for (title, _), parts in together]


__all__ = ["Chapter", "Section", "chapters"]
