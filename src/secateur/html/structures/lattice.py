"""The lattice's page: the Hasse diagram of each order, and what the order says at other densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.html.section import Section
from secateur.html.structures.marks import GOES, STAYS, Json, figure, lines, listed, points

KINDS = (
    (True, True, "irreducible, stays", STAYS, "circle"),
    (True, False, "irreducible, goes", GOES, "circle"),
    (False, True, "reducible, stays", STAYS, "circle-open"),
    (False, False, "reducible, goes", GOES, "circle-open"),
)
COUNTS = ("elements", "largest", "parts", "irreducible")
SWEEPS = 6
Nodes = Sequence[Mapping[str, Any]]
Edges = Sequence[Sequence[int]]


def lattice_sections(portrait: Mapping[str, Any]) -> list[Section]:
    """Draw a portrait made by `secateur.diagnostics.lattice`."""
    found = []
    for name, order in portrait["orders"].items():
        if order["nodes"]:
            found.append(_hasse(name, order))
        if order["profile"]:
            found.append(_profile(name, order))
    if portrait["skipped"]:
        found.append(Section("Not drawn", listed(portrait["skipped"]) + "."))
    return found


def _hasse(name: str, order: Mapping[str, Any]) -> Section:
    nodes, edges = order["nodes"], order["covers"]
    x = places([node["height"] for node in nodes], edges)
    y = [node["height"] for node in nodes]
    more = "" if len(nodes) == order["elements"] else f" The {len(nodes)} of them with most covers are drawn."
    if not edges and len(nodes) > 1:
        more += " No unit is comparable with another: the order says nothing here."
    text = (
        f"Reading: {order['reading']}. {order['units']} units are {order['elements']} elements, of height "
        f"{order['height']}; {order['irreducible']} units are meet-irreducible.{more} A line leads up from "
        "an element to one that covers it; an element stays if any of its units does."
    )
    drawn = figure(
        _diagram(nodes, edges, x, y),
        "",
        "height",
        xaxis={"visible": False},
        yaxis={"dtick": max(1, max(y) // 10)},
        height=520,
    )
    return Section(
        f"Hasse diagram of group {name}",
        text,
        _rows(nodes, edges),
        drawn,
        f"Hasse diagram of {len(nodes)} elements and {len(edges)} covers in {name}",
        layer=name,
    )


def _diagram(nodes: Nodes, edges: Edges, x: Sequence[float], y: Sequence[float]) -> list[Json]:
    """Return the traces: covers, and the elements by kind."""
    across, up = ([v for a, b in edges for v in (side[a], side[b], None)] for side in (x, y))
    traces = [lines(across, up, "covers", "var(--soft)", width=1, hoverinfo="skip")]
    size = 14 if len(nodes) <= 60 else 9
    for irreducible, stays, title, colour, symbol in KINDS:
        own = [i for i, n in enumerate(nodes) if n["irreducible"] is irreducible and n["stays"] is stays]
        if own:
            here, there = ([side[i] for i in own] for side in (x, y))
            words = [_words(nodes[i]) for i in own]
            traces.append(points(here, there, title, colour, symbol=symbol, text=words, size=size))
    return traces


def _rows(nodes: Nodes, edges: Edges) -> list[Json]:
    """Return the table: one row an element."""
    return [
        {
            "element": n["element"],
            "units": ", ".join(map(str, n["units"])),
            "height": n["height"],
            "irreducible": n["irreducible"],
            "stays": n["stays"],
            "in-strength": n["enters"],
            "covered by": ", ".join(str(nodes[b]["element"]) for a, b in edges if a == i),
        }
        for i, n in enumerate(nodes)
    ]


def _words(node: Mapping[str, Any]) -> str:
    units = node["units"]
    told = ", ".join(map(str, units[:6])) + (f" and {len(units) - 6} more" if len(units) > 6 else "")
    return f"units {told}<br>height {node['height']}, in-strength {node['enters']:.4g}"


def places(heights: Sequence[int], edges: Sequence[Sequence[int]]) -> list[float]:
    """Return a horizontal place for each element: levels spread evenly, each element near its neighbours.

    Barycentres of the neighbours, swept up and down a few times (Sugiyama, Tagawa, Toda 1981).

    Example:
        >>> places([0, 0, 1], [(0, 2), (1, 2)])
        [-0.5, 0.5, 0.0]
    """
    levels: dict[int, list[int]] = {}
    for node, height in enumerate(heights):
        levels.setdefault(height, []).append(node)
    near: list[list[int]] = [[] for _ in heights]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    place = [0.0] * len(heights)
    for nodes in levels.values():
        _spread(nodes, place)
    for sweep in range(SWEEPS):
        for height in sorted(levels, reverse=bool(sweep % 2)):
            centre = {
                v: sum(place[w] for w in near[v]) / len(near[v]) if near[v] else place[v]
                for v in levels[height]
            }
            levels[height].sort(key=lambda v: (centre[v], v))
            _spread(levels[height], place)
    return place


def _spread(nodes: Sequence[int], place: list[float]) -> None:
    for at, node in enumerate(nodes):
        place[node] = at - (len(nodes) - 1) / 2


def _profile(name: str, order: Mapping[str, Any]) -> Section:
    profile, units = order["profile"], order["units"]
    density = [row["density"] for row in profile]
    shown = [key for key in COUNTS if all(key in row for row in profile)]
    traces = []
    for number, key in enumerate(shown):
        trace = lines(density, [row[key] for row in profile], key, f"var(--c{number})")
        traces.append(trace | {"mode": "lines+markers", "marker": {"size": 8, "color": f"var(--c{number})"}})
    text = (
        "What the order of the strongest weights says at other densities. It is informative where some, "
        f"but not all, of the {units} units are irreducible and no element holds most of them."
    )
    drawn = figure(traces, "share of the possible edges", "number", xaxis={"type": "log"})
    return Section(
        f"Profile of group {name} over density",
        text,
        profile,
        drawn,
        f"Numbers of {', '.join(shown)} in {name} against the density of edges",
        layer=name,
    )


__all__ = ["lattice_sections", "places"]
