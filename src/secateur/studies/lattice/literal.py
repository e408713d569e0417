"""Algorithms 2 and 3 of arXiv:2502.16525 as they stand: random adjacencies, W_hh masked during training.

What the paper leaves open is decided here.  Its binary sparsities (.4943 to .5038) are those of single
entries drawn with probability 1/2, one drawing repeated over the gates.  Its continuous mask is a vector over
units repeated along the first dimension: rows.  It does not say whether masks persist; without, the
weights grow back in the next epoch, and both are shown.  The control has no recurrence at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.analysis.measure import accuracy
from secateur.core import Evidence, Weights
from secateur.data import Dataset
from secateur.finetune import finetune
from secateur.methods.lattice import Lattice
from secateur.network.trace import trace
from secateur.zoo.sequence import lstm
from secateur.zoo.training import Shuffled

__all__ = ["PUBLISHED", "rows", "train_literal"]

PUBLISHED = {
    "binary": "Table I: above .98 at .4943 to .5038 (MNIST)",
    "continuous": "Table II: .86 to .87 at up to .9943 (MNIST)",
}
_WEIGHT = "rnn.weight_hh_l0"
Masks = dict[str, Tensor]


def rows(dataset: Callable[[int], Dataset], full: bool, seed: int) -> list[dict[str, Any]]:
    """Train every variant with every seed; one row each."""
    variants: list[tuple[str, str, float, bool]] = [
        ("dense", "none", 1.0, True),
        ("Algorithm 2", "binary", 0.5, True),
        ("Algorithm 2, masks do not persist", "binary", 0.5, False),
        ("Algorithm 3", "continuous", 0.5, True),
        ("Algorithm 3", "continuous", 0.07, True),
        ("Algorithm 3", "continuous", 1 / 128, True),
        ("Algorithm 3, masks do not persist", "continuous", 1 / 128, False),
        ("control: no recurrence (W_hh = 0)", "zero", 0.0, True),
    ]
    seeds = range(seed, seed + (5 if full else 3))
    limit = None if full else 12000
    found = []
    for s in seeds:
        data = dataset(s)
        for name, kind, density, persist in variants:
            small = len(data.parts["train"][1]) < 2000
            schedule = {"epochs": 25, "lr": 5e-3, "batch": 32} if small else {"epochs": 16 if full else 7}
            model, sparsity = train_literal(data, kind, density, persist, **schedule, limit=limit, seed=s)
            score = accuracy(model, data.batches("test", 1000))
            found.append({
                "data": data.name, "variant": name, "kind": kind, "density": round(density, 4), "seed": s,
                "sparsity": sparsity, "accuracy": score, "published": PUBLISHED.get(kind, ""),
            })
    return found


def train_literal(
    data: Dataset, kind: str, density: float, persist: bool, *, epochs: int = 16, every: int = 3,
    hidden: int = 128, batch: int = 128, limit: int | None = None, lr: float = 3e-3, seed: int = 0,
) -> tuple[nn.Module, float]:
    """Train an LSTM on the rows of images, masking W_hh every few epochs.

    Args:
        data: Images, [channels = 1, rows, columns].
        kind: "none", "binary", "continuous", or "zero" (W_hh = 0 from the start).
        density: Share of W_hh that stays.
        persist: Whether masked weights stay zero in the epochs that follow.
        epochs: Passes; not a multiple of `every`, so that what does not persist shows.
        every: Epochs between two prunings (p).
        hidden: Units.
        batch: Examples in a batch.
        limit: Most training examples.
        lr: Learning rate of Adam, which starts anew after each pruning.
        seed: Seed of weights, order and adjacency.

    Returns:
        The model and the share of exact zeros in W_hh.
    """
    side = data.shape[-1]
    model: nn.Module = lstm(hidden, 1, side=side, classes=data.classes, seed=seed)
    masks = _masks(model, kind, density, seed, side)
    inputs, targets = (part[:limit] for part in data.parts["train"])
    batches = Shuffled(inputs, targets, batch, torch.Generator().manual_seed(seed))
    held: Masks = masks if kind == "zero" else {}
    for first in range(0, epochs, every):
        if first:
            _apply(model, masks)
            held = masks if persist else {}
        span = min(every, epochs - first)
        model, _ = finetune(model, batches, epochs=span, lr=lr, masks=held, seed=seed + first, progress=False)
    model.eval()
    return model, float((dict(model.named_parameters())[_WEIGHT] == 0).double().mean())


def _masks(model: nn.Module, kind: str, density: float, seed: int, side: int) -> Masks:
    weight = dict(model.named_parameters())[_WEIGHT]
    if kind == "none":
        return {}
    if kind == "zero":
        return {_WEIGHT: torch.zeros_like(weight, dtype=torch.bool)}
    network = trace(model, torch.zeros(2, 1, side, side))
    evidence = Evidence({name: p.detach() for name, p in model.named_parameters()}, seed=seed)
    method = Lattice(adjacency="binary" if kind == "binary" else "continuous", centrality="mu")
    masks = method.plan(network, evidence, Weights(density)).masks
    return {name: torch.from_numpy(mask) for name, mask in masks.items()}


@torch.no_grad()
def _apply(model: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        dict(model.named_parameters())[name].masked_fill_(~mask, 0)
