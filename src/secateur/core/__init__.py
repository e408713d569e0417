"""The values that pass between Secateur's stages, and its errors.

Tracing turns a model into a `PruningGraph`: groups of units that go together, and frozen axes, each with
its reason.  Batches become `Statistics`.  A method turns both and a budget into a `Plan`, which says what
to remove and why.  Nothing in this package uses `torch.nn.Module` or decides anything.
"""

from secateur.core.budget import Budget, Budgets, Bytes, Latency, Macs, Params, Scope, Units, Weights
from secateur.core.errors import (
    CaptureError,
    ExactnessError,
    InputError,
    NothingToPrune,
    PlanError,
    SecateurError,
    StoreError,
    brief,
    shorten,
    unknown,
)
from secateur.core.graph import Frozen, Layer, PruningGraph, SizeAttribute
from secateur.core.group import KINDS, BoolArray, Group, IntArray, Kind, Role, Slot
from secateur.core.interface import Interface, State, StateAxis
from secateur.core.latency_table import LatencyTable, LayerTimes
from secateur.core.plan import Merge, Plan
from secateur.core.statistics import LogitMoments, LossCurve, Moments, Statistics

__all__ = [
    "KINDS",
    "BoolArray",
    "Budget",
    "Budgets",
    "Bytes",
    "CaptureError",
    "ExactnessError",
    "Frozen",
    "Group",
    "InputError",
    "IntArray",
    "Interface",
    "Kind",
    "Latency",
    "LatencyTable",
    "Layer",
    "LayerTimes",
    "LogitMoments",
    "LossCurve",
    "Macs",
    "Merge",
    "Moments",
    "NothingToPrune",
    "Params",
    "Plan",
    "PlanError",
    "PruningGraph",
    "Role",
    "Scope",
    "SecateurError",
    "SizeAttribute",
    "Slot",
    "State",
    "StateAxis",
    "Statistics",
    "StoreError",
    "Units",
    "Weights",
    "brief",
    "shorten",
    "unknown",
]
