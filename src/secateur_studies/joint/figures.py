"""Figures of the joint study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from secateur_studies.common import Figure
from secateur_studies.joint.cells import REPAIRS
from secateur_studies.joint.standing import Block
from secateur_studies.joint.tables import WORDS, names, standings

__all__ = ["figures"]

Row = dict[str, Any]


def figures(found: Sequence[Block]) -> list[Figure]:
    """Return the standings as bars, and a map of points behind the best for each repair."""
    return [_bars(found), *_maps(found)] if found else []


def _bars(found: Sequence[Block]) -> Figure:
    rows = list(standings(found))
    order = [row["method"] for row in rows if row["repair"] == "fold"]
    data: list[Row] = []
    for repair in REPAIRS:
        behind = {row["method"]: row["behind"] for row in rows if row["repair"] == repair}
        data.append({"type": "bar", "name": WORDS[repair], "x": order, "y": [behind.get(m) for m in order]})
    layout = {"barmode": "group", "yaxis": {"title": {"text": "points behind the best, on average"}}}
    kept = [{k: row[k] for k in ("repair", "method", "behind", "blocks")} for row in rows]
    text = "Mean distance to the best method of each block, for each repair; the lower the better."
    return Figure("behind", "Points behind the best", {"data": data, "layout": layout}, text, kept)


def _maps(found: Sequence[Block]) -> Iterator[Figure]:
    for repair in REPAIRS:
        mine = [block for block in found if block.repair == repair]
        order = names(mine)
        rows = [
            {
                "block": f"{b.network}, {b.data}, {b.keep:.0%} kept",
                "method": name,
                "behind": b.means[name] - b.means[b.best],
            }
            for b in mine
            for name in order
            if name in b.lost
        ]
        places = list(dict.fromkeys(row["block"] for row in rows))
        values = {(row["block"], row["method"]): row["behind"] for row in rows}
        z = [[values.get((place, name)) for name in order] for place in places]
        data = [
            {
                "type": "heatmap",
                "x": order,
                "y": places,
                "z": z,
                "colorscale": "Viridis",
                "reversescale": True,
                "colorbar": {"title": {"text": "points"}},
            }
        ]
        layout = {"yaxis": {"automargin": True, "autorange": "reversed"}, "height": 200 + 16 * len(places)}
        text = f"Points behind the best method of each block, {WORDS[repair]}: light is near the best."
        title = f"Distance to the best, {WORDS[repair]}"
        yield Figure(f"map-{repair}", title, {"data": data, "layout": layout}, text, rows)
