"""Every example in README and docs is run: Python in order, in one namespace a page, and commands.

A Python block that starts with a comment ``# NAME.py`` is a file that the page speaks of.  Pages on single
methods speak of a `model`, its `network`, `batches` and the like without making them: `common` does.
"""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import secateur as sc
from secateur import cli, data, zoo
from secateur.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE = {"README.md", "getting-started.md", "command-line.md", "design.md"}
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def common() -> dict[str, Any]:
    """A small trained network, and what goes with it; its last units repeat the first, which makes a tail."""
    torch.manual_seed(0)
    digits = data.digits()
    model = zoo.train(zoo.mlp((64, 96, 10)), digits, 10, lr=1e-2, batch_size=32).model
    with torch.no_grad():
        model[1].weight[72:], model[1].bias[72:] = model[1].weight[0], model[1].bias[0]
    batches = digits.batches("calibration", 32)
    images, labels = digits.parts["calibration"]
    net = sc.trace(model, images[:2])
    evidence = sc.collect(model, net, batches, {"gram"})

    def accuracy_of_plan(plan: sc.Plan) -> float:
        return sc.accuracy(sc.shrink(model, plan), digits.batches("selection"))

    vgg = zoo.vgg_small(side=8)
    names = {"model": model, "net": net, "network": net, "example_inputs": images[:2], "batches": batches}
    rest = {"images": images[:2], "labels": labels[:2], "evidence": evidence, "vgg": vgg}
    return {**names, **rest, "accuracy_of_plan": accuracy_of_plan}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, common: dict) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for module in ("net", "secateur_user_net"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    here = ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, here.__name__, here)
    vars(here).update({} if page.name in WHOLE else common)
    for kind, text in BLOCK.findall(page.read_text()):
        file = re.match(r"# (\w+\.py)\n", text)
        if file:
            (tmp_path / file[1]).write_text(text)
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


def test_version_and_commands_are_those_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    page = (ROOT / "docs" / "command-line.md").read_text()
    names = [info.name for info in cli.app.registered_commands]
    assert [name for name in names if f"`secateur {name}" not in page] == []
