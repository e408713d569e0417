"""Prune PyTorch networks along their mathematical structure, and say what each cut changed.

    import secateur as sc

    net = sc.trace(model, example_inputs)                       # groups of units, frozen axes
    plan = sc.plan(net, "magnitude", sc.Units(0.5))             # a value: what goes, and why
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)  # new modules
    result = sc.prune(model, example_inputs, "magnitude", sc.Units(0.5), data=batches, repair="fold")
    result.save("run"); model = sc.load("run", make_model)

`METHODS` names the methods, `secateur.structures` holds the mathematics on its own.
"""

from importlib.metadata import version

from secateur import methods
from secateur.apply.mask import keep_masked, mask
from secateur.apply.shrink import shrink
from secateur.core import (
    Budget,
    CaptureError,
    ExactnessError,
    Frozen,
    Group,
    InputError,
    Layer,
    Macs,
    Merge,
    Moments,
    NothingToPrune,
    Params,
    Plan,
    PlanError,
    PruningGraph,
    SecateurError,
    Size,
    Slot,
    Statistics,
    StoreError,
    Tolerance,
    Units,
    Weights,
)
from secateur.diagnostics import diagnose
from secateur.formats.onnx import export_onnx
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load, load_plan
from secateur.formats.weights import load_weights
from secateur.measure.cost import Cost, cost, macs
from secateur.measure.latency import Latency, latency
from secateur.measure.metrics import (
    Agreement,
    accuracy,
    agreement,
    evaluate,
    log_likelihood,
    perplexity,
)
from secateur.methods import METHODS, Method
from secateur.pruning import Result, Step, load_report, plan, prune
from secateur.repair.batchnorm import update_bn
from secateur.repair.finetune import History, finetune
from secateur.repair.fold import fold
from secateur.repair.refit import refit
from secateur.report import Measurement, Report
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace

__version__ = version("secateur")

__all__ = [
    "METHODS",
    "Agreement",
    "Budget",
    "CaptureError",
    "Cost",
    "ExactnessError",
    "Frozen",
    "Group",
    "History",
    "InputError",
    "Latency",
    "Layer",
    "Macs",
    "Measurement",
    "Merge",
    "Method",
    "Moments",
    "NothingToPrune",
    "Params",
    "Plan",
    "PlanError",
    "PruningGraph",
    "Report",
    "Result",
    "SecateurError",
    "Size",
    "Slot",
    "Statistics",
    "Step",
    "StoreError",
    "Tolerance",
    "Units",
    "Weights",
    "accuracy",
    "agreement",
    "collect_statistics",
    "cost",
    "diagnose",
    "evaluate",
    "export_onnx",
    "finetune",
    "fold",
    "keep_masked",
    "latency",
    "load",
    "load_plan",
    "load_report",
    "load_weights",
    "log_likelihood",
    "macs",
    "mask",
    "methods",
    "perplexity",
    "plan",
    "plan_from_json",
    "plan_to_json",
    "prune",
    "refit",
    "shrink",
    "trace",
    "update_bn",
]
