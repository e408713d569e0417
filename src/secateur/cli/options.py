"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from secateur.core import InputError, StoreError, brief
from secateur.html.files import is_own_page
from secateur.mixtures import Experts
from secateur.repair.base import LEARNING_RATE
from secateur.specs import Batches, example_of, make_model, try_inputs
from secateur.user_code import run_user_code

__all__ = [
    "PAGE",
    "DataName",
    "Epochs",
    "Even",
    "ExampleShape",
    "HoldoutName",
    "IgnoredLayers",
    "InsideNames",
    "Jobs",
    "Latency",
    "LearningRate",
    "MetricName",
    "ModelName",
    "OutputNames",
    "ScopeName",
    "Seed",
    "StatePairs",
    "Strict",
    "WeightsFile",
    "WholeBlocks",
    "WholeExperts",
    "check_writable",
    "make_interface",
    "parse_blocks",
    "parse_experts",
    "prepare_model",
]

PAGE = "report.html"
ModelName = Annotated[
    str,
    typer.Argument(
        help="package.module:factory, file.py:factory, a folder saved by transformers, or a GGUF file."
    ),
]
WeightsFile = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint with the model's weights (safetensors or torch.save), or FILE:KEY for one in it."
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict", help="Whether the checkpoint must have exactly the model's tensors."
    ),
]
ExampleShape = Annotated[
    str | None,
    typer.Option(
        help="Shape of the example inputs, the batch first, as in 2,3,32,32. Without it, the first two "
        "examples of --data are used, or the factory's attribute example_inputs."
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        help="digits, fashion, mnist:FOLDER, cifar10:FOLDER, or a function that returns batches, with or "
        "without labels: file.py:function."
    ),
]
HoldoutName = Annotated[
    str | None,
    typer.Option(help="Batches for the metric, named like --data. A data set holds out a part by itself."),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="accuracy, agreement, log_likelihood, perplexity, or a function (model, batches) -> float: "
        "file.py:function. By default accuracy if there are labels, else agreement with the original."
    ),
]
IgnoredLayers = Annotated[
    list[str] | None,
    typer.Option(
        help="Layer, parameter, group, pattern, or kind of groups (kind:hidden) whose units all stay; may be "
        "repeated."
    ),
]
OutputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        help="Output that counts, if not all do: a field, an index or a path, as in logits, 0 or past.0; may "
        "be repeated. The others may lose units.",
    ),
]
StatePairs = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="INPUT=OUTPUT: an input whose next value the model returns, as in h=hidden or 1=1; may be "
        "repeated. Both shrink with the units on them.",
    ),
]
InsideNames = Annotated[
    list[str] | None,
    typer.Option(
        "--inside",
        help="Submodule to prune, if torch.export cannot export the whole model; auto finds the largest ones "
        "that it can; may be repeated. The rest stays as it is.",
    ),
]
WholeBlocks = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        help="Whole blocks that go before units do: how many (the least needed, by trial), their names with "
        "commas, or auto (the integer program weighs them against units).",
    ),
]
WholeExperts = Annotated[
    list[str] | None,
    typer.Option(
        "--experts",
        help="Whole experts of mixtures, which go before blocks and units: how many stay in each mixture "
        "(those that add most on the data; with 6,by=tokens those with the most tokens, with 6,by=mean those "
        "that add most to each of their tokens), or a mixture and the experts that stay in it, as in "
        "model.layers.0.mlp:0,2,5, which may be repeated.",
    ),
]
ScopeName = Annotated[
    str | None,
    typer.Option(
        help="How the groups share the budget: layer (each keeps the same share), global (the best units of "
        "all stay), erk, loss (least predicted loss; needs data) or program (the same by an integer program, "
        "with a proven gap). By default loss for params and macs if there is data, else layer."
    ),
]
Even = Annotated[
    bool | None,
    typer.Option(
        "--even/--uneven",
        help="Whether layers of the same kind keep equal counts, as the config of a transformers model "
        "needs it. On by default for folders of transformers.",
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of a fine-tuning; 1 by default.")]
LearningRate = Annotated[
    float | None, typer.Option(help=f"Largest learning rate of a fine-tuning; {LEARNING_RATE} by default.")
]
Latency = Annotated[bool, typer.Option(help="Whether to measure latencies, at batch 1 and 64.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


def prepare_model(
    name: str,
    weights: str | None,
    strict: bool,
    shape: str | None,
    batches: Batches,
    device: str = "cpu",
) -> tuple[nn.Module, Any]:
    """Return the model on its device, and example inputs on which it runs.

    Raises:
        InputError: If the model cannot be made, is not on a known device, or does not run on the inputs.
        StoreError: If the weights cannot be loaded.
    """
    model, example = make_model(name, weights, strict=strict)
    if shape is not None:
        example = example_of(shape)
    elif batches.fit is not None:
        example = run_user_code("reading the first batch", lambda: batches.example(model))
    if example is None or (isinstance(example, (tuple, Mapping)) and not example):
        raise InputError(
            "example inputs of the model are missing: give --example-shape, as in 2,3,32,32, or --data, or "
            "set the attribute example_inputs of the factory"
        )
    try:
        model = model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot compute on {device!r}: {str(error).splitlines()[0]}") from error
    try_inputs(model, example)
    return model, example


def make_interface(
    outputs: list[str] | None, states: list[str] | None, inside: list[str] | None
) -> dict[str, Any]:
    """Return the arguments of `prune` for ``--output``, ``--state`` and ``--inside``.

    Example:
        >>> make_interface(["logits"], ["h=hidden", "1=past.0"], None)
        {'outputs': ['logits'], 'states': {'h': 'hidden', '1': 'past.0'}, 'inside': None}
    """
    pairs = [text.split("=") for text in states or ()]
    for text, pair in zip(states or (), pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError(f"--state takes INPUT=OUTPUT, as in h=hidden or 1=1; got {brief(text)}")
    return {"outputs": outputs or None, "states": dict(pairs) or None, "inside": inside or None}


def parse_blocks(text: str | None) -> int | str | list[str]:
    """Return the argument `blocks` of `prune` for ``--blocks``.

    Example:
        >>> parse_blocks(None), parse_blocks("2"), parse_blocks("auto"), parse_blocks("layers.0,layers.3")
        (0, 2, 'auto', ['layers.0', 'layers.3'])
    """
    if text is None or text == "auto":
        return text or 0
    return int(text) if text.isdecimal() else text.split(",")


def parse_experts(texts: list[str] | None) -> Experts | None:
    """Return the argument `experts` of `prune` for ``--experts``.

    Example:
        >>> parse_experts(["6"]), parse_experts(["6,by=tokens"])
        (Experts(keep=6, by='total'), Experts(keep=6, by='tokens'))
        >>> parse_experts(None), parse_experts(["layers.0:0,2", "layers.1:1,3"])
        (None, Experts(keep={'layers.0': [0, 2], 'layers.1': [1, 3]}, by='total'))
    """
    if not texts:
        return None
    count, _, by = texts[0].partition(",by=")
    if len(texts) == 1 and count.isdecimal():
        return Experts(int(count), by) if by else Experts(int(count))  # type: ignore[arg-type]
    kept: dict[str, list[int]] = {}
    for text in texts:
        name, _, numbers = text.rpartition(":")
        if not name or name in kept or not all(number.isdecimal() for number in numbers.split(",")):
            raise InputError(
                "--experts takes one number, as in 6 or 6,by=tokens, or a mixture and its experts that stay, "
                f"as in model.layers.0.mlp:0,2,5; got {brief(text)}"
            )
        kept[name] = [int(number) for number in numbers.split(",")]
    return Experts(kept)


def check_writable(folder: Path, replaced: Iterable[str] = (), mark: str = "") -> None:
    """Check that a command can write into a folder; leave everything as it was.

    Args:
        folder: The folder; it need not exist.
        replaced: Names of files that the command will write.
        mark: Name of a file that every earlier run leaves.  A report.html of Secateur's counts, too.

    Raises:
        StoreError: If it cannot be made or written, or if the files to be replaced are the user's own.
    """
    created: list[Path] = []
    try:
        created += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        theirs = [name for name in replaced if (folder / name).exists()]
        if theirs and not (mark and (folder / mark).exists()) and not is_own_page(folder / PAGE):
            raise StoreError(
                f"{folder} has files that Secateur did not write and would replace: {', '.join(theirs)}. "
                "Name another folder, or move them"
            )
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        for path in created:
            with suppress(OSError):  # another run has begun to write there
                path.rmdir()
