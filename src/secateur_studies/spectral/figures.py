"""Figures 2, 3 and 4 of the paper, drawn from the study's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from secateur_studies.common import Figure
from secateur_studies.spectral.paired import order, part, spread, values

__all__ = ["figures"]

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")


def figures(rows: Rows) -> list[Figure]:
    """Return the figures that there are rows for."""
    found = [_figure2(rows), _figure3(rows), _figure4(rows)]
    return [figure for figure in found if figure is not None]


def _figure2(rows: Rows) -> Figure | None:
    """One panel a score (down) and network (across): accuracy over density, two ways."""
    found = part(rows, "figure 2")
    nets, scores = order(found, "net"), order(found, "score")
    if not found:
        return None
    data: list[Row] = []
    layout: Row = {
        "grid": {"rows": len(scores), "columns": len(nets), "pattern": "independent"},
        "height": 260 * len(scores),
        "annotations": [],
    }
    for number, (score, net) in enumerate([(score, net) for score in scores for net in nets]):
        tag = "" if number == 0 else str(number + 1)
        for i, way in enumerate(("sparsify", "greedy")):
            own = [row for row in found if (row["score"], row["net"], row["way"]) == (score, net, way)]
            data.append(
                {
                    **_line(own, way, i),
                    "xaxis": f"x{tag}",
                    "yaxis": f"y{tag}",
                    "showlegend": number == 0,
                    "legendgroup": way,
                }
            )
        layout[f"xaxis{tag}"] = {"type": "log", "title": {"text": "density" if score == scores[-1] else ""}}
        layout["annotations"].append(_heading(f"{net}, {score}", tag))
    text = f"Test accuracy in percent, mean and standard deviation over seeds. {_setting(rows, 'figure 2')}"
    title = "Figure 2: pruning at initialisation, sparsify and greedy"
    return Figure("figure2", title, {"data": data, "layout": layout}, text, list(_wide2(rows)))


def _heading(text: str, tag: str) -> Row:
    place = {"xref": f"x{tag} domain", "yref": f"y{tag} domain", "x": 0.5, "y": 1.12}
    return {"text": text, "showarrow": False, **place}


def _line(own: Rows, name: str, colour: int) -> Row:
    densities = sorted(order(own, "density"))
    cells = [values(own, density=d) for d in densities]
    middle = [mean(cell) for cell in cells]
    return {
        "type": "scatter",
        "name": name,
        "x": densities,
        "y": middle,
        "error_y": {"type": "data", "array": [_deviation(cell) for cell in cells]},
        "line": {"color": COLOURS[colour]},
    }


def _deviation(cell: Sequence[float]) -> float:
    middle = mean(cell)
    return (sum((x - middle) ** 2 for x in cell) / max(1, len(cell) - 1)) ** 0.5


def _setting(rows: Rows, name: str) -> str:
    own = part(rows, name)
    width = own[0]["width"]
    narrow = "full width" if width == 1 else f"{width:.3g} of the published channels"
    return f"Data: {', '.join(order(own, 'data'))}; {narrow}; {len(order(own, 'seed'))} seeds."


def _wide2(rows: Rows) -> Iterator[Row]:
    found, dense = part(rows, "figure 2"), part(rows, "dense")
    for net in order(found, "net"):
        yield {"network": net, "score": "", "way": "dense", "whole": spread(values(dense, net=net))}
        for score in order(found, "score"):
            for way in ("sparsify", "greedy"):
                own = {"net": net, "score": score, "way": way}
                yield {"network": net, "score": score, "way": way, **_by_density(found, **own)}


def _by_density(found: Rows, **wanted: Any) -> Row:
    densities = [d for d in order(found, "density") if d < 1]
    return {f"{d:.0%}": spread(values(found, density=d, **wanted)) for d in densities}


def _figure3(rows: Rows) -> Figure | None:
    found = part(rows, "figure 3")
    if not found:
        return None
    ways = [way for way in order(found, "way") if way != "dense"]
    data = [_line([row for row in found if row["way"] == way], way, i) for i, way in enumerate(ways)]
    layout = {
        "xaxis": {"type": "log", "title": {"text": "density"}},
        "yaxis": {"title": {"text": "test accuracy, %"}},
    }
    wide = [{"way": "dense", "whole": spread(values(found, way="dense"))}]
    wide += [{"way": way, **_by_density(found, way=way)} for way in ways]
    title = f"Figure 3: {found[0]['net']} pruned after training, retrained from its initial weights"
    text = (
        "Test accuracy in percent, mean and standard deviation over seeds. The paper does not say whether "
        f"its MagPrune ranks within layers (`greedy`) or all together. {_setting(rows, 'figure 3')}"
    )
    return Figure("figure3", title, {"data": data, "layout": layout}, text, wide)


def _figure4(rows: Rows) -> Figure | None:
    """One panel a way: lambda_2 of every layer over density."""
    found = part(rows, "figure 4")
    if not found:
        return None
    ways = [way for way in order(found, "way") if way != "dense"]
    layers = order(found, "layer")
    densities = sorted(order(found, "density"))
    data, annotations = [], []
    for i, way in enumerate(ways):
        z = [
            [_mean(values(found, "lambda2", layer=name, density=d, way={way, "dense"})) for d in densities]
            for name in layers
        ]
        tag = "" if i == 0 else str(i + 1)
        data.append(
            {
                "type": "heatmap",
                "x": [f"{d:.0%}" for d in densities],
                "y": layers,
                "z": z,
                "zmin": 0,
                "zmax": 1,
                "showscale": i == 0,
                "xaxis": f"x{tag}",
                "yaxis": f"y{tag}",
            }
        )
        annotations.append(_heading(way, tag))
    layout = {"grid": {"rows": 1, "columns": len(ways), "pattern": "independent"}, "annotations": annotations}
    shown = [
        {"density": f"{d:.0%}", "way": way, **dict(zip(layers, map(_mean, cells), strict=True))}
        for d, way, cells in _lambdas(found, densities, ways, layers)
    ]
    text = (
        "lambda_2 of the normalised Laplacian of the largest component of every layer, means over seeds; 1 "
        "is as well connected as a complete graph, or a component that has shrunk to a star."
    )
    return Figure(
        "figure4",
        "Figure 4: connectivity of every layer after training",
        {"data": data, "layout": layout},
        text,
        shown,
    )


def _lambdas(
    found: Rows, densities: Sequence[float], ways: Sequence[str], layers: Sequence[str]
) -> Iterator[tuple[float, str, list[list[float]]]]:
    for density in densities:
        for way in ways if density < 1 else ["dense"]:
            cells = [values(found, "lambda2", layer=name, density=density, way=way) for name in layers]
            if any(cells):
                yield density, way, cells


def _mean(cell: Sequence[float]) -> float | None:
    return mean(cell) if cell else None
