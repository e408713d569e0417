"""Tables of the study, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.studies.matroid.post import CRITERIA, FRACTIONS
from secateur.studies.matroid.published import AT_75, AT_100, CURVES_200

__all__ = ["changes", "report"]

Row = Mapping[str, Any]
Rows = Sequence[Row]


def report(found: Mapping[str, Rows]) -> str:
    """Return the study as Markdown."""
    pieces = ["# Matroid-guided pruning: the post, its limits, and ordinary networks"]
    makers = {
        "post": _post_section, "audits": _audit_section, "ordinary": _ordinary_section,
        "intervals": _interval_section, "planted": _planted_section,
    }  # fmt: skip
    pieces += [make(found[name]) for name, make in makers.items() if found.get(name)]
    return "\n\n".join(pieces) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
    return str(value)


def changes(rows: Rows, mode: str, units: int, criterion: str) -> np.ndarray:
    """Return the changes of one cell, [seeds, fractions]."""
    kept = [r for r in rows if (r["mode"], r["units"], r["criterion"]) == (mode, units, criterion)]
    return np.array([r["changes"] for r in kept])


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"


def _post_section(rows: Rows) -> str:
    """Every criterion at every fraction, with the published number in brackets where there is one."""
    pieces = ["## The post's experiment: change of accuracy in points, mean of five seeds (published)"]
    for mode in dict.fromkeys(r["mode"] for r in rows):
        body = []
        for units in sorted({r["units"] for r in rows}):
            for criterion in CRITERIA:
                means = changes(rows, mode, units, criterion).mean(0)
                cells = [_beside(m, _published(mode, units, criterion, i)) for i, m in enumerate(means)]
                body.append([units, criterion, *cells])
        head = ["H", "criterion", *(f"{f:.0%} of the tail" for f in FRACTIONS)]
        pieces += [f"### {mode}", _table(head, body)]
    agree, total = _agreement(rows)
    pieces.append(f"Published entries reproduced to the printed digit: {agree} of {total}.")
    pieces.append(_whole_tail(rows))
    return "\n\n".join(pieces)


def _beside(value: float, published: float | None) -> str:
    return _signed(value) if published is None else f"{_signed(value)} ({_signed(published)})"


def _published(mode: str, units: int, criterion: str, fraction: int) -> float | None:
    """Return the printed number, or None where the post prints none."""
    if mode != "tp_exponential":
        return None
    if units == 200:
        return CURVES_200[criterion][fraction]
    if fraction == 2:
        return AT_75.get(units, {}).get(criterion)
    whole = AT_100.get(units, {}) if fraction == 3 else {}
    return whole.get({"matroid": "mean"}.get(criterion, criterion))


def _agreement(rows: Rows) -> tuple[int, int]:
    pairs = []
    for units in {r["units"] for r in rows}:
        for criterion in CRITERIA:
            found = changes(rows, "tp_exponential", units, criterion)
            means = found.mean(0) if len(found) else ()
            pairs += [(m, _published("tp_exponential", units, criterion, i)) for i, m in enumerate(means)]
    known = [(m, p) for m, p in pairs if p is not None]
    return sum(_signed(m) == _signed(p) for m, p in known), len(known)


def _whole_tail(rows: Rows) -> str:
    """Table 2: the post's best seed leaves out networks without a tail and those that improve."""
    body = []
    for units, published in AT_100.items():
        cell = ("tp_exponential", units, "matroid")
        kept = [r for r in rows if (r["mode"], r["units"], r["criterion"]) == cell]
        if kept:
            whole = np.array([r["changes"][3] for r in kept])
            worse = [c for c, r in zip(whole, kept, strict=True) if r["tail"] and c <= 0]
            cells = [whole.mean(), max(worse), whole.max(), whole.min()]
            prints = [published["mean"], published["best"], None, published["worst"]]
            body.append([units, *(_beside(c, p) for c, p in zip(cells, prints, strict=True))])
    head = ["H", "mean", "best that has a tail and does not rise", "best", "worst"]
    return "### The whole tail removed (tp_exponential)\n\n" + _table(head, body)


def _audit_section(rows: Rows) -> str:
    head = ["audit", "mode", "H", "networks", "mean of"]
    groups: dict[tuple[str, str, int, float], list[Row]] = {}
    for row in rows:
        key = (row["audit"], row["mode"], row["units"], row.get("tolerance", 0.0))
        groups.setdefault(key, []).append(row)
    body = []
    for (audit, mode, units, tolerance), members in groups.items():
        name = f"{audit}, tolerance {tolerance:g}" if tolerance else audit
        body.append([name, mode, units, len(members), _means(members)])
    return "## Audits\n\n" + _table(head, body) + "\n\n" + _READING


_READING = (
    "`change` is the change of accuracy in points at 75 % of the tail (of all units for `merged`). Permuting "
    "the hidden units leaves the function as it is; the exact tail counts deficient windows over the "
    "rationals; `merged` joins rows of [W1 | b1] that are positive multiples of one another, in any order."
)


def _means(members: Rows) -> str:
    skip = {"audit", "mode", "units", "seed", "tolerance"}
    keys = [k for k in members[0] if k not in skip]
    return ", ".join(f"{k} {np.mean([m[k] for m in members]):.4g}" for k in keys)


def _ordinary_section(rows: Rows) -> str:
    pieces = ["## Ordinary networks: test accuracy lost in points, mean over seeds, plain / with the fold"]
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == model]
        base = np.mean([r["accuracy"] for r in mine if r["criterion"] == "none"])
        shares = sorted({r["removed"] for r in mine if r["criterion"] != "none"})
        body = [
            [criterion, *(_both(mine, criterion, s) for s in shares)]
            for criterion in dict.fromkeys(r["criterion"] for r in mine if r["criterion"] != "none")
        ]
        seeds, draws = len({r["seed"] for r in mine}), max(r.get("draws", 1) for r in mine)
        about = f"{100 * base:.2f} % ({seeds} seeds; random: {draws} draws each)"
        pieces.append(f"### {model} on {mine[0]['data']}: {about}")
        pieces.append(_table(["criterion", *(f"{s:.0%} removed" for s in shares)], body))
    return "\n\n".join(pieces)


def _both(rows: Rows, criterion: str, share: float) -> str:
    return f"{_lost(rows, criterion, share, 'none'):.2f} / {_lost(rows, criterion, share, 'fold'):.2f}"


def _lost(rows: Rows, criterion: str, share: float, repair: str) -> float:
    wanted = (criterion, share, repair)
    return float(np.mean([r["lost"] for r in rows if (r["criterion"], r["removed"], r["repair"]) == wanted]))


def _interval_section(rows: Rows) -> str:
    head = ["model", "removed", "matroid", "best baseline", "lost", "ahead by", "95 % interval", "verdict"]
    body = [
        [r["model"], f"{r['removed']:.0%}", r["matroid"], r["best"], r["best lost"], r["ahead by"],
         f"{r['low']:.2f} to {r['high']:.2f}", r["verdict"]]
        for r in rows
    ]
    return "## Matroid against the best baseline, both with fold, paired\n\n" + _table(head, body)


def _planted_section(rows: Rows) -> str:
    head = [k for k in rows[0] if k != "part"]
    body = [[r[k] for k in head] for r in rows]
    return "## Planted positive multiples and duplicates\n\n" + _table(head, body)
