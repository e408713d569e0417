"""``secateur study``: run the studies of a package that announces them as an entry point.

The entry point of the group ``secateur.studies`` names a module with ``run(name, out, docs, **options)``,
which returns outcomes, and ``folders_of(name)``, the data sets that a study reads from folders.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.options import Jobs, Seed, check_writable
from secateur.cli.printing import print_line, print_table, progress, warn
from secateur.core import InputError, SecateurError, unknown

__all__ = ["find_studies", "study_command"]

GROUP = "secateur.studies"


def study_command(
    name: Annotated[str, typer.Argument(help="matroid, spectral, mip, lattice, joint, or all.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder with a folder for each study; finished trials are kept.")
    ] = Path("runs/studies"),
    full: Annotated[
        bool, typer.Option("--full", help="Run at the size of the publication: hours, not minutes.")
    ] = False,
    jobs: Jobs = 2,
    docs: Annotated[Path | None, typer.Option(help="Folder for the pages of findings, NAME.md.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--folder", help="Folder of a data set, as in cifar10=DIR; may be repeated."),
    ] = None,
    seed: Seed = 0,
    parts: Annotated[str | None, typer.Option(help="Parts of the study, with commas.")] = None,
    nets: Annotated[str | None, typer.Option(help="Networks, with commas, as in FC-3,LeNet-5.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of trainings of each network.")] = None,
    device: Annotated[str | None, typer.Option(help="Device for training and tests, as in cuda.")] = None,
) -> None:
    """Regenerate the tables and figures of a publication, with the published numbers beside them.

    The same command continues an interrupted study. Trained networks are kept in the folder's weights/.
    """
    studies = find_studies()
    for place in (folder, *([docs] if docs else [])):
        check_writable(place)
    folders = _parse_folders(data or [], studies.folders_of(name))
    chosen = {"parts": _split(parts), "nets": _split(nets), "seeds": seeds, "device": device}
    options = {option: value for option, value in chosen.items() if value is not None}
    with progress(f"study {name}") as log:
        outcomes = studies.run(
            name, folder, docs, full=full, seed=seed, jobs=jobs, log=log, folders=folders, **options
        )
    for outcome in outcomes:
        print_outcome(outcome)
    print_line(f"written into {folder}")
    if failed := [outcome.study for outcome in outcomes if outcome.error]:
        raise SecateurError(f"failed: {', '.join(failed)}; the other studies are written")


def _split(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))


def find_studies() -> Any:
    """Return the module that the installed studies announce.

    Raises:
        InputError: If no studies are installed.
    """
    points = entry_points(group=GROUP)
    if not points:
        raise InputError(
            f"no studies are installed: no package has an entry point {GROUP!r}. Secateur's own are in its "
            "repository: run pip install -e . there"
        )
    return next(iter(points)).load()


def _parse_folders(texts: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """Return the folders of data sets by name, from texts NAME=DIR."""
    folders = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise InputError(f"a folder is written NAME=DIR, as in cifar10=data/cifar; got {text!r}")
        if name not in known:
            raise InputError(unknown("data set of this study", name, list(known)))
        folders[name] = folder
    return folders


def print_outcome(outcome: Any) -> None:
    """Print the result of a study: its tables, verdicts and conclusion."""
    if outcome.findings is None:
        warn(f"{outcome.study} failed: {outcome.error}")
        return
    tables = [{"table": table.title, "rows": len(table.rows)} for table in outcome.findings.tables]
    print_table(tables, outcome.findings.title)
    if verdicts := [f"{count} {verdict}" for verdict, count in outcome.verdicts.items() if count]:
        print_line(f"compared with published numbers: {', '.join(verdicts)}")
    if outcome.findings.paragraph:
        print_line(outcome.findings.paragraph)
