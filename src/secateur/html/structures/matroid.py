"""The matroid's page: what kept units leave unexplained, arrangements of hyperplanes, windows of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.markdown import format_value
from secateur.html.section import Section
from secateur.html.structures.marks import GOES, STAYS, Json, figure, lines, listed, points

CLASSES = [
    "var(--c2)",
    "var(--c3)",
    "var(--c4)",
    "var(--c5)",
    "var(--c6)",
    "var(--c7)",
    "var(--c8)",
    "var(--c9)",
    "var(--c10)",
    "var(--c11)",
]
LEAST = 1e-9


def matroid_sections(portrait: Mapping[str, Any]) -> list[Section]:
    """Draw a portrait made by `secateur.diagnostics.matroid`."""
    found = [_curves(portrait["curves"])] if portrait["curves"] else []
    for name, layer in portrait["layers"].items():
        if layer["arrangement"]:
            found.append(_arrangement(name, layer))
        found.append(_windows(name, layer))
    if portrait["skipped"]:
        found.append(Section("Not drawn", "Rows [W | b] of " + listed(portrait["skipped"]) + "."))
    return found


def _curves(curves: Mapping[str, Any]) -> Section:
    traces, rows = [], []
    for number, (name, curve) in enumerate(curves.items()):
        units, colour = curve["units"], f"var(--c{number % 12})"
        shares = [m / units for m in range(units + 1)]
        shown = [r if r > LEAST else None for r in curve["residuals"]]
        traces.append(lines(shares, shown, f"group {name}", colour))
        if curve["residual"] is not None:
            at = points([curve["kept"] / units], [curve["residual"]], f"{name}: the plan", colour, size=11)
            traces.append(at | {"showlegend": False})
        by_plan = {curve["kept"]: curve["residual"]}
        rows += [
            {"group": name, "kept": m, "units": units, "unexplained": r, "by the plan": by_plan.get(m)}
            for m, r in enumerate(curve["residuals"])
        ]
    text = (
        "Units are taken one after the other, each time the one that explains most of what the reading "
        "layers compute. A line says how much is left unexplained with that share of the units kept; the "
        "mark is the plan, after exchanges. A line that falls early belongs to a group whose units depend "
        "on few of them."
    )
    drawn = figure(
        traces,
        "share of the units kept",
        "share unexplained",
        yaxis={"type": "log", "exponentformat": "power"},
    )
    named = ", ".join(curves)
    return Section(
        "What the kept units leave unexplained",
        text,
        rows,
        drawn,
        f"Falling lines of the unexplained share against the share of units kept, for {named}",
    )


def _arrangement(name: str, layer: Mapping[str, Any]) -> Section:
    found = layer["arrangement"]
    traces = []
    for stays, title, colour, dash in ((True, "stays", STAYS, "solid"), (False, "goes", GOES, "dot")):
        own = [line for line in found["lines"] if line["stays"] is stays]
        if own:
            x = [v for line in own for v in (line["x"], line["to x"], None)]
            y = [v for line in own for v in (line["y"], line["to y"], None)]
            traces.append(lines(x, y, f"unit that {title}", colour, dash=dash, width=1, hoverinfo="skip"))
    traces += _cloud(found["points"])
    across = found["crossing"]
    text = (
        "Each unit is on at one side of its hyperplane and off at the other. Lines are where the "
        f"hyperplanes of {len(found['lines'])} units cut {found['plane']}; marks are inputs of the layer. "
        f"{across} of {layer['units']} hyperplanes cross the part that is shown."
    )
    rows = [{"what": "hyperplane", **line} for line in found["lines"]]
    rows += [{"what": "input", "x": x, "y": y, "class": label} for x, y, label in found["points"]]
    low, high = found["box"]
    drawn = figure(
        traces,
        found["axes"][0],
        found["axes"][1],
        xaxis={"range": [low[0], high[0]]},
        yaxis={"range": [low[1], high[1]]},
    )
    return Section(
        f"Hyperplane arrangement of group {name}",
        text,
        rows,
        drawn,
        f"Lines of the hyperplanes of {name} among its inputs",
        layer=name,
    )


def _cloud(cloud: list[list[Any]]) -> list[Json]:
    labels = sorted({str(label) for _, _, label in cloud})
    several = 1 < len(labels) <= len(CLASSES)
    traces = []
    for number, label in enumerate(labels if several else ["inputs"]):
        own = [p for p in cloud if not several or str(p[2]) == label]
        title = f"class {label}" if several else label
        trace = points([p[0] for p in own], [p[1] for p in own], title, CLASSES[number], size=6)
        traces.append(trace)
    return traces


def _windows(name: str, layer: Mapping[str, Any]) -> Section:
    n, rank, windows, tail = layer["units"], layer["rank"], layer["ranks"], layer["tail"]
    text = (
        f"{n} rows [W | b] with {layer['inputs']} inputs have rank {rank}: {len(windows)} windows of {rank} "
        f"neighbours, {layer['deficient']} of them deficient, smallest gap {format_value(layer['gap'])}. "
        f"{n - len(tail)} rows are essential, {len(tail)} are the tail."
    )
    if len(windows) == 1:
        text += " A single window holds every row, so there can be no tail."
    rows = _rows(layer)
    line = lines(range(len(windows)), windows, "rank of the window that starts here", "var(--soft)")
    drawn = figure(
        [line | {"mode": "lines+markers"}, *_units(rows)],
        "unit, in the order of the layer",
        "rank; deficient windows that hold the unit",
        yaxis={"rangemode": "tozero"} | ({"dtick": 1} if rank < 10 else {}),
    )
    words = f"Window ranks of {name}, and for each unit the number of deficient windows"
    return Section(f"Windows of rows of group {name}, and their tail", text, rows, drawn, words, layer=name)


def _rows(layer: Mapping[str, Any]) -> list[Json]:
    """Return the table of the windows: one row a unit."""
    tail, removed, ranks = set(layer["tail"]), set(layer["removed"]), layer["ranks"]
    return [
        {
            "unit": unit,
            "deficient windows": count,
            "part": "tail" if unit in tail else "essential",
            "stays": unit not in removed,
            "rank of the window from here": ranks[unit] if unit < len(ranks) else None,
        }
        for unit, count in enumerate(layer["windows"])
    ]


def _units(rows: list[Json]) -> list[Json]:
    """Return a trace for each kind of unit that there is."""
    traces = []
    for part, symbol in (("essential", "circle"), ("tail", "diamond")):
        for keeps, word, colour in ((True, "stays", STAYS), (False, "goes", GOES)):
            own = [row for row in rows if row["part"] == part and row["stays"] is keeps]
            if own:
                x, y = [row["unit"] for row in own], [row["deficient windows"] for row in own]
                traces.append(points(x, y, f"{part}, {word}", colour, symbol=symbol))
    return traces


__all__ = ["matroid_sections"]
