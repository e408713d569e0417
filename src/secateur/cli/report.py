"""``secateur report``: one page of all the runs in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import PAGE, check_writable
from secateur.cli.printing import print_line
from secateur.core import StoreError
from secateur.html import SavedRuns, read_runs, read_sections, write_html

__all__ = ["report_command"]


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder with saved results or runs, searched to any depth.")],
    page: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; by default report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML report of all the runs in a folder, and of measured sensitivities."""
    if page is None:
        check_writable(folder, replaced=[PAGE])
    sections = read_sections(folder)
    try:
        runs = read_runs(folder)
    except StoreError:
        if not sections:
            raise
        runs = SavedRuns()
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print_line(f"{count} in {write_html(runs, page or folder / PAGE, sections=sections)}")
