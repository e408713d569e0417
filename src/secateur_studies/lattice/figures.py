"""The figures of the study, from the rows of its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur_studies.common import Figure
from secateur_studies.lattice.tables import by_seed, interval, mean_of, part

__all__ = ["figures"]

Row = dict[str, Any]
Rows = Sequence[Row]
SHOWN = (
    "paper: irreducible, then mu",
    "context from data, then flow (default)",
    "in-strength alone",
    "magnitude",
    "random",
)


def figures(rows: Rows) -> list[Figure]:
    """Return the figures that there are rows for."""
    return [*_literal(rows), *_rigorous(rows), *_g2p(rows)]


def _literal(rows: Rows) -> Iterator[Figure]:
    for data in dict.fromkeys(r["data"] for r in part(rows, "literal")):
        shown = []
        for variant in dict.fromkeys(r["variant"] for r in part(rows, "literal", data=data)):
            own = part(rows, "literal", data=data, variant=variant)
            shown += [
                {"variant": variant, "seed": r["seed"], "zeros": r["zeros"], "accuracy": r["accuracy"]}
                for r in own
            ]
        lines = {
            v: [(r["zeros"], r["accuracy"]) for r in shown if r["variant"] == v]
            for v in dict.fromkeys(r["variant"] for r in shown)
        }
        text = "Each point is a training. Without masks that persist, the weights have grown back."
        yield Figure(
            f"literal-accuracy-{data}",
            f"Accuracy against zeros in W_hh, {data}",
            _drawn(lines, "share of zeros in W_hh", "accuracy", "markers"),
            text,
            shown,
        )


def _rigorous(rows: Rows) -> Iterator[Figure]:
    for data in dict.fromkeys(r["data"] for r in part(rows, "rigorous")):
        for repair in ("none", "fold"):
            own = [r for r in part(rows, "rigorous", data=data, repair=repair) if r["criterion"] in SHOWN]
            shown = [
                _point(own, criterion, removed)
                for criterion in SHOWN
                for removed in sorted({r["removed"] for r in own})
            ]
            lines = {c: [(r["removed"], r["accuracy"]) for r in shown if r["criterion"] == c] for c in SHOWN}
            with_ = "without repair" if repair == "none" else "with the least-squares fold"
            text = (
                f"Mean accuracy over the seeds {with_}; the rows have the 95 % interval of the paired "
                "difference with random removal."
            )
            if shown:
                yield Figure(
                    f"removed-{data}-{repair}",
                    f"Accuracy against units removed, {data}, {with_}",
                    _drawn(lines, "share of units removed", "accuracy"),
                    text,
                    shown,
                )


def _point(rows: Rows, criterion: str, removed: float) -> Row:
    here = [r for r in rows if r["removed"] == removed]
    own, other = ([r for r in here if r["criterion"] == c] for c in (criterion, "random"))
    ours, random = by_seed(own, "accuracy"), by_seed(other, "accuracy")
    low, high = interval([ours[s] - random[s] for s in ours])
    mean = mean_of(own, "accuracy")
    return {"criterion": criterion, "removed": removed, "accuracy": mean, "low": low, "high": high}


def _g2p(rows: Rows) -> Iterator[Figure]:
    folded = part(rows, "g2p", repair="fold")
    if not folded:
        return
    best = ("taylor", "matroid", "lattice", "magnitude", "random")
    lines, shown = {}, []
    for units in dict.fromkeys(r["units"] for r in folded):
        for criterion in best:
            own = [r for r in folded if (r["units"], r["criterion"]) == (units, criterion)]
            points = [
                (s, mean_of([r for r in own if r["removed"] == s], "error"))
                for s in sorted({r["removed"] for r in own})
            ]
            lines[f"{criterion}, {units}"] = points
            shown += [
                {"units": units, "criterion": criterion, "removed": s, "phoneme error": e} for s, e in points
            ]
    text = "With the least-squares fold and no training; over all units, and of the hidden units alone."
    yield Figure(
        "g2p-fold",
        "g2p-en: phoneme error against units removed, with fold",
        _drawn(lines, "share of units removed", "phoneme error"),
        text,
        shown,
    )


def _drawn(
    lines: Mapping[str, Sequence[tuple[Any, Any]]], x: str, y: str, mode: str = "lines+markers"
) -> dict[str, Any]:
    style = {"type": "scatter", "mode": mode}
    data = [
        {**style, "name": name, "x": [p[0] for p in points], "y": [p[1] for p in points]}
        for name, points in lines.items()
    ]
    return {"data": data, "layout": {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}}
