"""``secateur verify``: recompute what the certificate of a saved result states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import DataName, HoldoutName, MetricName, Seed, Strict, WeightsFile
from secateur.cli.printing import print_line
from secateur.formats.certificate import NOT_PROVEN, read_certificate, verify_folder
from secateur.specs import make_data, make_metric, make_model

__all__ = ["verify_command"]

SavedFolder = Annotated[Path, typer.Argument(help="The saved result; nothing in it is trusted.")]
Original = Annotated[
    str,
    typer.Option(
        "--model",
        help="The original, from a source that you trust: package.module:factory, file.py:factory, or a "
        "folder or GGUF file of transformers.",
    ),
]
CertificateFile = Annotated[
    Path | None, typer.Option(help="Certificate that came by another way; by default the one in the folder.")
]
BatchesName = Annotated[
    str | None, typer.Option("--name", help="Name of the held-out batches, if the report has several.")
]


def verify_command(
    folder: SavedFolder,
    model: Original,
    weights: WeightsFile = None,
    strict: Strict = True,
    certificate: CertificateFile = None,
    data: DataName = None,
    holdout: HoldoutName = None,
    metric: MetricName = None,
    name: BatchesName = None,
    seed: Seed = 0,
) -> None:
    """Recompute what the certificate of a saved result states, up to the first line that differs.

    Exit code 0: all lines agree.  Exit code 2: the message names the line that differs.
    """
    given = None if certificate is None else read_certificate(certificate)
    original, _ = make_model(model, weights, strict=strict)
    batches = None
    if holdout is not None:
        batches = make_data(holdout).fit
    elif data is not None:
        batches = make_data(data, seed=seed).holdout
    lines = verify_folder(
        folder,
        original,
        batches,
        metric=None if metric is None else make_metric(metric),
        name=name or "",
        certificate=given,
    )
    for line in lines:
        print_line(line)
    print_line(f"yes: all of it agrees. It does not prove {'; '.join(NOT_PROVEN)}")
