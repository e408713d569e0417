"""All studies. The entry point ``secateur.studies`` names this module, and ``secateur study`` loads it.

Adding a study means adding its value to `STUDIES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur_studies import joint, lattice, matroid, mip, spectral
from secateur_studies.runner import Outcome, Study, check_names, run_studies, run_study

__all__ = ["STUDIES", "Outcome", "Study", "folders_of", "run"]

STUDIES: dict[str, Study] = {
    package.STUDY.name: package.STUDY for package in (matroid, spectral, mip, lattice, joint)
}


def folders_of(name: str) -> tuple[str, ...]:
    """Return the data sets that a study, or any of ``"all"``, reads from folders of the user.

    Raises:
        InputError: If there is no such study.

    Example:
        >>> folders_of("joint")
        ('fashion',)
    """
    return tuple(dict.fromkeys(data for study in _find(name) for data in study.folders))


def run(name: str, out: str | Path, docs: str | Path | None = None, **options: Any) -> list[Outcome]:
    """Run one study in ``out/NAME``, or ``"all"`` with an index.

    Args:
        name: Name of a study, or ``"all"``.
        out: Folder with a folder for each study. An interrupted run continues there.
        docs: Folder for the pages, or None.
        options: ``full``, ``seed``, ``jobs``, ``log``, ``folders``; see `run_study`.

    Raises:
        InputError: If a study, an option or a data set is unknown.
        StoreError: If a folder cannot be written.
    """
    studies = _find(name)
    if name == "all":
        return run_studies(studies, out, docs, **options)
    return [Outcome(name, run_study(studies[0], Path(out) / name, docs, **options))]


def _find(name: str) -> list[Study]:
    if name == "all":
        return list(STUDIES.values())
    check_names("study", [name], [*STUDIES, "all"])
    return [STUDIES[name]]
