"""The option of ``secateur prune`` for models larger than memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.out_folder import add_report
from secateur.cli.printing import print_line, warn
from secateur.cli.text_options import ONE_TEXT, TextOptions
from secateur.core import Budget, InputError
from secateur.methods import Method
from secateur.pretrained import empty_model, is_pretrained
from secateur.repair.base import Repair
from secateur.streaming import prune_folder

__all__ = ["Streamed", "prune_streamed"]

Streamed = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Prune a folder of transformers block by block, from disk to disk, with one block in memory. A "
        "run that was killed goes on with the same command.",
    ),
]


def prune_streamed(
    name: str,
    folder: Path | None,
    budget: Budget,
    method: Method | None,
    repair: str | Sequence[Repair],
    texts: TextOptions,
    ignored_layers: Sequence[str],
    seed: int,
    explain: bool,
    positions: bool,
    others: Mapping[str, Any],
) -> None:
    """Prune a folder block by block and print the result.

    Args:
        name: The folder of the model.
        folder: Where the pruned model goes.
        budget: How much stays.
        method: The method, or None for the default.
        repair: "auto", or the repairs.
        texts: What to calibrate on and to judge by.
        ignored_layers: What stays whole.
        seed: The seed.
        explain: Whether to print what goes from each group.
        positions: Whether positions within heads may go; the folder gets a modelling file.
        others: Options that need the whole model in memory, by name.

    Raises:
        InputError: If one of those is given, or the model, the texts or the folder are not.
    """
    if given := [option for option, value in others.items() if value not in (None, False)]:
        raise InputError(f"--{given[0]} needs the whole model in memory: leave it out, or leave out --stream")
    if not (is_pretrained(name) and Path(name).is_dir()):
        raise InputError(f"--stream takes a folder of transformers with safetensors; got {name}")
    if folder is None:
        raise InputError("--stream writes the new model as it goes: name a folder with --out")
    read = texts.read(name, empty_model(name))
    if read is None:
        raise InputError("--stream needs a text to calibrate on: give --text")
    result = prune_folder(
        name,
        folder,
        budget,
        read.fit,
        method=method,
        repair=repair,
        judged=read.judged,
        ignored_layers=ignored_layers,
        tokenizer=texts.tokenizer,
        positions=positions,
        seed=seed,
    )
    if explain:
        print_line(result.plan.explain())
    print_line(repr(result))
    if not read.foreign:
        warn(ONE_TEXT)
    add_report(result.report, folder)
