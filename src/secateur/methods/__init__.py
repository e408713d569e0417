"""Pruning methods: statistics in, plan out.  `METHODS` names them, `register` adds one.

A method's module is imported when it is asked for, because some need large libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur.methods.base import Choice, Method, ScoreMethod, SetMethod
from secateur.methods.registry import BUILT_IN, METHODS, find_method, register

if TYPE_CHECKING:
    from secateur.methods.baselines import (
        FLAP,
        SNIP,
        Activation,
        Magnitude,
        Random,
        Sensitivity,
        Taylor,
        Wanda,
    )
    from secateur.methods.during_training import prune_every
    from secateur.methods.lattice.method import Lattice
    from secateur.methods.leverage import RidgeLeverage
    from secateur.methods.matroid import Matroid
    from secateur.methods.mip.method import MIP
    from secateur.methods.spectral import Spectral
    from secateur.methods.synflow import SynFlow

__all__ = [
    "FLAP",
    "METHODS",
    "MIP",
    "SNIP",
    "Activation",
    "Choice",
    "Lattice",
    "Magnitude",
    "Matroid",
    "Method",
    "Random",
    "RidgeLeverage",
    "ScoreMethod",
    "Sensitivity",
    "SetMethod",
    "Spectral",
    "SynFlow",
    "Taylor",
    "Wanda",
    "find_method",
    "prune_every",
    "register",
]

_MODULES = {kind: module for module, kind in BUILT_IN.values()} | {"prune_every": "during_training"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"secateur.methods.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
