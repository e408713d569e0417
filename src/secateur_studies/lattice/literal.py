"""Algorithms 2 and 3 of arXiv:2502.16525 as printed: random adjacencies, W_hh masked during training.

The paper leaves some choices open. Its binary sparsities (.4943 to .5038) are those of single entries drawn
with probability 1/2, one drawing repeated over the gates. Its continuous mask is a vector over units,
repeated along the first dimension: rows. It does not state whether masks persist. If they do not, the weights
grow back in the next epoch, so both are shown. The control has no recurrence at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core import Weights
from secateur.data import Dataset
from secateur.methods.during_training import prune_every
from secateur.methods.lattice.method import Lattice
from secateur.repair.finetune import AfterEpoch, adam, finetune
from secateur.tracing.trace import trace
from secateur.zoo.training import Shuffled
from secateur_studies.models import lstm

__all__ = ["SCHEDULES", "VARIANTS", "Schedule", "Variant", "train_literal"]

WEIGHT = "rnn.weight_hh_l0"


@dataclass(frozen=True)
class Variant:
    """A variant of the training.

    Attributes:
        name: Name in the tables.
        kind: "none", "binary" (Algorithm 2), "continuous" (Algorithm 3), or "zero" (W_hh = 0 throughout).
        density: Share of W_hh that stays.
        persist: Whether masked weights stay zero in later epochs.
    """

    name: str
    kind: str
    density: float = 1.0
    persist: bool = True


@dataclass(frozen=True)
class Schedule:
    """Length and size of the training.

    Attributes:
        epochs: Passes; not a multiple of `every`, so that masks that do not persist show.
        every: Epochs between two prunings (p).
        hidden: Units of the LSTM.
        batch: Examples in a batch.
        limit: Most training examples.
        lr: Learning rate of Adam.
    """

    epochs: int
    every: int = 3
    hidden: int = 128
    batch: int = 64
    limit: int | None = None
    lr: float = 3e-3


HALF, ONE_ROW = "Algorithm 2, half of W_hh", "Algorithm 3, 1 row of 128"
CONTROL = "control: no recurrence (W_hh = 0)"
VARIANTS = (
    Variant("dense", "none"),
    Variant(HALF, "binary", 0.5),
    Variant("Algorithm 2, half, masks do not persist", "binary", 0.5, persist=False),
    Variant("Algorithm 3, half of the rows", "continuous", 0.5),
    Variant(ONE_ROW, "continuous", 1 / 128),
    Variant("Algorithm 3, 1 row, masks do not persist", "continuous", 1 / 128, persist=False),
    Variant(CONTROL, "zero", 0.0),
)
SCHEDULES = {
    "digits": Schedule(25, batch=32, lr=5e-3),
    "images": Schedule(7, limit=4000),
    "full digits": Schedule(25, batch=32, lr=5e-3),
    "full": Schedule(16, batch=128),
    "tiny": Schedule(4, hidden=16, limit=128, lr=5e-3),
}


def train_literal(
    data: Dataset, variant: Variant, schedule: Schedule, seed: int = 0
) -> tuple[nn.Module, float]:
    """Train an LSTM on the rows of images, masking W_hh every few epochs.

    Args:
        data: Images, [channels = 1, rows, columns].
        variant: The variant.
        schedule: The schedule.
        seed: Seed of weights, order and adjacency.

    Returns:
        The model and the share of exact zeros in W_hh.
    """
    model = lstm(data, schedule.hidden, seed=seed)
    inputs, targets = (part[: schedule.limit] for part in data.parts["train"])
    batches = Shuffled(inputs, targets, schedule.batch, torch.Generator().manual_seed(seed))
    masks, hook = _make_masking(model, variant, schedule, data.shape[-1], seed)
    model, _ = finetune(
        model,
        batches,
        epochs=schedule.epochs,
        lr=schedule.lr,
        masks=masks,
        optimizer=adam,
        after_epoch=hook,
        seed=seed,
        progress=False,
    )
    model.eval()
    return model, float((model.get_parameter(WEIGHT) == 0).double().mean())


def _make_masking(
    model: nn.Module, variant: Variant, schedule: Schedule, side: int, seed: int
) -> tuple[dict[str, Tensor], AfterEpoch | None]:
    """Return the masks of the whole training, and the function that prunes between the epochs."""
    if variant.kind == "none":
        return {}, None
    if variant.kind == "zero":
        return {WEIGHT: torch.zeros_like(model.get_parameter(WEIGHT), dtype=torch.bool)}, None
    graph = trace(model, torch.zeros(2, 1, side, side))
    method = Lattice(adjacency="binary" if variant.kind == "binary" else "continuous", centrality="mu")
    budget = Weights(variant.density)
    return {}, prune_every(schedule.every, method, graph, budget, persist=variant.persist, seed=seed)
