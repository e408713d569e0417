"""What removal does to modularity, to the Lyapunov exponent and to the information that the state holds.

The paper's Theorems III.5 to III.7 speak of these.  Each row has the network before (criterion "none") or
after the removal of half of the units, without repair.
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
from secateur.methods import Magnitude, Method, Random
from secateur.methods.lattice.method import Lattice
from secateur_studies.lattice.dynamics import lyapunov_spectrum
from secateur_studies.lattice.information import decoded_information, unit_information
from secateur_studies.lattice.modularity import communities, modularity
from secateur_studies.lattice.recurrent_systems import recurrent_system
from secateur_studies.lattice.rigorous import Case, quiet

__all__ = ["effects", "measure"]

_CRITERIA: dict[str, Method] = {
    "paper: irreducible, then mu": Lattice(adjacency="weights", centrality="mu"),
    "in-strength alone": Lattice(adjacency="weights", prefer="neither"),
    "context from data, then flow (default)": Lattice(),
    "magnitude": Magnitude(),
    "random": Random(),
}


def effects(case: Case) -> Iterator[dict[str, Any]]:
    """Measure the trained network and each that lost half of its units; one row each."""
    models: dict[str, nn.Module] = {"none": case.model}
    with quiet():
        for name, method in _CRITERIA.items():
            models[name] = shrink(case.model, method.plan(case.network, case.evidence, Units(0.5)))
    for name, model in models.items():
        row = {"part": "effect", "data": case.data.name, "seed": case.seed, "criterion": name}
        yield {**row, "accuracy": case.test(model), **measure(model, case.data, case.size.steps)}


@torch.no_grad()
def measure(model: nn.Module, data: Dataset, steps: int = 400) -> dict[str, float]:
    """Return modularity, the largest exponent with the norm bound, and information in nats.

    The LSTM is driven by the rows of test images, one image after the other; information is that of the
    last hidden state of single images about their labels.

    Args:
        model: With an LSTM `rnn` that reads images row by row.
        data: Its data set.
        steps: Length of the trajectory, after a tenth of it as a warm-up.
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
