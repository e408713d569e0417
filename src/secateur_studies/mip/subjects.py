"""The networks and data of the study, how they are trained, and the ways to remove units from them.

Training follows section 4.1 of arXiv:2002.07376: RMSprop at 1e-3 (batches of 128, which it does not say);
VGG-16 by decoupled learning with Adam at 1e-2.  How many units are dead on a few images, and so what there is
to prune, depends much on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import PruningGraph, Statistics
from secateur.data import Dataset, load_dataset
from secateur.measure.metrics import accuracy
from secateur.methods import MIP
from secateur.repair.finetune import finetune
from secateur.statistics.auxiliary_heads import attach_auxiliaries, parts
from secateur.statistics.collect import collect_statistics
from secateur.structures.relu_mip import Part, Scores, balanced_images
from secateur.tracing.trace import trace
from secateur.zoo import lenet5, mlp
from secateur.zoo.plain import VGG_PLANS
from secateur.zoo.training import Shuffled
from secateur_studies.weights import remembered, weights_file

__all__ = ["NETS", "THRESHOLDS", "Setting", "Subject", "batches", "dataset", "fit", "make", "subject"]

THRESHOLDS = {"FC-3": 0.1, "FC-4": 0.1, "LeNet-5": 0.2, "VGG-16": 0.3}
NETS = tuple(THRESHOLDS)
BATCH = 128


@dataclass(frozen=True)
class Setting:
    """How much is done.

    Attributes:
        train: Training examples, at most, of perceptrons; convolutional networks get `share` of them.
        share: That share.
        epochs: Passes over them; three times as many over the small digits, but for VGG-16.
        test: Test examples, at most.
        draws: Random prunings that are averaged.
        sets: Sets of images in Figure 2a.
        seconds: Time limit of a solve, far from what it takes, so that results do not depend on it.
        width: Width of VGG-16 relative to the paper's.
        folders: Folders of data sets, by name.
        cache: Folder for trained networks, or None.
    """

    train: int = 10_000
    share: float = 0.4
    epochs: int = 15
    test: int = 3000
    draws: int = 20
    sets: int = 8
    seconds: float = 1200
    width: float = 0.125
    folders: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network, its trace, its data, its initial state, and (VGG-16) its programs by layer."""

    net: str
    data: Dataset
    seed: int
    initial: nn.Module
    model: nn.Module
    network: PruningGraph
    setting: Setting
    parts: tuple[Part, ...] | None = None

    @property
    def reference(self) -> float:
        """Test accuracy of the whole network, in percent."""
        return 100 * accuracy(self.model, self.data.batches("test", 500))

    def evidence(self, needs: set[str]) -> Statistics:
        """Collect from the calibration part."""
        batches = self.data.batches("calibration", 256, 3000)
        return collect_statistics(self.model, self.network, batches, needs, self.seed)

    def scores(self, seed: int | None = None, **options: Any) -> Scores:
        """Solve; by default with correctly classified images, one a class, to a gap of 1e-3."""
        settled = {"gap": 1e-3, "correct": True, "time_limit": self.setting.seconds} | options
        if self.parts is not None:
            return MIP(**settled, parts=self.parts).importance(Statistics({}, seed=self.seed))
        found = self.evidence({"chain", "images"})
        return MIP(**settled).importance(replace(found, seed=self.seed if seed is None else seed))


def make(net: str, data: Dataset, seed: int, width: float = 1.0) -> nn.Module:
    """Return an untrained network of the paper that fits the data."""
    channels, side, _ = data.shape
    pixels = channels * side * side
    if net == "FC-3":
        return mlp((pixels, 300, 100, data.classes), seed=seed)
    if net == "FC-4":
        return mlp((pixels, 200, 100, 100, data.classes), seed=seed)
    if net == "LeNet-5":
        return lenet5("avg", channels=channels, side=side, classes=data.classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _vgg16(channels, side, data.classes, width)


def _vgg16(channels: int, side: int, classes: int, width: float) -> nn.Sequential:
    """VGG-16 as in section 4.1: average pooling, two hidden linear layers of 512 (times `width`)."""
    layers: list[nn.Module] = []
    for step in VGG_PLANS["16"]:
        if step == "M":
            layers.append(nn.AvgPool2d(2))
            side //= 2
            continue
        out = max(1, round(width * int(step)))
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    hidden = max(1, round(width * 512))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def dataset(name: str, net: str, setting: Setting) -> Dataset:
    """Return a data set as the paper uses it: 3 x 32 x 32 for convolutions, as it is for perceptrons."""
    data, flat = load_dataset(name, setting.folders.get(name), 0), net.startswith("FC")
    limits = {"train": round(setting.train * (1 if flat else setting.share)), "test": setting.test}
    shares = {part: (x[: limits.get(part)], y[: limits.get(part)]) for part, (x, y) in data.parts.items()}
    if not flat:
        shares = {part: (_resized(x), y) for part, (x, y) in shares.items()}
    return replace(data, parts=MappingProxyType(shares))


def _resized(x: Tensor) -> Tensor:
    grown = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return grown if x.shape[1] == 3 else grown.expand(-1, 3, -1, -1)


def passes(data: Dataset, setting: Setting, net: str = "") -> int:
    """Return the number of epochs."""
    return setting.epochs * (3 if data.name == "digits" and net != "VGG-16" else 1)


def batches(data: Dataset, seed: int) -> Shuffled:
    """Return the training examples, in a new order at each pass."""
    return Shuffled(*data.parts["train"], BATCH, torch.Generator().manual_seed(seed))


def fit(
    model: nn.Module, data: Dataset, setting: Setting, seed: int, epochs: int | None = None, **options: Any
) -> nn.Module:
    """Train a copy of a network as the paper does, in evaluation mode at the end."""
    fitted, _ = finetune(
        model,
        batches(data, seed),
        epochs=epochs or passes(data, setting),
        lr=1e-3,
        optimizer=lambda parameters, lr: torch.optim.RMSprop(parameters, lr),
        seed=seed,
        progress=False,
        **options,
    )
    return fitted.eval()


def subject(net: str, name: str, setting: Setting, seed: int) -> Subject:
    """Train a network, or read it from the cache, and trace it."""
    data = dataset(name, net, setting)
    initial = make(net, data, seed, setting.width)
    if net == "VGG-16":
        model, programs = _decoupled(initial, data, setting, seed)
    else:
        model, programs = _cached(net, initial, data, setting, seed), None
    network = trace(model, data.parts["calibration"][0][:2])
    return Subject(net, data, seed, initial, model, network, setting, programs)


def _decoupled(
    initial: nn.Module, data: Dataset, setting: Setting, seed: int
) -> tuple[nn.Module, tuple[Part, ...]]:
    """Train layer by layer with auxiliary networks, and prepare a program for each."""
    found = attach_auxiliaries(
        initial,
        batches(data, seed),
        epochs=passes(data, setting, "VGG-16"),
        lr=1e-2,
        train_layers=True,
        seed=seed,
        width=max(8, round(32 * setting.width)),
    )
    x, y = data.parts["calibration"]
    chosen = balanced_images(y.numpy(), data.classes, np.random.default_rng(seed))
    return found.model, parts(found, x[chosen], y[chosen])


def _cached(net: str, initial: nn.Module, data: Dataset, setting: Setting, seed: int) -> nn.Module:
    """Train, or read what another cell of the same setting has trained."""
    if setting.cache is None:
        return fit(initial, data, setting, seed)
    how = [net, data.name, passes(data, setting), seed]
    path = weights_file(setting.cache, f"{net}-{data.name}-{seed}", data, how)
    return remembered(path, make(net, data, seed, setting.width), lambda: fit(initial, data, setting, seed))
