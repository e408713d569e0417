"""Run every example in README and docs: Python in order, in one namespace a page, and commands.

A Python block that starts with a comment ``# NAME.py`` is a file of that name.  Pages on single
methods use a `model`, its `graph`, `batches` and the like without defining them: `common` does.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_method_laws as laws
import torch
import typer
from typer.testing import CliRunner

import secateur as sc
from secateur import data, specs, zoo
from secateur.cli import main as cli
from secateur.core import InputError, Plan
from secateur.measure.metrics import accuracy
from secateur.methods import METHODS, registry
from secateur.statistics.collect import collect_statistics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE = {
    "README.md",
    "getting-started.md",
    "command-line.md",
    "design.md",
    "criterion.md",
    "language-models.md",
    "report.md",
    "torch-pruning.md",
}
FILE = re.compile(r"# (\w+)\.py\n")
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def common() -> dict[str, Any]:
    """Return names for the pages: a trained network whose last units repeat the first, so it has a tail."""
    torch.manual_seed(0)
    digits = data.digits()
    model = zoo.train(zoo.mlp((64, 96, 10)), digits, 10, lr=1e-2, batch_size=32).model
    with torch.no_grad():
        model[1].weight[72:], model[1].bias[72:] = model[1].weight[0], model[1].bias[0]
    batches = digits.batches("calibration", 32)
    images, labels = digits.parts["calibration"]
    graph = sc.trace(model, images[:2])

    def accuracy_of_plan(plan: Plan) -> float:
        return accuracy(sc.shrink(model, plan), digits.batches("selection"))

    return {
        "model": model,
        "graph": graph,
        "statistics": collect_statistics(model, graph, batches, {"gram"}),
        "example_inputs": images[:2],
        "batches": batches,
        "images": images[:2],
        "labels": labels[:2],
        "vgg": zoo.vgg_small(side=8),
        "accuracy_of_plan": accuracy_of_plan,
    }


EXAMPLES = [pytest.param(page, marks=pytest.mark.slow if page.name == "bench.md" else ()) for page in PAGES]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, common: dict) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    here = ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, here.__name__, here)
    vars(here).update({} if page.name in WHOLE else common)
    for kind, text in BLOCK.findall(page.read_text()):
        if file := FILE.match(text):
            (tmp_path / f"{file[1]}.py").write_text(text)
            for module in (file[1], f"secateur_user_{file[1]}"):
                monkeypatch.delitem(sys.modules, module, raising=False)
        elif kind == "console":
            command(text)
        elif text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(text, vars(here), page.name, str(page), 0)
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
        else:
            exec(compile(text, str(page), "exec"), vars(here))


def command(text: str) -> None:
    for line in text.splitlines():
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "secateur")
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("C*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    local = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_shows_every_method_of_the_demonstration() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text[text.index("<!-- demo table") : text.index("<!-- end of demo table")]
    rows = {line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| ")}
    assert set(METHODS) <= rows


def test_the_comparison_quotes_the_joint_study() -> None:
    """The table of docs/comparison.md has the mean losses of every criterion that all networks allow."""
    study = (ROOT / "docs" / "studies" / "joint.md").read_text("utf-8")
    table = study[study.index("| repair | method | behind |") :].partition("\n\n")[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    whole = max(int(row["blocks"]) for row in rows)
    page = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    quoted = {
        (cells[0], repair): float(value.strip("*"))
        for line in page.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
        for repair, value in zip(("none", "fold", "finetune"), cells[1:], strict=True)
        if value.strip("*").replace(".", "").isdigit()
    }
    losses = {(r["method"], r["repair"]): float(r["lost"]) for r in rows if int(r["blocks"]) == whole}
    assert quoted == pytest.approx(losses, abs=0.0501) and len(quoted) >= 33


def test_version_and_commands_are_those_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    page = (ROOT / "docs" / "command-line.md").read_text()
    names = [info.name for info in cli.app.registered_commands]
    assert [name for name in names if f"`secateur {name}" not in page] == []


# --- commands that are spoken of, beside those that are run

INLINE = re.compile(r"`([^`\n]+)`|^    (\S.*)$", re.MULTILINE)
EVERYWHERE = [*PAGES, *ROOT.glob("C*.md")]


def spoken(program: str) -> list[tuple[str, list[str]]]:
    """Return the commands of the pages that begin with a program's name: page, words."""
    found = []
    for page in EVERYWHERE:
        for code, indented in INLINE.findall(page.read_text()):
            words = (code or indented).split("  #")[0].split()
            if len(words) > 1 and words[0] == program:
                found.append((page.name, words[1:]))
    return found


def test_commands_that_are_spoken_of_exist() -> None:
    commands = typer.main.get_command(cli.app).commands
    known = {name: {flag for p in c.params for flag in p.opts} | {"--help"} for name, c in commands.items()}
    told = [(page, words) for page, words in spoken("secateur") if words[0].islower() and words[0].isalpha()]
    assert len(told) > 5
    wrong = [(page, words) for page, words in told if words[0] not in known]
    wrong += [
        (page, words)
        for page, words in told
        for flag in words[1:]
        if words[0] in known and flag.startswith("--") and flag.split("=")[0] not in known[words[0]]
    ]
    assert wrong == []


def test_scripts_and_targets_that_are_spoken_of_exist() -> None:
    scripts = spoken("python")
    assert len(scripts) > 5
    for page, (name, *rest) in scripts:
        path = ROOT / name
        if name == "-m":
            path = ROOT / "src" / f"{rest[0].replace('.', '/')}.py"
        assert path.exists(), f"{page} speaks of {name}"
        options = [word for word in rest if word.startswith("--")]
        assert [o for o in options if o not in path.read_text()] == [], f"{page}: options of {name}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {words[0] for _, words in spoken("make") if "=" not in words[0]}
    assert made <= targets and {"demo", "test", "docs"} <= made


# --- a criterion of one's own


@pytest.fixture
def spread(tmp_path: Path) -> Any:
    """The method that docs/criterion.md writes, from a file, as the command line reads it."""
    text = next(
        text for _, text in BLOCK.findall((ROOT / "docs" / "criterion.md").read_text()) if FILE.match(text)
    )
    (tmp_path / "spread.py").write_text(text)
    return specs.make_method(f"{tmp_path / 'spread.py'}:Spread")


def test_the_criterion_of_the_docs_takes_thirty_lines(spread: Any, tmp_path: Path) -> None:
    lines = [line for line in (tmp_path / "spread.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.parametrize("model", laws.MODELS)
def test_the_criterion_of_the_docs_obeys_the_laws(model: str, spread: Any) -> None:
    units, rankings = laws.TestUnits(), laws.TestRankings()
    units.test_counts_are_exact(model, spread)
    units.test_same_seed_same_plan(model, spread)
    units.test_shrunk_model_is_exact(model, spread)
    rankings.test_smaller_budgets_are_nested(model, spread)
    rankings.test_global_scope_keeps_the_total(model, spread)


def test_invalid_registrations(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Empty:\n    pass\n\n\ndef fail(x):\n    return x\n")
    place = tmp_path / "own.py"
    for spec, words in {
        f"{place}:Empty": "which is not a method",
        f"{place}:Empt": "did you mean 'Empty'",
        f"{place}:fail": "missing 1 required",
        f"{place}:Empty:power=2": "no option of Empty 'power'",
        f"{tmp_path / 'absent.py'}:Empty": "does not exist",
        "secateur.methods:Magnitude:power=2": "no option of Magnitude 'power'",
        "magnitud:p=2": "did you mean 'magnitude'",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)):
            specs.make_method(spec)
    assert specs.make_method("secateur.methods:Magnitude:p=2") == METHODS["magnitude"](p=2)


# --- the API reference


@pytest.mark.slow
def test_the_reference_has_every_public_name(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("docs_api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    names = api.build(tmp_path)
    packages = {p.parent for p in (ROOT / "src" / "secateur").rglob("__init__.py")}
    assert {"secateur." + ".".join(p.relative_to(ROOT / "src" / "secateur").parts) for p in packages} <= {
        *names,
        "secateur.",
    }
    missing = []
    for name in names:
        module = importlib.import_module(name)
        page = tmp_path / f"{name.replace('.', '/')}.html"
        text = page.read_text()
        shown = set(re.findall(r'id="([\w.]+)"', text))
        wanted = [x for x in getattr(module, "__all__", ()) if not isinstance(getattr(module, x), ModuleType)]
        missing += [f"{name}.{x}" for x in wanted if x not in shown]
    assert missing == [] and len(names) > 40
    assert "Return a copy of the model without the units" in (tmp_path / "secateur.html").read_text()


def test_the_index_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked
