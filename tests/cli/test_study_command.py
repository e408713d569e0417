"""``secateur study``: the studies are found through an entry point."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from command_line import run

from secateur.cli import study as study_module
from secateur.core import InputError
from secateur_studies.findings import Findings, Table
from secateur_studies.registry import STUDIES
from secateur_studies.runner import Study

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the entry point that pyproject.toml declares, wherever the package was installed from."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]

    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in declared[group].items()]

    monkeypatch.setattr(study_module, "entry_points", points)


def findings(title: str) -> Findings:
    rows = [{"ours": 1.0, "published": 1.0, "verdict": "reproduced"}, {"ours": 3.0, "verdict": ""}]
    return Findings("lattice", title, tables=[Table("one", "Table 1", rows)], paragraph="It was **1**.")


def register(monkeypatch: pytest.MonkeyPatch, given: dict[str, dict], fails: str = "") -> None:
    """Replace all studies by ones without trials that note their options."""

    def fake(study: Study) -> Study:
        def trials(**options: object) -> list:
            given[study.name] = options
            if study.name == fails:
                raise InputError("no such thing")
            return []

        return replace(study, trials=trials, findings=lambda _: findings(f"On {study.name}"))

    for study in list(STUDIES.values()):
        monkeypatch.setitem(STUDIES, study.name, fake(study))


def test_study_writes_findings_and_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    register(monkeypatch, given)
    done = run("study", "lattice", "--full", "--seed", "4", "--jobs", "1", "--docs", "pages")
    assert done.exit_code == 0, done.output
    assert given == {
        "lattice": {"full": True, "seed": 4, "folders": {}, "cache": "runs/studies/lattice/weights"}
    }
    assert "1 reproduced" in done.stdout and "It was **1**." in done.stdout and "differs" not in done.stdout
    page = (place / "pages" / "lattice.md").read_text()
    assert page == (place / "runs/studies/lattice/findings.md").read_text()
    assert "# On lattice" in page


def test_parts_nets_seeds_and_device_reach_the_study(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    register(monkeypatch, given)
    chosen = ("--parts", "pruning, tuned", "--nets", "FC-3", "--seeds", "2", "--device", "cuda")
    done = run("study", "mip", *chosen)
    assert done.exit_code == 0, done.output
    wanted = {"parts": ("pruning", "tuned"), "nets": ("FC-3",), "seeds": 2, "device": "cuda"}
    assert {name: given["mip"][name] for name in wanted} == wanted


def test_options_that_a_study_lacks_are_refused(place: Path) -> None:
    done = run("study", "lattice", "--device", "cuda")
    assert done.exit_code == 2 and "no option of the study lattice 'device'" in done.stderr
    done = run("study", "mip", "--parts", "prunning")
    assert done.exit_code == 2 and "did you mean 'pruning'" in done.stderr


def test_all_studies_go_on_when_one_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, {}, fails="spectral")
    done = run("study", "all", "--docs", "pages", "--out", "all")
    assert done.exit_code == 2 and "failed: spectral" in done.stderr
    pages = {path.name for path in (place / "pages").iterdir()}
    assert pages == {"README.md", *(f"{name}.md" for name in STUDIES if name != "spectral")}
    index = (place / "pages" / "README.md").read_text()
    assert "(matroid.md)" in index and "Failed: InputError: no such thing" in index
    assert index.count("| matroid | 1 | 1 | 0 | 0 | ok |") == 1
    assert {"index.md", "index.html", "matroid"} <= {path.name for path in (place / "all").iterdir()}


def test_each_study_gets_the_folders_that_it_reads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    register(monkeypatch, given)
    for name in ("here", "there"):
        (place / name).mkdir()
    done = run("study", "all", "--folder", "mnist=here", "--folder", "cifar100=there")
    assert done.exit_code == 0, done.output
    assert {name: options["folders"] for name, options in given.items()} == {
        "matroid": {},
        "spectral": {"cifar100": "there"},
        "mip": {"mnist": "here"},
        "lattice": {"mnist": "here"},
        "joint": {},
    }
    done = run("study", "all", "--folder", "cifar11=there")
    assert done.exit_code == 2 and "did you mean 'cifar10'" in done.stderr
    done = run("study", "lattice", "--folder", "cifar10=there")
    assert done.exit_code == 2 and "Known: 'fashion', 'mnist'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("matriod", "did you mean 'matroid'"),
        ("lattice --folder mnist", "NAME=DIR"),
        ("lattice --out net.py", "cannot write into net.py"),
    ],
)
def test_mistakes_end_in_one_message(arguments: str, message: str) -> None:
    done = run("study", *arguments.split())
    assert done.exit_code == 2 and message in done.stderr, done.output


def test_without_studies_the_message_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "entry_points", lambda group: [])
    done = run("study", "lattice")
    assert done.exit_code == 2 and "no studies are installed" in done.stderr and "pip install" in done.stderr
