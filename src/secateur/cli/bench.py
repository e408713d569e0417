"""``secateur bench``: compare methods on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.bench.benchmark import RESULTS, Bench, parse_methods, parse_numbers, run_bench
from secateur.bench.compare import Comparison, compare_methods
from secateur.bench.output import output_files, write_comparison
from secateur.cli.options import (
    Epochs,
    ExampleShape,
    HoldoutName,
    IgnoredLayers,
    Latency,
    LearningRate,
    ModelName,
    ScopeName,
    WeightsFile,
    check_writable,
)
from secateur.cli.printing import print_line, print_table, progress, warn

__all__ = ["bench_command", "print_comparison"]


BenchData = Annotated[
    str, typer.Option(help="digits, fashion, mnist:FOLDER, cifar10:FOLDER, or file.py:function.")
]
Methods = Annotated[
    str, typer.Option(help="Methods with options, as in a,b:p=1,q=2; or all. random is added as control.")
]
Ratios = Annotated[str, typer.Option(help="What stays, each in (0, 1].")]
Seeds = Annotated[str, typer.Option(help="Seeds; differences need five or more.")]
RepairNames = Annotated[
    str, typer.Option(help="Repairs, as in none,fold,refit,fold+finetune; each is compared by itself.")
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "--budget-kind",
        help="What ratios count: units (the default), params, macs, bytes, latency, weights. Given several "
        "times, all hold; with an amount, as bytes=20MB, at every ratio.",
    ),
]
Draws = Annotated[int, typer.Option(help="Draws of random for each seed.")]
Examples = Annotated[
    int | None, typer.Option(help="Largest number of examples to calibrate and fine-tune on.")
]
BenchMetric = Annotated[
    str, typer.Option(help="accuracy, log_likelihood, agreement (needs no labels), or file.py:function.")
]
AcceptedLoss = Annotated[
    float, typer.Option(help="Accepted loss of the metric, for the largest share that can go.")
]
Prunings = Annotated[int, typer.Option(min=1, help="Prunings at a time, each with one thread.")]
Engine = Annotated[str, typer.Option(help="local, ray, or inline.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster: HOST:PORT or auto.")]
Limit = Annotated[
    float | None, typer.Option(help="Seconds after which a pruning is stopped and recorded as stopped.")
]
BenchFolder = Annotated[Path, typer.Option("--out", help="Folder; the same command continues what is there.")]


def bench_command(
    model: ModelName,
    data: BenchData,
    methods: Methods = "magnitude,magnitude:p=2,activation,sensitivity,taylor,matroid,spectral,lattice",
    ratios: Ratios = "0.75,0.5,0.35,0.25,0.125",
    seeds: Seeds = "0,1,2,3,4",
    repair: RepairNames = "none,fold",
    budgets: Budgets = None,
    scope: ScopeName = None,
    holdout: HoldoutName = None,
    weights: WeightsFile = None,
    example_shape: ExampleShape = None,
    ignore: IgnoredLayers = None,
    draws: Draws = 3,
    examples: Examples = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    metric: BenchMetric = "accuracy",
    loss: AcceptedLoss = 0.01,
    latency: Latency = True,
    jobs: Prunings = 2,
    engine: Engine = "local",
    address: Address = None,
    limit: Limit = None,
    folder: BenchFolder = Path("runs/bench"),
) -> None:
    """Compare methods on your model: which win, which tie, and how much can go.

    Every method gets the same examples, allocation and repair, and is paired with the others by seed.
    """
    check_writable(folder, replaced=output_files(), mark=RESULTS)
    bench = Bench(
        model=model,
        data=data,
        holdout=holdout,
        methods=parse_methods(methods),
        ratios=parse_numbers(ratios, float, "ratios"),
        seeds=parse_numbers(seeds, int, "seeds"),
        repairs=repair.split(","),
        budgets=budgets or Bench.budgets,
        scope=scope or "layer",
        weights=weights,
        shape=example_shape,
        ignore=ignore or (),
        draws=draws,
        examples=examples,
        epochs=1 if epochs is None else epochs,
        lr=Bench.lr if lr is None else lr,
        metric=metric,
        latency=latency,
    )
    with progress("bench") as log:
        rows, seed_note = run_bench(
            bench, folder, engine=engine, jobs=jobs, address=address, limit=limit, log=log
        )
    comparison = compare_methods(rows, seed_note, loss)
    print_comparison(comparison)
    print_line(f"report: {write_comparison(comparison, folder, f'Comparison of methods on {model}')}")


def print_comparison(comparison: Comparison) -> None:
    """Print which methods win: a table for each repair, a row for each method, a column for each ratio."""
    for repair in dict.fromkeys(row["repair"] for row in comparison.means):
        means = [row for row in comparison.means if row["repair"] == repair]
        curves = [row for row in comparison.curves if row["repair"] == repair]
        print_table(_ranking_rows(means, curves), f"repair: {repair}, before {means[0]['before']:.3f}")
    print_line("* wins; = ties with the best (no significant difference); ? too few seeds")
    for row in comparison.rankings:
        print_line(f"repair {row['repair']}, {row['ratio']:g}: {_ranking_line(row)}")
    for row in comparison.failures:
        where = f"{row['method']}, repair {row['repair']}, {row['ratios']}"
        warn(f"{where} ({row['runs']} {'run' if row['runs'] == 1 else 'runs'}): {row['why']}")
    print_line(comparison.seed_note)


def _ranking_line(row: Mapping[str, Any]) -> str:
    """Return who wins in a setting, as text.

    Example:
        >>> _ranking_line({"verdict": "tie", "best": "taylor", "tied with": "lattice"})
        'taylor ties with lattice'
    """
    if row["verdict"] == "alone":
        return "one method only, so there is nothing to compare it with"
    if row["verdict"] == "wins":
        return f"{row['best']} wins"
    if row["verdict"] == "tie":
        return f"{row['best']} ties with {row['tied with']}"
    return f"{row['best']} is first, with {row['verdict']} to tell it from {row['tied with']}"


def _ranking_rows(
    means: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return a row for each method: the metric at each ratio, the area under the curve, the share removed."""
    marks = {"wins": "*", "tie": "=", "tied": "=", "too few seeds": "?"}
    ratios = dict.fromkeys(row["ratio"] for row in means)
    at = {(row["method"], row["ratio"]): row for row in means}
    areas = {row["method"]: row for row in curves}
    removed = next((key for row in curves for key in row if key.startswith("removed at")), None)

    def mark(row: Mapping[str, Any] | None, key: str) -> str:
        return f"{row[key]:.3f}{marks.get(row['verdict'], ' ')}" if row else ""

    rows = []
    for method in dict.fromkeys([*areas, *(row["method"] for row in means)]):
        row = {"method": method} | {f"{ratio:g}": mark(at.get((method, ratio)), "after") for ratio in ratios}
        area = areas.get(method)
        row |= {"area": mark(area, "area")}
        rows.append(row | ({removed: f"{area[removed]:.0%}" if area else ""} if removed else {}))
    return rows
