"""The spectrum's page: lambda_2, components and dead units of each layer, and the leverage of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from secateur.html.section import Section
from secateur.html.structures.marks import GOES, STAYS, bars, figure, listed, points

COUNTS = {"components": "components", "dead_inputs": "dead inputs", "dead_outputs": "dead outputs"}


def spectral_sections(portrait: Mapping[str, Any]) -> list[Section]:
    """Draw a portrait made by `secateur.diagnostics.spectral`."""
    layers = portrait["layers"]
    found = [_lambda2(layers), _components(layers)] if layers else []
    found += [_histogram(name, leverage) for name, leverage in portrait["leverages"].items()]
    if portrait["skipped"]:
        found.append(Section("Not drawn", listed(portrait["skipped"]) + "."))
    return found


def _rows(layers: Mapping[str, Any], keys: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "layer": name,
            **{f"{word} {when}": layer[when][key] for key, word in keys.items() for when in layer},
        }
        for name, layer in layers.items()
    ]


def _lambda2(layers: Mapping[str, Any]) -> Section:
    names = list(layers)
    traces = [
        points(names, [x["before"]["lambda2"] for x in layers.values()], "before", STAYS, size=11),
        points(
            names, [x["after"]["lambda2"] for x in layers.values()], "after", GOES, size=11, symbol="diamond"
        ),
    ]
    text = (
        "The weights of a layer are a bipartite graph of its inputs and outputs. lambda_2 is the second "
        "smallest eigenvalue of the normalised Laplacian of its largest component: near 0 the component "
        "nearly falls apart. It speaks of one component only, and rises as that shrinks; read it beside "
        "its share of the nodes."
    )
    rows = _rows(layers, {"lambda2": "lambda_2", "share": "share of the largest component", "edges": "edges"})
    drawn = figure(traces, "layer", "lambda_2", xaxis={"type": "category"}, yaxis={"rangemode": "tozero"})
    return Section(
        "lambda_2 of each layer",
        text,
        rows,
        drawn,
        f"lambda_2 before and after pruning for {', '.join(names)}",
    )


def _components(layers: Mapping[str, Any]) -> Section:
    names, traces = list(layers), []
    for number, (key, word) in enumerate(COUNTS.items()):
        after = [x["after"][key] for x in layers.values()]
        traces.append(bars(names, after, word, f"var(--c{number})"))
    text = (
        "After pruning: parts of each layer's graph that no weight joins, and inputs and outputs without "
        "any weight. Where whole units went, their rows and columns are the dead ones."
    )
    rows = _rows(layers, COUNTS)
    drawn = figure(traces, "layer", "number", xaxis={"type": "category"}, barmode="group")
    return Section(
        "Components and dead units of each layer",
        text,
        rows,
        drawn,
        f"Number of components, dead inputs and dead outputs after pruning for {', '.join(names)}",
    )


def _histogram(name: str, leverage: Mapping[str, Any]) -> Section:
    edges, stays, goes = leverage["edges"], leverage["stays"], leverage["goes"]
    middle = [(a * b) ** 0.5 for a, b in pairwise(edges)]
    width = [b - a for a, b in pairwise(edges)]
    traces = [bars(middle, stays, "stays", STAYS), bars(middle, goes, "goes", GOES)]
    for trace in traces:
        trace["width"] = width
    text = (
        "The leverage of a weight, its score times the effective resistance between its ends, is the "
        "probability that it is in a random spanning tree of the layer's graph. Mean "
        f"{leverage['mean stays']} of what stays, {leverage['mean goes']} of what goes."
    )
    rows = [
        {"from": a, "to": b, "stays": s, "goes": g}
        for a, b, s, g in zip(edges, edges[1:], stays, goes, strict=False)
    ]
    drawn = figure(traces, "leverage", "weights", xaxis={"type": "log"}, barmode="stack", bargap=0)
    return Section(
        f"Leverage of the weights of {name}",
        text,
        rows,
        drawn,
        f"Histogram of the leverages of {name}, divided by what stays and what goes",
        layer=name,
    )


__all__ = ["spectral_sections"]
