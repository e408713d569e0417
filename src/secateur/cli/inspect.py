"""``secateur inspect`` and ``secateur methods``: what can be removed, and by what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from secateur.allocation.cost import group_costs
from secateur.cli.options import (
    DataName,
    ExampleShape,
    IgnoredLayers,
    InsideNames,
    ModelName,
    OutputNames,
    StatePairs,
    Strict,
    WeightsFile,
    make_interface,
    prepare_model,
)
from secateur.cli.printing import print_line, print_table
from secateur.cli.text_options import Samples, SequenceLength, TextOptions, Texts, TokenizerFolder
from secateur.core import CaptureError, InputError, Latency, PruningGraph
from secateur.diagnostics import measure_sensitivity
from secateur.diagnostics.sensitivity import FILE
from secateur.methods import METHODS
from secateur.specs import Batches, make_data
from secateur.texts import SAMPLES
from secateur.tracing.inside import find_exportable
from secateur.tracing.trace import as_call, trace

__all__ = ["inspect_command", "methods_command", "print_everything", "print_summary"]

REASONS = 6
LOCATION = re.compile(r" \(\S+:\d+\)")  # in a reason: where the model's code ties two axes


def inspect_command(
    model: ModelName,
    weights: WeightsFile = None,
    strict: Strict = True,
    example_shape: ExampleShape = None,
    data: DataName = None,
    text: Texts = None,
    tokenizer: TokenizerFolder = None,
    sequence_length: SequenceLength = None,
    samples: Samples = SAMPLES,
    ignore: IgnoredLayers = None,
    output: OutputNames = None,
    state: StatePairs = None,
    inside: InsideNames = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every tensor of each group and every frozen axis.")
    ] = False,
    sensitivity: Annotated[
        bool,
        typer.Option(
            help="Measure what it costs to lose 10, 25, 50 and 75 % of each group; needs --data or --text."
        ),
    ] = False,
    method: Annotated[
        str, typer.Option(help="With --sensitivity: the method whose order of units decides which go.")
    ] = "matroid",
    latency_batch: Annotated[
        int | None, typer.Option(help="With --sensitivity: also show milliseconds at this batch size.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --sensitivity: folder for sensitivity.html and sensitivity.json, from which an "
            "interrupted command goes on."
        ),
    ] = None,
) -> None:
    """Show the groups of units that can be removed from a model, and what is frozen and why.

    Every name, pattern of names, and kind (kind:ffn) that it prints can be given to --ignore.
    """
    texts = TextOptions(text, None, tokenizer, sequence_length, samples, judging=1)
    texts.check(data, None)
    batches = make_data(data) if data else Batches()
    network, example = prepare_model(model, weights, strict, example_shape, batches)
    if (read := texts.read(model, network)) is not None:
        batches = Batches(read.fit)
    if sensitivity and (output or state or inside):
        raise InputError("--sensitivity looks at whole models: leave --output, --state and --inside out")
    if sensitivity:
        print_sensitivity(network, example, batches, ignore or (), method, latency_batch, out)
        return
    if out is not None or latency_batch is not None or method != "matroid" or text:
        raise InputError("--out, --method, --latency-batch and --text belong to --sensitivity")
    try:
        graph = trace(network, example, ignored_layers=ignore or (), **make_interface(output, state, inside))
    except CaptureError as error:
        raise (error if inside else _with_proposal(error, network, example)) from error
    (print_everything if everything else print_summary)(graph)


def _with_proposal(error: CaptureError, model: nn.Module, example: Any) -> CaptureError:
    """Return the error with the largest submodules that can be exported, if there are any."""
    try:
        names = find_exportable(model, *as_call(example))
    except CaptureError:
        return error
    options = " ".join(f"--inside {name}" for name in names)
    return CaptureError(f"{error}. These parts of the model can be pruned: {options} (or --inside auto)")


def print_sensitivity(
    model: nn.Module,
    example: Any,
    batches: Batches,
    ignored: Sequence[str],
    method: str,
    latency_batch: int | None,
    out: Path | None,
) -> None:
    """Print what each group costs and saves, and write it into a folder."""
    if batches.fit is None:
        raise InputError("--sensitivity measures the outputs on batches: give --data or --text")
    costs = () if latency_batch is None else (Latency(0.5, batch=latency_batch),)
    found = measure_sensitivity(
        model, example, batches.fit, method=method, costs=costs, ignored_layers=ignored, folder=out
    )
    what = f"divergence of the outputs without a share of one group, units by {method}"
    print_table(found.table(), f"{_count(found.groups, 'group')}: {what}")
    if out is not None:
        found.to_html(out / "sensitivity.html")
        print_line(f"written: {out / FILE}, {out / 'sensitivity.html'}")
    print_line(f"a plan by hand: --budget 'units={next(iter(found.groups))}:0.5,...'")


def print_summary(graph: PruningGraph) -> None:
    """Print a line for each group, and the most common reasons why axes are frozen."""
    rows = [
        {
            "group": name,
            "kind": graph.group(name).kind,
            "units": graph.group(name).size,
            "parameters": cost.params,
            "share": f"{cost.params_share:.1%}",
            "MACs": round(cost.macs),
            "share of MACs": f"{cost.macs_share:.1%}",
        }
        for name, cost in group_costs(graph).items()
    ]
    units = {kind: sum(group.size for group in groups) for kind, groups in graph.by_kind().items()}
    kinds = f" ({', '.join(f'{n:,} {kind}' for kind, n in units.items())})" if units else ""
    total = f"{_count(rows, 'group')}, {sum(units.values()):,} units{kinds}"
    print_table(rows, f"{total}; a weight between two groups counts in both")
    reasons = Counter(LOCATION.sub("", axis.reason) for axis in graph.frozen)
    examples = {LOCATION.sub("", axis.reason): axis.tensor for axis in reversed(graph.frozen)}
    print_table(
        [
            {"axes": count, "why nothing is removed": reason, "example": examples[reason]}
            for reason, count in reasons.most_common(REASONS)
        ],
        f"{len(graph.frozen)} frozen axes",
    )
    more = f"{len(reasons) - REASONS} more reasons; " if len(reasons) > REASONS else ""
    print_line(f"{more}--all lists every tensor and every frozen axis")


def print_everything(graph: PruningGraph) -> None:
    """Print every tensor of each group, and every frozen axis."""
    print_table(
        [
            {
                "group": group.name,
                "units": group.size,
                "tensor": slot.tensor,
                "axis": slot.axis,
                "role": slot.role,
            }
            for group in graph.groups
            for slot in group.slots
        ],
        _count(graph.groups, "group"),
    )
    print_table(
        [
            {
                "tensor": axis.tensor,
                "axis": axis.axis,
                "why nothing is removed": axis.reason,
                "source": axis.source,
            }
            for axis in graph.frozen
        ],
        f"{len(graph.frozen)} frozen axes",
    )


def methods_command() -> None:
    """List the methods, what each does, and its options."""
    rows = []
    for name, kind in METHODS.items():
        summary = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
        options = [_option(f) for f in fields(kind) if f.init] if is_dataclass(kind) else []
        rows.append({"method": name, "what it does": summary, "options": ", ".join(options)})
    print_table(rows)


def _count(values: Sized, name: str) -> str:
    return f"{len(values)} {name}" + ("" if len(values) == 1 else "s")


def _option(option: Field[Any]) -> str:
    return option.name if option.default is MISSING else f"{option.name}={option.default!r}"
