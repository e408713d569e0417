"""Run studies: list the trials, run those that are missing, and write the findings.

A study is a value. Its trials are jobs with parameters, its findings a pure function of their rows.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from secateur.bench import Trial, TrialResult, run_trials
from secateur.core import InputError, SecateurError, unknown
from secateur.core.markdown import markdown_table
from secateur.html import Section, write_html, write_text
from secateur_studies.findings import Findings, Table, count_verdicts, page, write_findings

__all__ = [
    "Outcome",
    "Study",
    "check_names",
    "hash_folder",
    "index_page",
    "list_failures",
    "mark_trials",
    "named_folders",
    "run_studies",
    "run_study",
]

Row = Mapping[str, Any]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study: its trials and the findings from their results.

    Attributes:
        name: Name, as in ``secateur study NAME``.
        folders: Data sets that can be read from a folder of the user.
        trials: Returns the trials. It takes ``full``, ``seed``, ``folders``, ``cache`` (a folder for trained
            weights) and the study's own options by name.
        findings: Turns the rows of all trials into findings.
    """

    name: str
    folders: tuple[str, ...]
    trials: Callable[..., list[Trial]]
    findings: Callable[[Sequence[Row]], Findings]


@dataclass(frozen=True)
class Outcome:
    """The result of one study.

    Attributes:
        study: Name of the study.
        findings: Its findings, or None if it failed.
        error: Reason for the failure.
    """

    study: str
    findings: Findings | None = None
    error: str = ""

    @property
    def verdicts(self) -> dict[str, int]:
        """Numbers of rows that are reproduced, that differ, and that cannot be run here."""
        return count_verdicts(self.findings.tables if self.findings else ())


def run_study(
    study: Study,
    out: str | Path,
    docs: str | Path | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    jobs: int = 2,
    log: Log | None = None,
    folders: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> Findings:
    """Run one study and write its findings.

    Args:
        study: The study.
        out: Folder for trials, tables, figures and the report. An interrupted run continues there.
        docs: Folder for the page ``NAME.md``, or None.
        full: Run at the size of the publication instead of a size that takes minutes.
        seed: First seed.
        jobs: Worker processes.
        log: Called with a short progress message after each trial.
        folders: Folders of data sets by name.
        options: Options of the study's ``trials``.

    Raises:
        InputError: If an option or a data set is unknown.
        StoreError: If a folder cannot be written.
    """
    out, named = Path(out), named_folders(folders, study.folders)
    _check_options(study, options)
    trials = study.trials(full=full, seed=seed, folders=named, cache=str(out / "weights"), **options)
    results = run_trials(mark_trials(trials, named), out / "trials.jsonl", jobs=jobs, log=log)
    findings = study.findings([row for result in results if result.status == "ok" for row in result.rows])
    if failed := list_failures(results):
        findings = replace(findings, tables=[*findings.tables, failed])
    write_findings(findings, out)
    if docs is not None:
        write_text(Path(docs) / f"{study.name}.md", page(findings))
    return findings


def _check_options(study: Study, options: Mapping[str, Any]) -> None:
    """Raise `InputError` if the trials of a study do not take an option."""
    parameters = inspect.signature(study.trials).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name not in ("full", "seed", "folders", "cache")]
    for name in options:
        if name not in known:
            raise InputError(unknown(f"option of the study {study.name}", name, known))


def run_studies(
    studies: Sequence[Study],
    out: str | Path,
    docs: str | Path | None = None,
    *,
    folders: Mapping[str, str | Path] | None = None,
    log: Log | None = None,
    **options: Any,
) -> list[Outcome]:
    """Run several studies, each in its folder below `out`, and write an index.

    If a study fails, the index gives the reason and the others continue. The index is
    ``index.md`` and ``index.html`` in `out`, and ``README.md`` in `docs`.

    Args:
        studies: The studies.
        out: Folder for all of them.
        docs: Folder for the pages, or None.
        folders: Folders of data sets by name. Each study gets those that it reads.
        log: Called with a short progress message after each trial.
        options: Options of `run_study`.

    Raises:
        InputError: If no study reads a given data set from a folder.
        StoreError: If a folder cannot be written.
    """
    given = named_folders(folders, [data for study in studies for data in study.folders])
    outcomes = []
    for study in studies:
        chosen = {data: folder for data, folder in given.items() if data in study.folders}
        report = None if log is None else partial(_log_study, log, study.name)
        try:
            findings = run_study(study, Path(out) / study.name, docs, folders=chosen, log=report, **options)
            outcomes.append(Outcome(study.name, findings))
        except SecateurError as error:
            outcomes.append(Outcome(study.name, error=f"{type(error).__name__}: {error}"))
    write_text(Path(out) / "index.md", index_page(outcomes, lambda name: f"{name}/findings.md"))
    write_html([], Path(out) / "index.html", title="Studies", sections=list(_index_sections(outcomes)))
    if docs is not None:
        write_text(Path(docs) / "README.md", index_page(outcomes, lambda name: f"{name}.md"))
    return outcomes


def _log_study(log: Log, name: str, text: str) -> None:
    log(f"{name}: {text}")


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise `InputError` with the near matches if a name is unknown."""
    for name in names:
        if name not in known:
            raise InputError(unknown(what, name, list(known)))


def named_folders(folders: Mapping[str, str | Path] | None, known: Sequence[str]) -> dict[str, str]:
    """Return the folders of data sets as strings.

    Raises:
        InputError: If no folder is read for a data set.
    """
    check_names("data set of this study", list(folders or {}), known)
    return {name: str(folder) for name, folder in (folders or {}).items()}


def mark_trials(trials: Sequence[Trial], folders: Mapping[str, str]) -> list[Trial]:
    """Return trials whose keys also contain the hashes of the data folders."""
    hashes = {name: hash_folder(folder) for name, folder in folders.items()}
    return (
        [replace(trial, extra_key={**trial.extra_key, **hashes}) for trial in trials]
        if hashes
        else list(trials)
    )


def hash_folder(folder: str | Path) -> str:
    """Return the SHA-256 of the files in a folder and their names.

    Raises:
        InputError: If the folder is missing or a file cannot be read.
    """
    root, digest = Path(folder), hashlib.sha256()
    if not root.is_dir():
        raise InputError(f"there is no folder {folder}")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        digest.update(f"{path.relative_to(root).as_posix()} {len(contents)}\n".encode())
        digest.update(contents)
    return digest.hexdigest()


def list_failures(results: Sequence[TrialResult]) -> Table | None:
    """Return the table of the trials that failed or took too long, or None if there are none."""
    bad = [result for result in results if result.status != "ok"]
    rows = [
        {
            "job": r.trial.function.rpartition(":")[2],
            **_plain_values(r.trial.params),
            "status": r.status,
            "why": r.error,
        }
        for r in bad
    ]
    return Table("failures", f"{len(bad)} of {len(results)} trials without a result", rows) if bad else None


def _plain_values(params: Row) -> dict[str, Any]:
    return {key: value for key, value in params.items() if not isinstance(value, (dict, list))}


def index_page(outcomes: Sequence[Outcome], link: Callable[[str], str]) -> str:
    """Return the index of the studies as Markdown."""
    parts = [
        "<!-- Written by `secateur study all`; changes by hand are lost. -->",
        "# Studies\n",
        "Numbers beside published ones, and how they compare:\n",
        markdown_table([_index_row(outcome) for outcome in outcomes]) + "\n",
    ]
    for outcome in outcomes:
        findings = outcome.findings
        heading = f"[{findings.title}]({link(outcome.study)})" if findings else outcome.study
        text = findings.paragraph.strip() if findings else f"Failed: {outcome.error}"
        parts.append(f"## {heading}\n\n{text}\n")
    return "\n".join(parts)


def _index_sections(outcomes: Sequence[Outcome]) -> Iterator[Section]:
    pages = ", ".join(f"[{o.study}]({o.study}/report.html)" for o in outcomes if o.findings)
    text = f"Each study has its own page: {pages}." if pages else ""
    yield Section("Numbers beside published ones", text, [_index_row(o) for o in outcomes])
    for outcome in outcomes:
        findings = outcome.findings
        yield (
            Section(findings.title, findings.paragraph) if findings else Section(outcome.study, outcome.error)
        )


def _index_row(outcome: Outcome) -> Row:
    tables = len(outcome.findings.tables) if outcome.findings else 0
    status = "failed" if outcome.error else "ok"
    return {"study": outcome.study, "tables": tables, **outcome.verdicts, "status": status}
