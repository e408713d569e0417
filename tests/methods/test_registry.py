"""Methods by name: what is imported when, what can be registered."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
from sampled import sampled

from secateur.core import InputError
from secateur.methods import METHODS, Magnitude, Matroid, ScoreMethod, register, registry

HEAVY = {"numba", "highspy", "networkx", "joblib", "rich", "plotly", "sklearn"}


@pytest.fixture(autouse=True)
def no_methods_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_built_in_methods_are_found_by_name() -> None:
    assert METHODS["matroid"] is Matroid
    assert all(METHODS[name].name == name for name in METHODS)
    assert len(METHODS) == len(set(METHODS)) == len(registry.BUILT_IN)
    with pytest.raises(KeyError):
        METHODS["spread"]


@pytest.mark.parametrize(
    "name",
    sampled(["magnitude", "matroid", "taylor", "synflow"], "magnitude", "matroid"),
)
def test_a_method_loads_only_what_it_needs(name: str) -> None:
    code = f"""
import sys, types
package = types.ModuleType("secateur")  # without the public face
package.__path__ = [{next(iter(sys.modules["secateur"].__path__))!r}]
sys.modules["secateur"] = package
from secateur.methods import METHODS
METHODS[{name!r}]()
print(*{{m.partition(".")[0] for m in sys.modules}})
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(loaded.split())


def test_a_class_registers_by_a_decorator() -> None:
    @register("l2")
    @dataclass(frozen=True, kw_only=True)
    class L2(Magnitude):
        p: int = 2

    assert METHODS["l2"] is L2 and L2().name == "l2" and Magnitude.name == "magnitude"
    assert list(METHODS)[-1] == "l2"
    register("l2")(L2)  # the same class again
    with pytest.raises(InputError, match="'l2' already"):
        register("l2")(ScoreMethod)


def test_names_that_are_taken_or_invalid() -> None:
    with pytest.raises(InputError, match="'magnitude' already"):
        register("magnitude")(ScoreMethod)
    with pytest.raises(InputError, match="without spaces"):
        register("a:b")
    with pytest.raises(InputError, match="needs and plan"):
        register("new")(int)


def test_installed_packages_bring_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    def point(name: str) -> EntryPoint:
        return EntryPoint(name, "secateur.methods.baselines:Magnitude", registry.ENTRY_POINTS)

    points = {"theirs": [point("theirs")], "twice": [point("twice"), point("twice")]}
    monkeypatch.setattr(registry, "_installed", lambda: points)
    assert METHODS["theirs"] is Magnitude and "theirs" in METHODS
    with pytest.raises(InputError, match="several installed packages"):
        METHODS["twice"]
    with pytest.raises(InputError, match="'theirs' already"):
        register("theirs")(ScoreMethod)
