"""The source itself: who may import whom, sizes, wording, documentation.

The order of dependence is the order of `MAY_IMPORT`; `design` in docs/design.md says why.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"
FILES = sorted(SOURCE.rglob("*.py"))
MAY_IMPORT: dict[str, set[str]] = {
    "structures": set(),
    "core": set(),
    "running": {"core"},
    "allocation": {"core", "structures"},
    "methods": {"core", "structures", "allocation"},
    "network": {"core", "structures", "running"},
    "analysis": {"core", "structures", "running"},
    "finetune": {"core", "running", "analysis", "network"},
}
MAY_IMPORT["report"] = {"core", "analysis", "network"}
MAY_IMPORT["summary"] = {"core", "analysis", "report"}
for pipeline in ("schedule", "steps", "prune"):
    MAY_IMPORT[pipeline] = {*MAY_IMPORT} - {"schedule", "steps"}
MAY_IMPORT["steps"] |= {"schedule"}
MAY_IMPORT["prune"] |= {"steps", "schedule"}
MAY_IMPORT["portrait"] = {*MAY_IMPORT}
MAY_IMPORT["data"] = {"core"}
MAY_IMPORT["zoo"] = {"core", "analysis", "finetune", "data"}
LOWER = {*MAY_IMPORT, "named"}
MAY_IMPORT["bench"] = LOWER
# Parametrizations of weights in training are modules: that is torch's interface for them.
MODULES = {"matroid/parametrize.py"}
ON_TOP = {"", "__main__", "cli", "named", "demo", "terminal", "studies"}
LINES, FUNCTION_LINES = 400, 60
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|not implemented yet|lorem ipsum)\b", re.IGNORECASE)


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def part_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.Module, path: Path) -> set[str]:
    """Return every module that a file names in an import, relative ones resolved."""
    package = ["secateur", *path.relative_to(SOURCE).parent.parts]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def parts(modules: set[str]) -> set[str]:
    """Return which parts of secateur are meant; "" is the package itself."""
    known = {part_of(path) for path in FILES}
    inside = [module.split(".")[1] for module in modules if module.startswith("secateur.")]
    return {name if name in known else "" for name in inside}


def public_nodes(tree: ast.Module) -> list[ast.AST]:
    """Return the public classes and functions of a module, and the public methods of the classes."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    top = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    inner = [m for c in top if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, kinds)]
    return top + [m for m in inner if not m.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_who_imports_whom(path: Path) -> None:
    part = part_of(path)
    used = parts(imported(ast.parse(path.read_text()), path)) - {part}
    assert part in MAY_IMPORT or part in ON_TOP, f"say in MAY_IMPORT what {part} may import"
    if part not in ON_TOP:
        allowed = MAY_IMPORT[part]
        assert used <= allowed, f"{part} imports {sorted(used - allowed)}"


def test_the_rule_sees_imports() -> None:
    tree = ast.parse(
        "import secateur.cli.main, csv\nfrom secateur.network import trace\nfrom ..core import Plan"
    )
    deep, flat = SOURCE / "structures" / "deep" / "file.py", SOURCE / "structures" / "file.py"
    assert parts(imported(tree, deep)) == {"cli", "network", "structures"}
    assert parts(imported(tree, flat)) == {"cli", "network", "core"}


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) == "structures"], ids=name_of)
def test_structures_know_no_modules(path: Path) -> None:
    if name_of(path).removeprefix("structures/") in MODULES:
        return
    used = imported(ast.parse(path.read_text()), path)
    assert not [name for name in used if name == "torch.nn" or name.startswith("torch.nn.")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) else None
            words = doc.end_lineno - doc.lineno + 1 if doc else 0
            assert node.end_lineno - node.lineno + 1 - words <= FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    assert [node.name for node in public_nodes(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_library_neither_asserts_nor_prints_nor_swallows(path: Path) -> None:
    tree = ast.parse(path.read_text())
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    bare = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]
    empty = [
        n.lineno
        for n in ast.walk(tree)
        if isinstance(n, ast.ExceptHandler) and len(n.body) == 1 and isinstance(n.body[0], ast.Pass)
    ]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    prints = [n.lineno for n in calls if n.func.id == "print"]
    unsafe = [n.lineno for n in calls if n.func.id in ("eval", "exec")]
    assert (asserts, bare, empty, prints, unsafe) == ([], [], [], [], [])
    assert "pickle" not in {name.split(".")[0] for name in imported(tree, path)}


def test_nothing_is_left_unfinished() -> None:
    files = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.py")]
    files += [path for path in ROOT.glob("tests/**/*.py") if path != Path(__file__)]
    marks = {str(p.relative_to(ROOT)): UNFINISHED.findall(p.read_text()) for p in files}
    assert {name: found for name, found in marks.items() if found} == {}


def test_public_face_is_explicit() -> None:
    import secateur

    assert len(set(secateur.__all__)) == len(secateur.__all__)
    assert [name for name in secateur.__all__ if not hasattr(secateur, name)] == []
