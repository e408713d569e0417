"""``secateur prune``: prune a model, check it, measure it and save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from secateur.batches import predicts_next_token
from secateur.cli.options import (
    DataName,
    Epochs,
    Even,
    ExampleShape,
    HoldoutName,
    IgnoredLayers,
    InsideNames,
    Latency,
    LearningRate,
    MetricName,
    ModelName,
    OutputNames,
    ScopeName,
    Seed,
    StatePairs,
    Strict,
    WeightsFile,
    WholeBlocks,
    WholeExperts,
    make_interface,
    parse_blocks,
    parse_experts,
    prepare_model,
)
from secateur.cli.out_folder import check_out_folder, save_result
from secateur.cli.printing import print_line, print_table, warn
from secateur.cli.stream_options import Streamed, prune_streamed
from secateur.cli.text_options import (
    ONE_TEXT,
    HoldoutSamples,
    HoldoutTexts,
    Samples,
    SequenceLength,
    TextOptions,
    Texts,
    TokenizerFolder,
)
from secateur.cli.torchrun import check_divisible
from secateur.core import Budget, InputError, SecateurError, Weights, unknown
from secateur.core.budget import as_budget
from secateur.diagnostics import DIAGNOSTICS, diagnose
from secateur.measure.metrics import Metric
from secateur.methods import Method
from secateur.pretrained import is_pretrained
from secateur.processes import current_processes
from secateur.pruning import prune
from secateur.repair.base import Finetune, Repair, parse_repair
from secateur.result import Result
from secateur.schedule import OneShot, Schedule, Steps, Tolerance
from secateur.specs import (
    Batches,
    default_metric,
    make_budgets,
    make_data,
    make_loss,
    make_method,
    make_metric,
)
from secateur.texts import JUDGING, SAMPLES, TextBatches

__all__ = ["print_result", "prune_command"]

HIDDEN, VOCABULARY, POSITIONS = "hidden", "vocabulary", "positions"
GROUPS = 30  # in the table of groups
UNDONE = 5  # repairs that were undone
# Option of a fine-tuning -> attribute of `Finetune`.
TRAINING = {
    "epochs": "epochs",
    "tuning-steps": "steps",
    "minutes": "minutes",
    "lr": "lr",
    "teacher": "teacher",
    "feature": "features",
}


MethodName = Annotated[
    str,
    typer.Option(
        help="auto (with data matroid, for language models taylor; else magnitude), or a method with its "
        "options: magnitude:p=2,over=both, file.py:Class, file.py:Class:option=value."
    ),
]
BudgetTexts = Annotated[
    list[str] | None,
    typer.Option(
        help="What stays: units=0.5 (the default), params=0.3, macs=0.5, bytes=0.5, bytes=20MB, latency=0.5, "
        "latency=12ms,batch=1,threads=4 (also device, batch_axis), weights=0.1, or a share for each layer: "
        "units=layer1.*:0.75,fc:0.5. May be repeated: all must hold."
    ),
]
Floor = Annotated[int, typer.Option(help="Least number of units in a group.")]
RoundTo = Annotated[
    int | None,
    typer.Option(help="Round the units of a group to a multiple of this; for latency, found by itself."),
]
StepCount = Annotated[int | None, typer.Option(help="Reach the budget in so many steps, each with a repair.")]
Drop = Annotated[
    float | None,
    typer.Option(
        help="Prune more and more while the metric on held-out batches falls by no more than this, at "
        "most to the budget."
    ),
]
RepairName = Annotated[
    str,
    typer.Option(
        help="auto (with data refit, for language models fold; else none), none, fold, refit, finetune, "
        "fold+finetune, or refit+finetune."
    ),
]
TuningSteps = Annotated[int | None, typer.Option(help="Steps of a fine-tuning, instead of epochs.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Minutes after which a fine-tuning stops; the result depends on the clock."),
]
Teacher = Annotated[
    bool | None,
    typer.Option(
        "--teacher/--no-teacher",
        help="Whether a fine-tuning learns the outputs of the original; by default if there are no labels.",
    ),
]
FeatureNames = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        help="Module, or pattern of modules, whose outputs a fine-tuning makes follow the original's; may be "
        "repeated.",
    ),
]
LossName = Annotated[
    str | None,
    typer.Option(
        help="Function (outputs, targets) -> scalar, for gradients and fine-tuning: file.py:function."
    ),
]
CutKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--cut",
        help="Also cut what else stays whole in a transformers model: hidden (its residual stream), "
        "vocabulary (tokens that the calibration texts never have), positions (within the heads of "
        "attention; other models, too). May be repeated.",
    ),
]
DeviceName = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")]
Explain = Annotated[bool, typer.Option("--explain", help="Print what goes from each group, and why.")]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for the weights, the plan and the report.")
]
Onnx = Annotated[bool, typer.Option("--onnx", help="Also write model.onnx into the folder (extra onnx).")]
ModellingFile = Annotated[
    bool,
    typer.Option(
        "--modelling-file",
        help="State sizes that the config of a transformers model cannot state in a modelling file in the "
        "folder, which then loads with trust_remote_code=True, instead of filling up with units of zeros.",
    ),
]


def prune_command(
    model: ModelName,
    method: MethodName = "auto",
    budget: BudgetTexts = None,
    scope: ScopeName = None,
    floor: Floor = 1,
    round_to: RoundTo = None,
    even: Even = None,
    steps: StepCount = None,
    tolerance: Drop = None,
    data: DataName = None,
    holdout: HoldoutName = None,
    text: Texts = None,
    holdout_text: HoldoutTexts = None,
    tokenizer: TokenizerFolder = None,
    sequence_length: SequenceLength = None,
    samples: Samples = SAMPLES,
    holdout_samples: HoldoutSamples = JUDGING,
    repair: RepairName = "auto",
    epochs: Epochs = None,
    tuning_steps: TuningSteps = None,
    minutes: Minutes = None,
    lr: LearningRate = None,
    teacher: Teacher = None,
    feature: FeatureNames = None,
    loss: LossName = None,
    metric: MetricName = None,
    latency: Latency = False,
    weights: WeightsFile = None,
    strict: Strict = True,
    example_shape: ExampleShape = None,
    ignore: IgnoredLayers = None,
    output: OutputNames = None,
    state: StatePairs = None,
    inside: InsideNames = None,
    cut: CutKinds = None,
    blocks: WholeBlocks = None,
    experts: WholeExperts = None,
    device: DeviceName = "cpu",
    seed: Seed = 0,
    explain: Explain = False,
    folder: OutFolder = None,
    onnx: Onnx = False,
    modelling_file: ModellingFile = False,
    stream: Streamed = False,
) -> None:
    """Prune a model, check that what is left computes the same, and compare it with the original."""
    repairs = _parse_repair(repair, (epochs, tuning_steps, minutes, lr, teacher, feature or None))
    chosen = None if method == "auto" else make_method(method)
    default = f"units={0.5 if tolerance is None else Tolerance.step}"
    share = _with_evenness(make_budgets(budget or [default], scope, floor, round_to), even, model)
    texts = TextOptions(text, holdout_text, tokenizer, sequence_length, samples, holdout_samples)
    texts.check(data, holdout)
    check_divisible(share, stream)
    if stream:
        others: dict[str, Any] = {"steps": steps, "tolerance": tolerance, "loss": loss, "metric": metric}
        others |= {"weights": weights, "output": output, "state": state, "blocks": blocks}
        others |= {"data": data, "example-shape": example_shape, "onnx": onnx, "uneven": even is False}
        others |= {"device": None if device == "cpu" else device, "inside": inside, "latency": latency}
        inner = POSITIONS in (cut or ())
        others |= {"modelling-file": modelling_file and not inner, "experts": experts}
        others |= {"cut": [kind for kind in cut or () if kind != POSITIONS] or None}
        whole = ignore or ()
        prune_streamed(model, folder, share, chosen, repairs, texts, whole, seed, explain, inner, others)
        return
    user_metric = None if metric is None else make_metric(metric)
    user_loss = None if loss is None else make_loss(loss)
    check_out_folder(folder, onnx, model)
    parts = {"finetune": "finetune" in repair, "tolerance": tolerance is not None}
    batches = _make_batches(data, holdout, **parts, seed=seed)
    original, example = prepare_model(model, weights, strict, example_shape, batches, device)
    whole = _whole_by_default(original, cut or ())
    if VOCABULARY in (cut or ()):
        original, texts = texts.cut_vocabulary(model, original)
    read = texts.read(model, original)
    batches = batches if read is None else Batches(read.fit, next(iter(read.judged.values())))
    judge = _choose_metric(user_metric, batches.holdout, original)
    result = prune(
        original,
        example,
        share,
        batches.fit,
        method=chosen,
        repair=repairs,
        schedule=_make_schedule(steps, tolerance, batches.holdout, judge),
        loss=user_loss,
        ignored_layers=[*(ignore or ()), *whole],
        blocks=parse_blocks(blocks),
        experts=parse_experts(experts),
        **make_interface(output, state, inside),
        positions=POSITIONS in (cut or ()),
        seed=seed,
    )
    if current_processes().number:
        return  # the first process measures and writes
    result = _measure(result, batches.holdout, judge, latency, read)
    print_result(result, explain)
    if data and batches.holdout is None:
        warn("no metric was measured: name held-out batches with --holdout")
    if read is not None and not read.foreign:
        warn(ONE_TEXT)
    if folder is not None and read is None:
        result = _with_diagnostics(result, original, chosen, batches.fit)
    save_result(result, folder, model, texts.tokenizer, "code" if modelling_file else "pad", onnx)


def _whole_by_default(model: nn.Module, cut: Sequence[str]) -> list[str]:
    """Return what stays whole in a model of transformers unless the user wants it cut."""
    known = [HIDDEN, VOCABULARY, POSITIONS]
    if other := [kind for kind in cut if kind not in known]:
        raise InputError(unknown("kind of units that stays whole by default", other[0], known))
    return [f"kind:{HIDDEN}"] if hasattr(model, "get_input_embeddings") and HIDDEN not in cut else []


def _measure(
    result: Result,
    holdout: Sequence[Any] | None,
    metric: str | Metric | None,
    latency: bool,
    texts: TextBatches | None,
) -> Result:
    """Measure on the held-out batches, or on every text that judges."""
    if texts is None:
        return result.measure(holdout, metric, latency=latency)
    *others, (name, last) = texts.judged.items()
    for other, batches in others:
        result = result.measure(batches, metric, name=other)
    prompt = last[0]["input_ids"][:1] if predicts_next_token(result.model) else None
    return result.measure(last, metric, name=name, latency=latency, prompt=prompt)


def _with_evenness(budget: Budget, even: bool | None, model: str) -> Budget:
    """Return the budget, even or not; by default even for a folder of transformers."""
    whole = not any(isinstance(x, Weights) or isinstance(x.keep, Mapping) for x in budget.parts)
    if even is None:
        even = is_pretrained(model) and whole
    return as_budget([replace(part, even=True) for part in budget.parts]) if even else budget


def _make_batches(data: str | None, holdout: str | None, **options: Any) -> Batches:
    """Return the batches to look at and those for the metric."""
    batches = make_data(data, **options) if data else Batches()
    return replace(batches, holdout=make_data(holdout, **options).fit) if holdout else batches


def _choose_metric(
    metric: str | Metric | None, holdout: Sequence[Any] | None, model: nn.Module
) -> str | Metric | None:
    """Return the user's metric, or the one that fits the held-out batches; None if there are none."""
    if holdout is None:
        if metric is not None:
            raise InputError("--metric needs held-out batches: name them with --holdout")
        return None
    if metric is not None:
        return metric
    if predicts_next_token(model):
        return "perplexity"
    default = default_metric(holdout, model)
    if default == "agreement":
        warn("the held-out batches have no class numbers: the metric is the agreement with the original")
    return default


def _make_schedule(
    steps: int | None, drop: float | None, holdout: Sequence[Any] | None, metric: str | Metric | None
) -> Schedule:
    if drop is None:
        return OneShot() if steps is None else Steps(steps)
    if steps is not None:
        raise InputError("--tolerance makes its own steps: give --tolerance or --steps, not both")
    if holdout is None or metric is None:
        raise InputError("--tolerance needs held-out batches: name them with --holdout")
    return Tolerance(drop, holdout, metric)


def _parse_repair(text: str, training: Sequence[Any]) -> str | tuple[Repair, ...]:
    """Return "auto" or the repairs; a fine-tuning gets the values of `TRAINING` that are not None."""
    repairs = () if text == "auto" else parse_repair(None if text == "none" else text)
    given = {option: x for option, x in zip(TRAINING, training, strict=True) if x is not None}
    if given and not any(isinstance(x, Finetune) for x in repairs):
        raise InputError(f"--{next(iter(given))} is for a fine-tuning: give --repair fold+finetune")
    if text == "auto":
        return "auto"
    changes: dict[str, Any] = {TRAINING[option]: x for option, x in given.items()}
    return tuple(replace(x, **changes) if isinstance(x, Finetune) else x for x in repairs)


def print_result(result: Result, explain: bool = False) -> None:
    """Print the summary of a result, the groups that lost units, and the repairs that were undone.

    Args:
        result: What `prune` returned.
        explain: Whether to print what goes from each group, and why, before that.
    """
    report = result.report
    if explain:
        print_line(result.plan.explain())
    print_line(repr(result))
    rows = [
        {"where": name, "had": f"{counts[unit]:,} {unit}", "kept": counts["kept"]}
        for unit, parts in (("units", report.groups), ("weights", report.masks))
        for name, counts in parts.items()
        if counts["kept"] < counts[unit]
    ]
    print_table(rows[:GROUPS])
    if len(rows) > GROUPS:
        print_line(f"and {len(rows) - GROUPS} more groups: the report lists them all")
    undone = report.failed_repairs("undone")
    for name, why in list(undone.items())[:UNDONE]:
        print_line(f"repair of {name} undone: {why}")
    if len(undone) > UNDONE:
        print_line(f"and {len(undone) - UNDONE} more repairs undone: see folds in the report")


def _with_diagnostics(result: Result, model: nn.Module, method: Method | None, data: Any) -> Result:
    """Return the result with diagnostics of the method's structure in its report, if it has any."""
    if result.plan.method not in DIAGNOSTICS:
        return result
    try:
        return diagnose(result, model, data, method)
    except SecateurError as error:
        warn(f"warning: the report has no diagnostics of {result.plan.method!r}: {error}")
        return result
