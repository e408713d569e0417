"""Networks, data and training of the MIP study.

Training follows section 4.1 of arXiv:2002.07376: RMSprop at 1e-3 (batches of 128, a size that the paper does
not give), and for VGG-16 decoupled learning with Adam at 1e-2. The number of units that are dead on a few
images, and so the number of units to prune, depends strongly on this.
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
from secateur.zoo.training import Shuffled
from secateur_studies.models import lenet5, load_or_train, perceptron, vgg, weights_file

__all__ = [
    "NETS",
    "THRESHOLDS",
    "Case",
    "Setting",
    "epochs_of",
    "load_case",
    "load_data",
    "make_network",
    "train_network",
    "training_batches",
]

THRESHOLDS = {"FC-3": 0.1, "FC-4": 0.1, "LeNet-5": 0.2, "VGG-16": 0.3}
NETS = tuple(THRESHOLDS)
BATCH = 128


@dataclass(frozen=True)
class Setting:
    """Size of the experiments.

    Attributes:
        train: Most training examples of perceptrons. Convolutional networks get `share` of them.
        share: That share.
        epochs: Passes over the examples; three times as many over the small digits, except for VGG-16.
        test: Most test examples.
        draws: Random prunings that are averaged.
        sets: Sets of images in Figure 2a.
        seconds: Time limit of a solve. It is far above the time needed, so results do not depend on it.
        width: Width of VGG-16 relative to the paper's.
        folders: Folders of data sets by name.
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
class Case:
    """A trained network with its graph, data and initial state, and for VGG-16 its programs by layer."""

    net: str
    data: Dataset
    seed: int
    initial: nn.Module
    model: nn.Module
    graph: PruningGraph
    setting: Setting
    parts: tuple[Part, ...] | None = None

    @property
    def reference(self) -> float:
        """Test accuracy of the whole network in percent."""
        return 100 * accuracy(self.model, self.data.batches("test", 500))

    def collect(self, needs: set[str]) -> Statistics:
        """Collect statistics from the calibration part."""
        batches = self.data.batches("calibration", 256, 3000)
        return collect_statistics(self.model, self.graph, batches, needs, self.seed)

    def solve(self, seed: int | None = None, **options: Any) -> Scores:
        """Solve; by default with correctly classified images, one for each class, to a gap of 1e-3."""
        options = {"gap": 1e-3, "correct": True, "time_limit": self.setting.seconds} | options
        if self.parts is not None:
            return MIP(**options, parts=self.parts).importance(Statistics({}, seed=self.seed))
        statistics = self.collect({"chain", "images"})
        return MIP(**options).importance(replace(statistics, seed=self.seed if seed is None else seed))


def make_network(net: str, data: Dataset, seed: int, width: float = 1.0) -> nn.Module:
    """Return an untrained network of the paper that fits the data; `width` is that of VGG-16."""
    if net == "FC-3":
        return perceptron(data, 300, 100, seed=seed)
    if net == "FC-4":
        return perceptron(data, 200, 100, 100, seed=seed)
    if net == "LeNet-5":
        return lenet5(data, "avg", seed=seed)
    return vgg("16", data, width=width, pool=nn.AvgPool2d, hidden=(512, 512), seed=seed)


def load_data(name: str, net: str, setting: Setting) -> Dataset:
    """Return a data set as in the paper: 3 x 32 x 32 for convolutions, unchanged for perceptrons."""
    data, flat = load_dataset(name, setting.folders.get(name), 0), net.startswith("FC")
    limits = {"train": round(setting.train * (1 if flat else setting.share)), "test": setting.test}
    shares = {part: (x[: limits.get(part)], y[: limits.get(part)]) for part, (x, y) in data.parts.items()}
    if not flat:
        shares = {part: (_enlarge(x), y) for part, (x, y) in shares.items()}
    return replace(data, parts=MappingProxyType(shares))


def _enlarge(x: Tensor) -> Tensor:
    large = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return large if x.shape[1] == 3 else large.expand(-1, 3, -1, -1)


def epochs_of(data: Dataset, setting: Setting, net: str = "") -> int:
    """Return the number of epochs."""
    return setting.epochs * (3 if data.name == "digits" and net != "VGG-16" else 1)


def training_batches(data: Dataset, seed: int) -> Shuffled:
    """Return the training examples, in a new order at each pass."""
    return Shuffled(*data.parts["train"], BATCH, torch.Generator().manual_seed(seed))


def train_network(model: nn.Module, data: Dataset, setting: Setting, seed: int, **options: Any) -> nn.Module:
    """Train a copy of a network as in the paper, and return it in evaluation mode."""
    trained, _ = finetune(
        model,
        training_batches(data, seed),
        epochs=epochs_of(data, setting),
        lr=1e-3,
        optimizer=lambda parameters, lr: torch.optim.RMSprop(parameters, lr),
        seed=seed,
        progress=False,
        **options,
    )
    return trained.eval()


def load_case(net: str, name: str, setting: Setting, seed: int) -> Case:
    """Train a network, or read it from the cache, and trace it."""
    data = load_data(name, net, setting)
    initial = make_network(net, data, seed, setting.width)
    programs = None
    if net == "VGG-16":
        model, programs = _train_decoupled(initial, data, setting, seed)
    else:
        settings = [net, data.name, epochs_of(data, setting), seed]
        stem, cache = f"{net}-{data.name}-{seed}", setting.cache
        path = None if cache is None else weights_file(cache, stem, data, settings)
        empty = make_network(net, data, seed, setting.width)
        model = load_or_train(path, empty, lambda: train_network(initial, data, setting, seed))
    graph = trace(model, data.parts["calibration"][0][:2])
    return Case(net, data, seed, initial, model, graph, setting, programs)


def _train_decoupled(
    initial: nn.Module, data: Dataset, setting: Setting, seed: int
) -> tuple[nn.Module, tuple[Part, ...]]:
    """Train layer by layer with auxiliary networks, and prepare a program for each."""
    decoupled = attach_auxiliaries(
        initial,
        training_batches(data, seed),
        epochs=epochs_of(data, setting, "VGG-16"),
        lr=1e-2,
        train_layers=True,
        seed=seed,
        width=max(8, round(32 * setting.width)),
    )
    x, y = data.parts["calibration"]
    chosen = balanced_images(y.numpy(), data.classes, np.random.default_rng(seed))
    return decoupled.model, parts(decoupled, x[chosen], y[chosen])
