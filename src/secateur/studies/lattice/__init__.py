"""The study of lattice-based pruning of recurrent networks: `secateur study lattice`.

Four parts, each a list of rows (one JSON object a line) and a table in Markdown:

- ``literal``: the paper's Algorithms 2 and 3 as they stand, beside its Tables I and II and controls;
- ``rigorous``: whole units removed by the order of the network's own weights or data, against other criteria;
- ``effect``: modularity, Lyapunov exponent and information before and after;
- ``g2p``: a real GRU encoder-decoder, where its weights are given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.core import InputError, unknown
from secateur.data import load
from secateur.studies.lattice import effect, g2p, literal, rigorous
from secateur.studies.lattice.tables import markdown

__all__ = ["PARTS", "run"]

PARTS = ("literal", "rigorous", "effect", "g2p")
Row = dict[str, Any]


def run(
    full: bool = False,
    out: str | Path = "study-lattice",
    seed: int = 0,
    *,
    data: str = "digits",
    folder: str | Path | None = None,
    parts: Sequence[str] | None = None,
    weights: str | Path | None = None,
) -> dict[str, list[Row]]:
    """Run the study and write ``<part>.jsonl`` and ``<part>.md`` for each part.

    Args:
        full: More seeds, epochs and words; minutes become an hour.
        out: Folder to write to.
        seed: First of the seeds.
        data: Name of the data set: "digits", "fashion", or "mnist" with a folder.
        folder: Where its files lie.
        parts: Which of `PARTS` to run; by default all, "g2p" only where its weights and words are installed.
        weights: For "g2p": ``checkpoint20.npz`` of the package g2p-en; by default of the installed one.

    Raises:
        InputError: For an unknown part, or data that is not there.
    """
    if parts is None:
        parts = PARTS if weights or g2p.available() else PARTS[:3]
    for part in set(parts) - set(PARTS):
        raise InputError(unknown("part", part, PARTS))
    folder_out = Path(out)
    folder_out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Row]] = {}
    for part in parts:
        if part == "g2p":
            rows = g2p.rows(full, seed, weights)
        else:
            made = {"literal": literal.rows, "rigorous": rigorous.rows, "effect": effect.rows}[part]
            rows = made(lambda s: load(data, folder, s), full, seed)
        results[part] = rows
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder_out / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        (folder_out / f"{part}.md").write_text(markdown(part, rows), encoding="utf-8")
    return results
