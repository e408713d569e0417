"""The statistics that methods and repairs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["LogitMoments", "LossCurve", "Moments", "Statistics"]


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Statistics of the inputs of one weight, over samples and positions.

    Attributes:
        count: Number of rows seen (samples times positions).
        mean: Mean of each input feature, float64 [features].
        absolute: Mean absolute value of each feature, float64 [features].
        second: Mean square of each feature, float64 [features].
        gram: Mean of x x^T, float64 [features, features] (or, where `taps` > 1, of the patches),
            or None if only the means were requested.
        taps: Kernel positions that a Gram row spans: its features are (input feature, tap), tap
            fastest.  1 if every tap shares the statistics of its input feature.
        gram_mean: Mean of the rows behind `gram`, float64, one entry for each row of it: if taps > 1,
            padding and stride make it differ from `mean`.
        root: A matrix F, float64 [rows, features], whose F^T F is the mean of x x^T; it takes the place of
            `gram` where it was asked for and there are fewer rows than half of the features.
    """

    count: int
    mean: Tensor
    absolute: Tensor
    second: Tensor
    gram: Tensor | None = None
    taps: int = 1
    gram_mean: Tensor | None = None
    root: Tensor | None = None

    def __repr__(self) -> str:
        """Summarise the moments in one line."""
        gram = "" if self.gram is None else f", Gram matrix {list(self.gram.shape)}"
        return f"Moments({self.count} rows of {len(self.mean)} features{gram})"


@dataclass(frozen=True, eq=False, repr=False)
class LogitMoments:
    """What units of queries and keys add to the logits of attention.

    `secateur.statistics.attention_logits` derives it.

    Attributes:
        mean: Mean of what each unit adds, float64 [units]; query heads that share a key add up.
        second: Mean of its square, float64 [units].
        variance: Mean of its variance over the keys of a query, float64 [units].
        gram: Mean product of what two units add, float64 [units, units], or None; 0 between heads.
    """

    mean: Tensor
    second: Tensor
    variance: Tensor
    gram: Tensor | None = None


@dataclass(frozen=True)
class LossCurve:
    """What it costs at the output to remove units of one group alone.

    Attributes:
        size: Number of units.
        counts: Numbers of kept units that were tried, each under `size`.
        losses: The measured divergence of the outputs from the original's at each.
    """

    size: int
    counts: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """What a method decides by.  Only what it requests (`Method.needs`) is filled in.

    Attributes:
        weights: Every parameter and buffer, detached, by its first name.
        moments: By consuming weight (`PruningGraph.input_key`): its input (needs "moments", "gram").
        logits: By group of query-key positions: what its units add to the logits (needs "moments", "gram").
        gradients: By parameter: summed loss gradient over the batches (needs "gradients").
        taylor: By group: sum over examples (tokens of a causal language model) of
            (d loss / d gate of the unit)^2 (needs "taylor").
        flow: Called with masks by weight name (may be empty), returns |theta * dR/dtheta| of
            SynFlow's objective R for the masked network; with `neutral_bn=True` BatchNorm is as at
            initialisation (needs "flow").
        chain: The network as an affine-ReLU chain (needs "chain").
        images: Calibration inputs and targets (needs "images").
        programs: Called with inputs and their classes, returns a program for each convolution, with an
            auxiliary network trained on the batches (needs "programs").
        activations: By group: a sample of its units' activations [rows, units] (needs "activations").
        losses: By group (the first of those that keep equal counts): what removing its units costs, for
            budgets of scope "loss" (`secateur.repair.loss_curves`).
        seed: Seed from which a method derives every random choice.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    logits: Mapping[str, LogitMoments] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    taylor: Mapping[str, Tensor] = field(default_factory=dict)
    flow: Callable[..., Mapping[str, Tensor]] | None = None
    chain: Any = None
    images: tuple[Tensor, Tensor] | None = None
    programs: Callable[[Tensor, Tensor], tuple[Any, ...]] | None = None
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, LossCurve] = field(default_factory=dict)
    seed: int = 0

    def __repr__(self) -> str:
        """Summarise the statistics in one line."""
        named = {
            "moments": len(self.moments),
            "Gram matrices": sum(m.gram is not None for m in self.moments.values()),
            "gradients": len(self.gradients),
            "Taylor scores": len(self.taylor),
            "activations": len(self.activations),
            "loss curves": len(self.losses),
        }
        parts = [f"{len(self.weights)} weights", *(f"{n} {what}" for what, n in named.items() if n)]
        others = {"flow": self.flow, "chain": self.chain, "images": self.images, "programs": self.programs}
        parts += [name for name, value in others.items() if value is not None]
        return f"Statistics({', '.join(parts)}; seed {self.seed})"
