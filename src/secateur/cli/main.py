"""The command line: ``secateur demo | methods | inspect | prune | bench | study | report``."""

from __future__ import annotations

import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from secateur.bench.benchmark import Bench, parse_methods, parse_numbers, run_bench
from secateur.bench.compare import compare_methods
from secateur.bench.output import write_comparison
from secateur.cli import printing
from secateur.cli.demo import demonstrate, markdown
from secateur.core import InputError, SecateurError, StoreError
from secateur.core.jsonable import versions
from secateur.diagnostics import DIAGNOSTICS, diagnose
from secateur.formats.onnx import export_any_batch
from secateur.html import read_runs, write_html, write_json, write_text
from secateur.methods import METHODS, Method
from secateur.pruning import Result, find_method, prune
from secateur.repair.base import Finetune, parse_repair
from secateur.schedule import Schedule, Steps, Tolerance
from secateur.specs import (
    Batches,
    example_of,
    make_budget,
    make_data,
    make_method,
    make_model,
    try_inputs,
)
from secateur.tracing.trace import trace
from secateur_studies import registry as studies
from secateur_studies.runner import named_folders


class Guarded(TyperGroup):
    """Commands whose own errors end in one message and exit code 2, and Ctrl-C in exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SecateurError as error:
            printing.complain(f"error: {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            printing.complain("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune PyTorch networks along their mathematical structure, and see what each cut changed.",
)

ModelName = Annotated[
    str, typer.Argument(help="package.module:factory, file.py:factory, or a folder saved by transformers.")
]
Weights = Annotated[Path | None, typer.Option(help="Safetensors file with the model's weights.")]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Shape of example inputs, the batch first, as in 2,3,32,32. Otherwise the data's first examples "
        "are used, or the factory's attribute example_inputs."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, fashion, mnist:FOLDER, cifar10:FOLDER, or a function that returns batches of (inputs, "
        "targets), named like a model."
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        help="Method, with options if need be: magnitude, magnitude:p=2,over=both; or one of your own: "
        "file.py:Class, file.py:Class:option=value."
    ),
]
Holdout = Annotated[
    str | None, typer.Option(help="Batches for the metric, named like --data; a data set brings its own.")
]
Ignore = Annotated[list[str] | None, typer.Option(help="Layer whose units all stay; may be repeated.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show versions and exit.")] = False) -> None:
    """Handle options that stand before a command."""
    if version:
        printing.say(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.command("demo")
def demo_command(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for report.html, runs.json and table.md.")
    ] = Path("runs/demo"),
    keep: Annotated[float, typer.Option(help="Share of the units that stays, in (0, 1].")] = 0.25,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only one network on digits, no timings: seconds.")
    ] = False,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 2,
) -> None:
    """Train small networks, prune each by every method, with and without fold, and compare.

    Uses scikit-learn's digits, and Fashion-MNIST where Debian's package dataset-fashion-mnist is installed.
    Takes at most three minutes on two cores.
    """
    check_writable(folder)
    start = time.perf_counter()
    with printing.telling("training and pruning") as tell:
        runs = demonstrate(keep, quick=quick, seed=seed, jobs=jobs, tell=tell)
    printing.show_demo(runs)
    write_json(runs, folder / "runs.json")
    write_text(folder / "table.md", markdown(runs))
    page = write_html(runs, folder / "report.html", title="Secateur demonstration")
    good = sum(run["status"] == "ok" for run in runs)
    printing.say(
        f"{good} of {len(runs)} prunings; in each the smaller network computes what the masked one computes "
        f"(float64, 1e-10 relative). {time.perf_counter() - start:.0f} s. Report: {page}"
    )


@app.command("methods")
def methods_command() -> None:
    """List the methods, what each does, and its options."""
    printing.show_methods(METHODS)


@app.command("inspect")
def inspect_command(
    model: ModelName,
    weights: Weights = None,
    example_shape: Shape = None,
    data: Data = None,
    ignore: Ignore = None,
) -> None:
    """Show which units can be removed from a model, and what is frozen and why."""
    batches = make_data(data) if data else Batches()
    made, example = _model(model, weights, example_shape, batches)
    printing.show_network(trace(made, example, ignored_layers=ignore or ()))


@app.command("prune")
def prune_command(
    model: ModelName,
    method: MethodName = "auto",
    budget: Annotated[
        str, typer.Option(help="What stays: units=0.5, params=0.3, macs=0.5, or weights=0.1.")
    ] = "units=0.5",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop before the held-out metric falls by more than this, at the budget at most."),
    ] = None,
    scope: Annotated[str, typer.Option(help="layer (the same share everywhere), global, or erk.")] = "layer",
    floor: Annotated[int, typer.Option(help="Least number of units in a group.")] = 1,
    round_to: Annotated[int, typer.Option(help="Round the units of a group to a multiple of this.")] = 1,
    data: Data = None,
    holdout: Holdout = None,
    repair: Annotated[
        str, typer.Option(help="none, fold, refit, finetune, fold+finetune, or refit+finetune.")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Number of steps, each followed by the repair.")] = 1,
    epochs: Annotated[int, typer.Option(help="Epochs of each fine-tuning.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of the fine-tuning.")] = 1e-3,
    metric: Annotated[str | None, typer.Option(help="accuracy, agreement or log_likelihood.")] = None,
    latency: Annotated[bool, typer.Option(help="Whether to measure latencies, at batch 1 and 64.")] = False,
    weights: Weights = None,
    example_shape: Shape = None,
    ignore: Ignore = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    seed: Seed = 0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what goes from each group, and why.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the weights, the plan and the report.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx into the folder, too (extra onnx).")
    ] = False,
) -> None:
    """Prune a model, check that what is left computes the same, and measure what changed."""
    repairs = parse_repair(None if repair == "none" else repair) if repair != "auto" else "auto"
    share = make_budget(budget, scope, floor, round_to)
    if folder is not None:
        check_writable(folder)
    elif onnx:
        raise InputError("--onnx writes into the folder that --out names")
    stops = tolerance is not None
    batches = make_data(data, repair, tolerance=stops, seed=seed) if data else Batches()
    held = make_data(holdout, repair, tolerance=stops, seed=seed).fit if holdout else batches.holdout
    made, example = _model(model, weights, example_shape, batches, device)
    chosen = None if method == "auto" else make_method(method)
    if isinstance(repairs, tuple):
        repairs = tuple(replace(x, epochs=epochs, lr=lr) if isinstance(x, Finetune) else x for x in repairs)
    schedule: Schedule = Steps(steps)
    if tolerance is not None:
        if held is None:
            raise InputError("--tolerance is judged on held-out batches: name them with --holdout")
        schedule = Tolerance(tolerance, held, metric or "accuracy")
    result = prune(
        made,
        example,
        share,
        batches.fit,
        method=chosen,
        repair=repairs,
        schedule=schedule,
        ignored_layers=ignore or (),
        seed=seed,
    ).measure(held, metric if held is not None else None, latency=latency)
    if explain:
        printing.say(result.plan.explain())
    printing.show_run(result.report.to_dict())
    if data and held is None:
        printing.complain("no accuracy was measured: name held-out batches with --holdout")
    if folder is None:
        printing.complain("nothing was saved: name a folder with --out")
        return
    chosen = find_method(result.plan.method) if chosen is None else chosen
    _save(_portrayed(result, made, chosen, batches.fit), folder, example, onnx)


def _save(result: Result, folder: Path, example: Any, onnx: bool) -> None:
    """Leave weights, plan, report and, if asked for, an ONNX file: that first, since it may be refused."""
    if onnx:
        free = export_any_batch(result.model, example, folder / "model.onnx")
        printing.say(f"model.onnx takes {'any batch size' if free else 'inputs of the example sizes only'}")
    result.save(folder)
    printing.say(f"saved in {folder}; report: {write_html(result.report, folder / 'report.html')}")


@app.command("bench")
def bench_command(
    model: ModelName,
    data: Annotated[str, typer.Option(help="As for prune: digits, fashion, ..., or a function.")],
    methods: Annotated[
        str, typer.Option(help="Methods with options, as in a,b:p=1,q=2; or all. random is added as control.")
    ] = "magnitude,magnitude:p=2,activation,sensitivity,taylor,matroid,spectral,lattice",
    ratios: Annotated[str, typer.Option(help="What stays, each in (0, 1].")] = "0.75,0.5,0.35,0.25,0.125",
    seeds: Annotated[str, typer.Option(help="Seeds; five or more, to tell methods apart.")] = "0,1,2,3,4",
    repair: Annotated[
        str, typer.Option(help="Of none, fold, refit, finetune, fold+finetune, ...; each is compared apart.")
    ] = "none,fold",
    budget_kind: Annotated[
        str, typer.Option(help="What ratios count: units, params, macs, weights.")
    ] = "units",
    scope: Annotated[str, typer.Option(help="layer, global, or erk; the same for all methods.")] = "layer",
    holdout: Holdout = None,
    weights: Weights = None,
    example_shape: Shape = None,
    ignore: Ignore = None,
    draws: Annotated[int, typer.Option(help="Draws of random for each seed.")] = 3,
    examples: Annotated[
        int | None, typer.Option(help="Examples to calibrate and fine-tune on, at most.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of a fine-tuning.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate of a fine-tuning.")] = 1e-3,
    metric: Annotated[
        str, typer.Option(help="accuracy, log_likelihood, agreement (needs no labels), or file.py:function.")
    ] = "accuracy",
    loss: Annotated[float, typer.Option(help="Loss for the largest compression at a given loss.")] = 0.01,
    latency: Annotated[bool, typer.Option(help="Whether to measure latencies, at batch 1 and 64.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Prunings at a time, each with one thread.")] = 2,
    engine: Annotated[str, typer.Option(help="local, ray, or inline.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: HOST:PORT or auto.")] = None,
    limit: Annotated[
        float | None, typer.Option(help="Seconds after which one pruning is stopped, and recorded as that.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder; the same command goes on from what is there.")
    ] = Path("runs/bench"),
) -> None:
    """Compare methods on a model of your own: who wins where, who ties, and how far it can go.

    Every method gets the same examples, allocation and repair, and is paired with the others by seed.
    """
    check_writable(folder)
    bench = Bench(
        model=model,
        data=data,
        holdout=holdout,
        methods=parse_methods(methods),
        ratios=parse_numbers(ratios, float, "ratios"),
        seeds=parse_numbers(seeds, int, "seeds"),
        repairs=repair.split(","),
        kind=budget_kind,
        scope=scope,
        weights=None if weights is None else str(weights),
        shape=example_shape,
        ignore=ignore or (),
        draws=draws,
        examples=examples,
        epochs=epochs,
        lr=lr,
        metric=metric,
        latency=latency,
    )
    with printing.telling("bench") as tell:
        rows, seed_note = run_bench(
            bench, folder, engine=engine, jobs=jobs, address=address, limit=limit, log=tell
        )
    comparison = compare_methods(rows, seed_note, loss)
    printing.show_comparison(comparison)
    printing.say(f"report: {write_comparison(comparison, folder, f'Comparison of methods on {model}')}")


@app.command("study")
def study_command(
    name: Annotated[str, typer.Argument(help="matroid, spectral, mip, lattice, joint, or all.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder with a folder for each study; what is done there stays.")
    ] = Path("runs/studies"),
    full: Annotated[
        bool, typer.Option("--full", help="At the size of the publication: hours, not minutes.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 2,
    docs: Annotated[Path | None, typer.Option(help="Folder for the pages of findings, NAME.md.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--folder", help="Folder of a data set that the study names, as in cifar10=DIR; may be repeated."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Regenerate the tables and figures of a publication, beside the published numbers.

    An interrupted study goes on where it stood when the same command is given again.
    """
    for place in (folder, *([docs] if docs else [])):
        check_writable(place)
    with printing.telling(f"study {name}") as tell:
        options: dict[str, Any] = {"full": full, "seed": seed, "jobs": jobs, "tell": tell}
        options["folders"] = read_folders(name, data or [])
        outcomes = studies.run(name, folder, docs, **options)
    for outcome in outcomes:
        printing.show_study(outcome)
    printing.say(f"written into {folder}")
    if failed := [outcome.study for outcome in outcomes if outcome.error]:
        raise SecateurError(f"failed: {', '.join(failed)}; the other studies are written")


def read_folders(study: str, given: list[str]) -> dict[str, str]:
    """Read NAME=DIR, for a study that takes folders."""
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, _, folder) in zip(given, pairs, strict=True) if not (name and folder)]:
        raise InputError(f"a folder is given as NAME=DIR, as in cifar10=data/cifar; got {', '.join(wrong)}")
    named = {name: folder for name, _, folder in pairs}
    return named_folders(named, studies.folders_of(study))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder with saved results or runs, searched to any depth.")],
    page: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; by default report.html in the folder.")
    ] = None,
) -> None:
    """Draw one HTML report of all the runs in a folder."""
    runs = read_runs(folder)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    printing.say(f"{count} in {write_html(runs, page or folder / 'report.html')}")


def check_writable(folder: Path) -> None:
    """Raise `StoreError` if a folder cannot be made or written; leave everything as it was."""
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        for path in made:
            with suppress(OSError):  # another run has begun to write there
                path.rmdir()


def _model(
    name: str, weights: Path | None, shape: str | None, batches: Batches, device: str = "cpu"
) -> tuple[torch.nn.Module, Any]:
    model, example = make_model(name, weights)
    if shape is not None:
        example = example_of(shape)
    elif batches.example is not None:
        example = batches.example
    if example is None:
        raise InputError(
            "what is the model called with? Give --example-shape, as in 2,3,32,32, or --data, or set the "
            "attribute example_inputs of the factory"
        )
    try:
        model = model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot compute on {device!r}: {str(error).splitlines()[0]}") from error
    try_inputs(model, example)
    return model, example


def _portrayed(result: Result, model: torch.nn.Module, method: Method, data: Any) -> Result:
    """Put into the report what the method's structure looks like, where it has one that can be had."""
    if method.name not in DIAGNOSTICS:
        return result
    try:
        return diagnose(result, model, data, method)
    except SecateurError as error:
        printing.complain(f"warning: no page on the structure of {method.name!r} in the report: {error}")
        return result


def main() -> None:
    """Run the command line; warnings are one line each."""
    warnings.showwarning = lambda message, *_: printing.complain(f"warning: {message}")
    app()


__all__ = ["app", "check_writable", "main"]
