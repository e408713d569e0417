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
from secateur.analysis.cost import Cost, cost, macs
from secateur.analysis.latency import Latency, latency
from secateur.analysis.measure import (
    Agreement,
    accuracy,
    agreement,
    evaluate,
    log_likelihood,
    perplexity,
)
from secateur.core import (
    Budget,
    CaptureError,
    Evidence,
    ExactnessError,
    Frozen,
    Group,
    InputError,
    Layer,
    Macs,
    Merge,
    Moments,
    Network,
    NothingToPrune,
    Params,
    Plan,
    PlanError,
    SecateurError,
    Size,
    Slot,
    StoreError,
    Tolerance,
    Units,
    Weights,
)
from secateur.finetune import History, finetune
from secateur.methods import METHODS, Method
from secateur.network.codec import plan_from_json, plan_to_json
from secateur.network.collect import collect
from secateur.network.fold import fold
from secateur.network.onnx import export_onnx
from secateur.network.recalibrate import recalibrate
from secateur.network.refit import refit
from secateur.network.store import load, load_plan
from secateur.network.surgery import hold, mask, shrink
from secateur.network.trace import trace
from secateur.network.weights import load_weights
from secateur.portrait import portray
from secateur.prune import Result, Step, load_report, plan, prune
from secateur.summary import Measurement, Report

__version__ = version("secateur")

__all__ = [
    "METHODS",
    "Agreement",
    "Budget",
    "CaptureError",
    "Cost",
    "Evidence",
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
    "Network",
    "NothingToPrune",
    "Params",
    "Plan",
    "PlanError",
    "Report",
    "Result",
    "SecateurError",
    "Size",
    "Slot",
    "Step",
    "StoreError",
    "Tolerance",
    "Units",
    "Weights",
    "accuracy",
    "agreement",
    "collect",
    "cost",
    "evaluate",
    "export_onnx",
    "finetune",
    "fold",
    "hold",
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
    "portray",
    "prune",
    "recalibrate",
    "refit",
    "shrink",
    "trace",
]
