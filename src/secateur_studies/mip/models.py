"""Networks, data and training of the MIP study.

Training follows section 4.1 of arXiv:2002.07376: images of 3 x 32 x 32, RMSprop at 1e-3 (batches of 128, a
size that the paper does not give), and for VGG-16 decoupled learning with Adam at 1e-2. The number of units
that are dead on a few images, and so the number of units to prune, depends strongly on this.

The three channels of a grey image are equal. A first linear layer then computes sum_c w_c x = (sum_c w_c) x,
and the gradients of its three w_c are equal, so that RMSprop moves their sum by three times one step.
Perceptrons therefore read one channel, start from the sum of three weights, and train them at three times the
rate: the paper's network, in a third of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from secateur.statistics.auxiliary_heads import cut_into_blocks, parts, train_blocks
from secateur.statistics.collect import collect_statistics
from secateur.structures.relu_mip import Part, Scores, balanced_images
from secateur.tracing.trace import trace
from secateur.zoo.training import Shuffled
from secateur_studies.models import lenet5, load_or_train, perceptron, vgg, weights_file

__all__ = [
    "CHANNELS",
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
HIDDEN = {"FC-3": (300, 100), "FC-4": (200, 100, 100)}
BATCH = 128
CHANNELS = 3
SIDE = 32


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
        deep: Most training examples of VGG-16.
        device: Device for training and tests.
        folders: Folders of data sets by name.
        cache: Folder for trained networks, or None.
    """

    train: int = 60_000
    share: float = 1.0
    epochs: int = 30
    test: int = 3000
    draws: int = 20
    sets: int = 8
    seconds: float = 1200
    width: float = 0.125
    deep: int = 900
    device: str = "cpu"
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
    """Return an untrained network of the paper that fits the data; `width` is that of VGG-16.

    A perceptron reads one channel, with the sums of the weights of three.
    """
    device = data.parts["train"][0].device
    if net in HIDDEN:
        model, grey = (perceptron(shown, *HIDDEN[net], seed=seed) for shown in (_colour(data), data))
        first = next(model.parameters())
        summed = first.detach().reshape(len(first), CHANNELS, -1).sum(1)
        weights = {**model.state_dict(), next(iter(model.state_dict())): summed}
        grey.load_state_dict(weights)
        return grey.to(device)
    if net == "LeNet-5":
        return lenet5(data, "avg", seed=seed).to(device)
    return vgg("16", data, width=width, pool=nn.AvgPool2d, hidden=(512, 512), seed=seed).to(device)


def _colour(data: Dataset) -> Dataset:
    """Return the data set with three equal channels, without a copy of the images."""
    coloured = {part: (x.expand(-1, CHANNELS, -1, -1), y) for part, (x, y) in data.parts.items()}
    return replace(data, parts=MappingProxyType(coloured))


def load_data(name: str, net: str, setting: Setting) -> Dataset:
    """Return a data set at 32 x 32 pixels: with one channel for perceptrons, with three for convolutions."""
    data, flat = load_dataset(name, setting.folders.get(name), 0), net in HIDDEN
    most = setting.deep if net == "VGG-16" else round(setting.train * (1 if flat else setting.share))
    limits = {"train": most, "test": setting.test}
    shares = {part: (x[: limits.get(part)], y[: limits.get(part)]) for part, (x, y) in data.parts.items()}
    large = {part: (_enlarge(x).to(setting.device), y.to(setting.device)) for part, (x, y) in shares.items()}
    enlarged = replace(data, parts=MappingProxyType(large))
    return enlarged if flat or enlarged.shape[0] == CHANNELS else _colour(enlarged)


def _enlarge(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)


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
        optimizer=_rmsprop,
        seed=seed,
        progress=False,
        **options,
    )
    return trained.eval()


def _rmsprop(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return RMSprop, with three times the rate for a first linear layer, which stands for three channels."""
    first, rest = parameters[:1], parameters[1:]
    rate = CHANNELS * lr if first[0].ndim == 2 else lr
    groups: list[dict[str, Any]] = [{"params": first, "lr": rate}, {"params": rest}]
    return torch.optim.RMSprop(groups, lr)


def load_case(net: str, name: str, setting: Setting, seed: int) -> Case:
    """Train a network, or read it from the cache, and trace it."""
    data = load_data(name, net, setting)
    initial = make_network(net, data, seed, setting.width)
    programs = None
    if net == "VGG-16":
        model, programs = _train_decoupled(initial, data, setting, seed)
    else:
        path = _cached_weights(net, data, setting, seed)
        empty = make_network(net, data, seed, setting.width)
        model = load_or_train(path, empty, lambda: train_network(initial, data, setting, seed))
    graph = trace(model, data.parts["calibration"][0][:2])
    return Case(net, data, seed, initial, model, graph, setting, programs)


def _cached_weights(net: str, data: Dataset, setting: Setting, seed: int) -> Path | None:
    """Return the file of a trained network, or None without a cache."""
    if setting.cache is None:
        return None
    settings: list[Any] = [net, data.name, epochs_of(data, setting, net), seed, setting.device]
    settings += [setting.width] if net == "VGG-16" else []
    return weights_file(setting.cache, f"{net}-{data.name}-{seed}", data, settings)


def _train_decoupled(
    initial: nn.Module, data: Dataset, setting: Setting, seed: int
) -> tuple[nn.Module, tuple[Part, ...]]:
    """Train layer by layer with auxiliary networks, or read them from the cache; prepare their programs."""
    x, y = data.parts["calibration"]
    decoupled = cut_into_blocks(initial, x[:2], width=max(8, round(32 * setting.width)), seed=seed)
    count = epochs_of(data, setting, "VGG-16")

    def train() -> nn.Module:
        train_blocks(decoupled, training_batches(data, seed), epochs=count, lr=1e-2, train_layers=True)
        return decoupled.modules()

    load_or_train(_cached_weights("VGG-16", data, setting, seed), decoupled.modules(), train)
    chosen = balanced_images(y.cpu().numpy(), data.classes, np.random.default_rng(seed))
    return decoupled.model, parts(decoupled, x[chosen], y[chosen])
