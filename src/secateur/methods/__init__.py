"""Pruning methods: evidence in, plan out.  `METHODS` names them."""

from secateur.methods.base import Choice, Method, ScoreMethod, SetMethod
from secateur.methods.baselines import SNIP, Activation, Magnitude, Random, Sensitivity, Taylor
from secateur.methods.during_training import prune_every
from secateur.methods.lattice.method import Lattice
from secateur.methods.matroid import Matroid
from secateur.methods.mip.method import MIP
from secateur.methods.spectral import Spectral
from secateur.methods.synflow import SynFlow

METHODS: dict[str, type[SetMethod]] = {
    "matroid": Matroid,
    "spectral": Spectral,
    "lattice": Lattice,
    "mip": MIP,
    "random": Random,
    "magnitude": Magnitude,
    "activation": Activation,
    "sensitivity": Sensitivity,
    "taylor": Taylor,
    "snip": SNIP,
    "synflow": SynFlow,
}

__all__ = [
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
    "ScoreMethod",
    "Sensitivity",
    "SetMethod",
    "Spectral",
    "SynFlow",
    "Taylor",
    "prune_every",
]
