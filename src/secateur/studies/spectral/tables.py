"""Tables of the study, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from secateur.studies.spectral.published import FIGURE_2, FIGURE_3, TABLE_1

__all__ = ["difference", "report"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
_LAYER = {
    "lambda2": "lambda_2 of the largest component",
    "share": "its share of the nodes",
    "components": "components",
    "dead inputs": "inputs without an edge",
    "dead outputs": "outputs without an edge",
}


def report(found: Mapping[str, Rows]) -> str:
    """Return the study as Markdown."""
    makers = {"table1": _table1, "figure2": _figure2, "figure3": _figure3, "oneshot": _oneshot}
    pieces = [
        "# Pruning by spectral sparsification (arXiv:2306.08849)",
        "Accuracy on the test part in percent: mean over seeds ± standard deviation.  Differences are paired "
        "over networks and seeds, with a 95 % bootstrap interval; where it contains 0 it is a tie.",
    ]
    pieces += [make(found[name]) for name, make in makers.items() if found.get(name)]
    return "\n\n".join(pieces) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _values(rows: Rows, key: str = "accuracy", **wanted: Any) -> list[float]:
    return [row[key] for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def _order(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _setting(rows: Rows) -> str:
    row = rows[0]
    return (
        f"data: {', '.join(_order(rows, 'data'))}; width {row['width']:g}; {len(_order(rows, 'seed'))} seeds"
    )


def difference(rows: Rows, way: str, other: str, seed: int = 0, **wanted: Any) -> tuple[float, float, float]:
    """Return the mean paired difference in accuracy of two ways, and its 95 % bootstrap interval."""
    pairs = []
    for row in rows:
        if row["way"] == way and all(row.get(k) == v for k, v in wanted.items()):
            same = {k: row[k] for k in ("net", "seed", "score", "what", "density", "kept") if k in row}
            pairs += [row["accuracy"] - value for value in _values(rows, way=other, **same)]
    draws = np.random.default_rng(0).choice(pairs, (2000, len(pairs))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.mean(pairs)), float(low), float(high)


def _verdict(rows: Rows, way: str, other: str, **wanted: Any) -> str:
    middle, low, high = difference(rows, way, other, **wanted)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]" + (" tie" if low <= 0 <= high else "")


def _table1(rows: Rows) -> str:
    body = []
    for net in _order(rows, "net"):
        for graph in ("layer", "network"):
            own, printed = {"net": net, "graph": graph}, TABLE_1[net, graph]
            seconds, reached = _values(rows, "seconds", **own), _values(rows, **own)
            density = next(row["density"] for row in rows if row["net"] == net)
            text = (
                f"{printed['accuracy']} ± {printed['spread']} ({printed['data']}, {printed['density']:.0%})"
            )
            cells = [f"{mean(seconds):.2f}", printed["seconds"], f"{density:.0%}", _spread(reached), text]
            body.append([net, graph, *cells])
    head = ["net", "graph", "seconds", "published", "density", "accuracy", "published"]
    return "\n\n".join([
        "## Table 1: layer by layer against the whole network",
        f"Seconds of processor time for the mask of the full-width network; accuracy: {_setting(rows)}.",
        _table(head, body),
    ])  # fmt: skip


def _by_density(rows: Rows, densities: Sequence[float], key: str, **wanted: Any) -> list[str]:
    cells = (_values(rows, "accuracy", **{key: density}, **wanted) for density in densities)
    return [_spread(values) if values else "" for values in cells]


def _figure2(rows: Rows) -> str:
    densities = [d for d in _order(rows, "density") if d < 1]
    body = []
    for net in _order(rows, "net"):
        body.append(
            [net, "", "dense", _spread(_values(rows, net=net, way="dense")), *[""] * (len(densities) - 1)]
        )
        for score in ("magnitude", "snip", "synflow"):
            own = [row for row in rows if row["net"] == net and row["score"] == score]
            for way in _order(own, "way"):
                body.append([net, score, way, *_by_density(own, densities, "density", way=way)])
    head = ["net", "score", "way", *(f"{d:.0%}" for d in densities)]
    verdicts = [
        [score, *(_verdict(rows, "sparsify", "greedy", score=score, density=d) for d in densities)]
        for score in ("magnitude", "snip", "synflow")
    ]
    controls = [way for way in _order(rows, "way") if way not in ("dense", "sparsify", "greedy")]
    verdicts += [[f"magnitude, against {way}", *(_verdict(rows, "sparsify", way, score="magnitude", density=d)
                  for d in densities)] for way in controls]  # fmt: skip
    return "\n\n".join([
        "## Figure 2: pruning at initialisation", FIGURE_2, _setting(rows) + ".", _table(head, body),
        "`sparsify` less `greedy`, or less a control:", _table(["score", *head[3:]], verdicts),
    ])  # fmt: skip


def _figure3(rows: Rows) -> str:
    densities = [d for d in _order(rows, "density") if d < 1]
    ways = [way for way in _order(rows, "way") if way != "dense"]
    body = [["dense", _spread(_values(rows, way="dense")), *[""] * (len(densities) - 1)]]
    body += [[way, *_by_density(rows, densities, "density", way=way)] for way in ways]
    names = [layer["layer"] for layer in rows[0]["layers"]]
    pieces = [
        "## Figure 3: after training, retrained from the initial weights", FIGURE_3, _setting(rows) + ".",
        _table(["way", *(f"{d:.0%}" for d in densities)], body),
        "## Figure 4: connectivity of every layer (means over seeds)",
    ]  # fmt: skip
    for key, title in _LAYER.items():
        lines = [[f"{d:.0%}", way, *_layerwise(rows, way, d, key)] for d in densities for way in ways]
        pieces.append(f"{title}:\n\n" + _table(["density", "way", *names], lines))
    return "\n\n".join(pieces)


def _layerwise(rows: Rows, way: str, density: float, key: str) -> list[str]:
    found = [row["layers"] for row in rows if (row["way"], row["density"]) == (way, density)]
    return [f"{mean(layer[key] for layer in same):.3g}" for same in zip(*found, strict=True)]


def _oneshot(rows: Rows) -> str:
    pieces = ["## After training, without retraining", _setting(rows) + "."]
    for what, against in (("weights", "magnitude, global"), ("units", "magnitude")):
        own = [row for row in rows if row["what"] == what and row["way"] != "dense"]
        shares = sorted(_order(own, "kept"), reverse=True)
        body = []
        for net in _order(rows, "net"):
            dense = _spread(_values(rows, net=net, way="dense"))
            body.append([f"{net}, dense", dense, *[""] * (len(shares) - 1)])
            ways = _order(own, "way")
            body += [[f"{net}, {way}", *_by_density(own, shares, "kept", net=net, way=way)] for way in ways]
        head = [what, *(f"{s:.0%}" for s in shares)]
        others = [
            way
            for way in _order(own, "way")
            if way != against and len(_values(own, way=way)) > len(_order(own, "net")) * 3
        ]
        verdicts = [[way, *(_verdict(own, way, against, kept=s) for s in shares)] for way in others]
        pieces += [_table(head, body), f"Less {against}:", _table(head, verdicts)]
    return "\n\n".join(pieces)
