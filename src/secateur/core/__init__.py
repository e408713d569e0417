"""The values that pass between Secateur's stages, and its errors: data only.

A model is traced into a `Network`: groups of units that live and die together, and frozen axes with
the reason why nothing goes there.  Batches are collected into `Evidence`.  A method turns both and a
budget into a `Plan`, a value that says what goes and why.  Nothing here knows `torch.nn.Module`, and
nothing here decides anything.
"""

from secateur.core.budget import Budget, Macs, Params, Scope, Tolerance, Units, Weights
from secateur.core.errors import (
    CaptureError,
    ExactnessError,
    InputError,
    NothingToPrune,
    PlanError,
    SecateurError,
    StoreError,
    unknown,
)
from secateur.core.graph import (
    BoolArray,
    Frozen,
    Group,
    IntArray,
    Layer,
    Network,
    Role,
    Size,
    Slot,
)
from secateur.core.plan import Evidence, Merge, Moments, Plan

__all__ = [
    "BoolArray",
    "Budget",
    "CaptureError",
    "Evidence",
    "ExactnessError",
    "Frozen",
    "Group",
    "InputError",
    "IntArray",
    "Layer",
    "Macs",
    "Merge",
    "Moments",
    "Network",
    "NothingToPrune",
    "Params",
    "Plan",
    "PlanError",
    "Role",
    "Scope",
    "SecateurError",
    "Size",
    "Slot",
    "StoreError",
    "Tolerance",
    "Units",
    "Weights",
    "unknown",
]
