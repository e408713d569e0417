"""The source itself: who may import whom, names, sizes, documentation, what the library must not do.

`MAY_IMPORT` lists the folders in the order of the data: each may import the ones named with it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {name: ROOT / "src" / name for name in ("secateur", "secateur_studies")}
FILES = {path: package for package, top in PACKAGES.items() for path in sorted(top.rglob("*.py"))}

MAY_IMPORT: dict[str, set[str]] = {"structures": set(), "core": set()}
MAY_IMPORT["progress"] = set()
MAY_IMPORT["batches"] = {"core"}
MAY_IMPORT["processes"] = {"core"}
MAY_IMPORT["views"] = {"core"}
MAY_IMPORT["execution"] = {"core", "batches"}
MAY_IMPORT["outputs"] = {"core"}
MAY_IMPORT["modules"] = {"core"}
MAY_IMPORT["allocation"] = {"core", "structures"}
MAY_IMPORT["methods"] = {"core", "progress", "structures", "allocation"}
for _stage in ("tracing", "statistics", "apply", "measure", "repair"):
    MAY_IMPORT[_stage] = {*MAY_IMPORT} - {"methods", "allocation"}
MAY_IMPORT["report"] = {"core", "measure"}
MAY_IMPORT["comparison"] = {*MAY_IMPORT} - {"methods"}
MAY_IMPORT["formats"] = {*MAY_IMPORT} - {"methods", "allocation"}
for _stage in (
    "schedule",
    "result",
    "latency_budget",
    "latency_correction",
    "depth",
    "mixtures",
    "pruning_step",
    "recipe",
    "pruning",
    "diagnostics",
):
    MAY_IMPORT[_stage] = {*MAY_IMPORT}
MAY_IMPORT["data"] = {"core"}
MAY_IMPORT["zoo"] = {"core", "data", "measure", "repair", "execution", "batches"}
MAY_IMPORT["html"] = {"core", "formats"}
MAY_IMPORT["user_code"] = {"core"}
MAY_IMPORT["pretrained"] = {"core", "user_code"}
MAY_IMPORT["texts"] = {"core", "batches"}
MAY_IMPORT["vocabulary"] = {"core", "execution", "apply", "formats", "pretrained"}
MAY_IMPORT["streaming"] = {*MAY_IMPORT}
MAY_IMPORT["specs"] = {*MAY_IMPORT}
MAY_IMPORT["bench"] = {*MAY_IMPORT}
MAY_IMPORT["cli"] = {*MAY_IMPORT}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["_old_names"] = set()
# A report writes itself as a page; the page's code is imported when that is asked for.
LATE = {("report", "html"), ("diagnostics", "html")}

# Parametrizations of weights in training are modules: that is torch's interface for them.
MODULES = {"structures/matroid/parametrize.py"}
# Every study has a runner and tables of its own, and every structure its vocabulary; those names are local.
LINES, FUNCTION_LINES = 400, 60
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|not implemented yet|lorem ipsum)\b", re.IGNORECASE)
# torch.export imports networkx itself.
STRUCTURES = ("numba", "highspy", "sklearn", "scipy.stats", "scipy.linalg", "ray")
HEAVY = ("numba", "highspy", "joblib", "rich", "plotly", "sklearn", "jinja2", "typer", "scipy.stats", "ray")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGES[FILES[path]]))


def stage_of(path: Path) -> str:
    """Return the folder or top-level module of a file of the library; "" is the package itself."""
    first = path.relative_to(PACKAGES["secateur"]).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.Module, path: Path) -> set[str]:
    """Return every module that a file names in an import, relative ones resolved."""
    package = [FILES.get(path, "secateur"), *path.relative_to(PACKAGES["secateur"].parent).parent.parts[1:]]
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return modules


def stages(modules: set[str]) -> set[str]:
    """Return which folders of the library are imported; "" is the package itself."""
    known = {stage_of(path) for path, package in FILES.items() if package == "secateur"}
    inside = [module.split(".")[1] for module in modules if module.startswith("secateur.")]
    return {name if name in known else "" for name in inside}


def definitions(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Yield the public classes and functions at the top level of a module."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node


def test_who_imports_whom() -> None:
    wrong = []
    for path, package in FILES.items():
        modules = imported(tree_of(path), path)
        if package == "secateur_studies":
            continue
        if any(module.split(".")[0] == "secateur_studies" for module in modules):
            wrong.append(f"{name_of(path)} imports the studies")
        stage = stage_of(path)
        if stage == "":
            continue
        used = {other for other in stages(modules) - {stage} if (stage, other) not in LATE}
        if extra := used - MAY_IMPORT.get(stage, set()):
            wrong.append(f"{name_of(path)} imports {sorted(extra)}")
        if stage == "structures" and name_of(path) not in MODULES:
            wrong += [f"{name_of(path)} imports {m}" for m in modules if m.startswith("torch.nn")]
    assert wrong == []
    tree = ast.parse(
        "import secateur.cli.main, csv\nfrom secateur.tracing import trace\nfrom ..core import Plan"
    )
    deep = PACKAGES["secateur"] / "structures" / "deep" / "file.py"
    assert stages(imported(tree, deep)) == {"cli", "tracing", "structures"}


def test_a_name_stands_for_one_thing() -> None:
    """No public class or function is defined twice, and no module is hidden by a name of its package."""
    places = defaultdict(list)
    for path, package in FILES.items():
        if package == "secateur" and "tracing/rules" not in name_of(path):  # named after ATen's operations
            for node in definitions(tree_of(path)):
                places[node.name].append(name_of(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
    hidden = []
    for path in FILES:
        if path.name == "__init__.py":
            modules = {p.stem for p in path.parent.glob("*.py")} | {p.name for p in path.parent.glob("*/")}
            nodes = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom)]
            for node in nodes:
                names = {alias.asname or alias.name for alias in node.names} & modules
                # `from package import module` binds the module itself.
                hidden += [
                    f"{name_of(path)}: {n}"
                    for n in names
                    if not (node.module or "").endswith(path.parent.name)
                ]
    assert hidden == []


def test_files_are_short_documented_and_finished() -> None:
    wrong = []
    for path in FILES:
        text, tree = path.read_text(), tree_of(path)
        if sum(bool(line.strip()) for line in text.splitlines()) > LINES:
            wrong.append(f"{name_of(path)} is longer than {LINES} lines")
        if tree.body and not ast.get_docstring(tree):
            wrong.append(f"{name_of(path)} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                head = node.body[0].lineno - node.lineno  # a command has a parameter for every option
                lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
                lines -= head if path.parent.name == "cli" else 0
                if lines > FUNCTION_LINES:
                    wrong.append(f"{name_of(path)}: {node.name} is longer than {FUNCTION_LINES} lines")
        for node in definitions(tree):
            inner = definitions(node) if isinstance(node, ast.ClassDef) else ()
            wrong += [
                f"{name_of(path)}: {n.name} has no docstring"
                for n in (node, *inner)
                if not ast.get_docstring(n)
            ]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.py")]
    for path in [*FILES, *pages, *(p for p in ROOT.glob("tests/**/*.py") if p != Path(__file__))]:
        wrong += [f"{path.relative_to(ROOT)}: {mark}" for mark in UNFINISHED.findall(path.read_text())]
    assert wrong == []


def test_the_library_neither_asserts_nor_prints_nor_swallows_nor_unpickles() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            at = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Assert):
                wrong.append(f"{at} asserts")
            if isinstance(node, ast.ExceptHandler):
                empty = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                wrong += [f"{at} swallows exceptions"] if node.type is None or empty else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                wrong += [f"{at} calls {node.func.id}"] if node.func.id in ("print", "eval", "exec") else []
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("pickle.load", "pickle.loads"):
                wrong.append(f"{at} unpickles")
    assert wrong == []


def test_the_public_face_is_explicit_and_light() -> None:
    """Neither a magnitude pruning nor the command line imports anything heavy; old names warn."""
    code = f"""
import sys, warnings, torch
import secateur as sc
from torch import nn
assert len(set(sc.__all__)) == len(sc.__all__) <= 30
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
sc.prune(model, torch.ones(2, 4), sc.Units(0.5), method="magnitude")
loaded = [name for name in {HEAVY} if name in sys.modules]
assert loaded == [], loaded
import secateur.cli.main
loaded = [name for name in {STRUCTURES} if name in sys.modules]
assert loaded == [], loaded
assert [name for name in sc.__all__ if not hasattr(sc, name)] == []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from secateur.core import PruningGraph
    assert sc.Network is PruningGraph
    from secateur._old_names import MOVED_MODULES, MOVED_NAMES
    for name in MOVED_NAMES:
        getattr(sc, name)
assert len(caught) == 1 + len(MOVED_NAMES), caught
import importlib
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for module in MOVED_MODULES:
        importlib.import_module(module)
    from secateur.network.surgery import shrink
assert len(caught) == len(MOVED_MODULES), [str(x.message) for x in caught]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
