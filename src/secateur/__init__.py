"""Prune PyTorch models along their mathematical structure, and say what each cut changed.

    import secateur as sc

    result = sc.prune(model, example_inputs, sc.Units(0.5), data=batches)
    result.model                                    # a smaller module of the same classes
    result = result.measure(test, latency=True)
    result.save("run"); small = sc.load("run", make_model)

The steps by themselves:

    graph = sc.trace(model, example_inputs)         # groups of units that live and die together
    plan = sc.plan(graph, "matroid", sc.Units(0.5), data=batches)     # what goes, and why
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)      # new modules

Values such as `Plan` and `PruningGraph`, and the errors, are in `secateur.core`.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from secateur import _old_names
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Bytes, Latency, Macs, Params, SecateurError, Units, Weights
from secateur.formats.store import load
from secateur.methods import register
from secateur.pruning import plan, prune
from secateur.repair.base import Finetune, Fold, Refit
from secateur.repair.batchnorm import update_bn
from secateur.repair.finetune import finetune
from secateur.repair.fold import fold
from secateur.repair.refit import refit
from secateur.result import Result
from secateur.schedule import OneShot, Steps, Tolerance
from secateur.tracing.trace import trace

if TYPE_CHECKING:
    from secateur import data, methods, structures, zoo
    from secateur.diagnostics import diagnose

__version__ = version("secateur")
_old_names.install()

__all__ = [
    "Bytes",
    "Finetune",
    "Fold",
    "Latency",
    "Macs",
    "OneShot",
    "Params",
    "Refit",
    "Result",
    "SecateurError",
    "Steps",
    "Tolerance",
    "Units",
    "Weights",
    "data",
    "diagnose",
    "finetune",
    "fold",
    "load",
    "mask",
    "methods",
    "plan",
    "prune",
    "refit",
    "register",
    "shrink",
    "structures",
    "trace",
    "update_bn",
    "zoo",
]

# Imported on first use: they, or what they need, take a while.
_LAZY = {"data": "", "methods": "", "structures": "", "zoo": "", "diagnose": "secateur.diagnostics"}


def __getattr__(name: str) -> Any:
    """Import a part on first use, or return what a name of version 0.1 is now, with a warning."""
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name] or f"secateur.{name}")
        return getattr(module, name) if _LAZY[name] else module
    return _old_names.find_name(name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
