"""Effects of removal on modularity, Lyapunov exponent, information and distortion (Theorems III.5 to III.7).

Each row has the network before (criterion `NONE`) or after the removal of half of the units, without repair.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import Units
from secateur.data import Dataset
from secateur.methods import Method, Random
from secateur_studies.lattice.dynamics import lyapunov_spectrum
from secateur_studies.lattice.information import decoded_information, measure_distortion, unit_information
from secateur_studies.lattice.modularity import communities, modularity
from secateur_studies.lattice.recurrent_systems import recurrent_system
from secateur_studies.lattice.rigorous import CRITERIA, DEFAULT, IN_STRENGTH, PAPER, Case, quiet

__all__ = ["measure_dynamics", "measure_effects"]

EFFECT, NONE = "effect", "none"
EFFECTS = (
    "modularity",
    "exponent",
    "norm",
    "information",
    "unit information",
    "distortion",
    "rate",
    "R(D)",
)

_METHODS: dict[str, Method] = {
    **{name: CRITERIA[name] for name in (PAPER, IN_STRENGTH, DEFAULT, "magnitude")},
    "random": Random(),
}


def measure_effects(case: Case) -> Iterator[dict[str, Any]]:
    """Yield one row for the trained network, and one for each criterion that removes half of the units."""
    models: dict[str, nn.Module] = {NONE: case.model}
    with quiet():
        for name, method in _METHODS.items():
            models[name] = shrink(case.model, method.plan(case.graph, case.statistics, Units(0.5)))
    whole = case.decide(case.model)
    for name, model in models.items():
        row = {"part": EFFECT, "data": case.data.name, "seed": case.seed, "criterion": name}
        row |= {"accuracy": case.test(model), **measure_distortion(whole, case.decide(model))}
        yield {**row, **measure_dynamics(model, case.data, case.size.steps)}


@torch.no_grad()
def measure_dynamics(model: nn.Module, data: Dataset, steps: int = 400) -> dict[str, float]:
    """Return modularity, largest Lyapunov exponent, largest norm of the Jacobian, and information in nats.

    The rows of test images drive the LSTM, one image after the other. Information is that of the last hidden
    state of single images about their labels.

    Args:
        model: A model with an LSTM `rnn` that reads images row by row.
        data: Its data set.
        steps: Length of the trajectory, after a warm-up of a tenth of it.
    """
    rnn: Any = copy.deepcopy(model.rnn).double()
    hidden = rnn.hidden_size
    strength = rnn.weight_hh_l0.reshape(4, hidden, hidden).square().sum(0).sqrt().T.numpy()
    inputs, labels = (part[:1000] for part in data.parts["test"])
    system = recurrent_system(rnn)
    drive = inputs.double().reshape(-1, inputs.shape[-1])[: steps + steps // 10]
    start = torch.zeros(system.size, dtype=torch.float64)
    spectrum = lyapunov_spectrum(system, start, inputs=drive, k=1, warmup=steps // 10, norm=True)
    states = rnn(inputs.double().squeeze(1))[0][:, -1].numpy()
    return {
        "modularity": modularity(strength, communities(strength)),
        "exponent": spectrum.largest,
        "norm": spectrum.norm,
        "information": decoded_information(states, labels.numpy(), folds=4),
        "unit information": float(unit_information(states, labels.numpy(), bins=8).mean()),
    }
