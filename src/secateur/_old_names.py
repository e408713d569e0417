"""Names and import paths of version 0.1: they keep working until version 0.3, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED_MODULES", "MOVED_NAMES", "find_name", "install"]

# Name in `secateur` -> module, and the new name if it changed.
MOVED_NAMES = {
    "Agreement": "secateur.measure.metrics",
    "Budget": "secateur.core",
    "CaptureError": "secateur.core",
    "Cost": "secateur.measure.cost:ModelCost",
    "Evidence": "secateur.core:Statistics",
    "ExactnessError": "secateur.core",
    "Frozen": "secateur.core",
    "Group": "secateur.core",
    "History": "secateur.repair.finetune",
    "InputError": "secateur.core",
    "Layer": "secateur.core",
    "METHODS": "secateur.methods",
    "Measurement": "secateur.report",
    "Merge": "secateur.core",
    "Method": "secateur.methods",
    "Moments": "secateur.core",
    "Network": "secateur.core:PruningGraph",
    "NothingToPrune": "secateur.core",
    "Plan": "secateur.core",
    "PlanError": "secateur.core",
    "Report": "secateur.report",
    "Size": "secateur.core:SizeAttribute",
    "Slot": "secateur.core",
    "Step": "secateur.pruning_step:StepInfo",
    "StoreError": "secateur.core",
    "accuracy": "secateur.measure.metrics",
    "agreement": "secateur.measure.metrics",
    "collect": "secateur.statistics.collect:collect_statistics",
    "cost": "secateur.measure.cost",
    "evaluate": "secateur.measure.metrics",
    "export_onnx": "secateur.formats.onnx",
    "hold": "secateur.apply.mask:keep_masked",
    "latency": "secateur.measure.latency",
    "load_plan": "secateur.formats.store",
    "load_report": "secateur.result",
    "load_weights": "secateur.formats.weights",
    "log_likelihood": "secateur.measure.metrics",
    "macs": "secateur.measure.cost",
    "perplexity": "secateur.measure.metrics",
    "plan_from_json": "secateur.formats.plan_json",
    "plan_to_json": "secateur.formats.plan_json",
    "portray": "secateur.diagnostics:diagnose",
    "recalibrate": "secateur:update_bn",
}

MOVED_MODULES = {
    "secateur.finetune": "secateur.repair.finetune",
    "secateur.network": "secateur.tracing",
    "secateur.network.decoupled": "secateur.statistics.auxiliary_heads",
    "secateur.network.surgery": "secateur.apply.shrink",
    "secateur.network.trace": "secateur.tracing.trace",
    "secateur.analysis": "secateur.measure",
    "secateur.analysis.cost": "secateur.measure.cost",
    "secateur.analysis.latency": "secateur.measure.latency",
    "secateur.analysis.measure": "secateur.measure.metrics",
    "secateur.portrait": "secateur.diagnostics",
}


def find_name(name: str) -> Any:
    """Return what a name of version 0.1 in `secateur` is now, and warn.

    Raises:
        AttributeError: If there was no such name.
    """
    if name not in MOVED_NAMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    module, _, new = MOVED_NAMES[name].partition(":")
    _warn(f"secateur.{name}", f"{module}.{new or name}")
    return getattr(importlib.import_module(module), new or name)


class _OldModules(MetaPathFinder, Loader):
    """Finds modules under their paths of version 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec that loads the module from its new path."""
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED_MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module with everything that the new one has."""
        new = MOVED_MODULES[spec.name]
        _warn(spec.name, new)
        module = ModuleType(spec.name)
        # Not __path__: submodules would be found by their new files and loaded twice.
        content = vars(importlib.import_module(new)).items()
        module.__dict__.update({name: value for name, value in content if not name.startswith("__")})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete."""


def install() -> None:
    """Let the old paths be imported; they are looked up last."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with version 0.3", DeprecationWarning, stacklevel=3)
