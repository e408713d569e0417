"""Build the API reference from the docstrings: ``python docs/api.py FOLDER``.

Documented is what a user imports: the package, its parts, and the modules of those parts that export
nothing themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import secateur


def modules() -> list[str]:
    """Return the names of the documented modules, the package first."""
    walked = pkgutil.walk_packages(secateur.__path__, "secateur.")
    return ["secateur", *sorted(module.name for module in walked if _is_public(module.name, module.ispkg))]


def _is_public(name: str, package: bool) -> bool:
    above, _, own = name.rpartition(".")
    exports = above != "secateur" and hasattr(importlib.import_module(above), "__all__")
    return not own.startswith("_") and (package or not exports)


def build(folder: Path) -> list[str]:
    """Write one HTML page a module into a folder; return the modules' names."""
    names = modules()
    for module in (secateur, secateur.methods):
        for name in module.__all__:  # pdoc does not ask for names that are imported on first use
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="google", search=True, show_source=False)
    with warnings.catch_warnings():
        # Annotations that only type checkers import are shown as they are written.
        warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
        # Modules in the package's `__all__` are found twice.
        warnings.filterwarnings("ignore", "The module specification", UserWarning)
        pdoc.pdoc(*names, output_directory=folder)
    return names


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    print(f"{len(build(place))} modules in {place / 'index.html'}")
