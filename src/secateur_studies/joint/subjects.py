"""The networks of the joint study, narrow enough to train in under a minute, and their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from secateur import zoo
from secateur.core import InputError, unknown
from secateur.data import Dataset, load_dataset
from secateur.zoo.factory import factory
from secateur_studies.weights import remembered, weights_file

__all__ = ["NETWORKS", "SIZES", "Size", "make_data", "make_network", "trained"]

Build = Callable[[Dataset, int], nn.Module]


def _mlp(data: Dataset, seed: int) -> nn.Module:
    inputs = data.shape[1] * data.shape[2]
    hidden = (256, 128) if inputs > 64 else (128, 64)
    return zoo.mlp((inputs, *hidden, data.classes), seed=seed)


def _lenet5(data: Dataset, seed: int) -> nn.Module:
    return zoo.lenet5(side=data.shape[1], classes=data.classes, seed=seed)


@factory(1, 28, 28)
def narrow_vgg(width: int = 16, *, side: int = 28, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Return a VGG of six convolutions with batch normalisation, `width` to four times as many channels.

    Example:
        >>> narrow_vgg(side=8)[-1]
        Linear(in_features=64, out_features=10, bias=True)
    """
    layers: list[nn.Module] = []
    channels = 1
    for out in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
        side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, classes))


def _vgg(data: Dataset, seed: int) -> nn.Module:
    return narrow_vgg(side=data.shape[1], classes=data.classes, seed=seed)


def _resnet20(data: Dataset, seed: int) -> nn.Module:
    return zoo.resnet20(width=8, channels=1, classes=data.classes, seed=seed)


def _lstm(data: Dataset, seed: int) -> nn.Module:
    return zoo.lstm(64, side=data.shape[1], classes=data.classes, seed=seed)


def _transformer(data: Dataset, seed: int) -> nn.Module:
    width = 64 if data.shape[1] > 8 else 32
    return zoo.transformer(width, 4, 2, side=data.shape[1], classes=data.classes, seed=seed)


NETWORKS: Mapping[str, Build] = MappingProxyType(
    {
        "MLP": _mlp,
        "LeNet-5": _lenet5,
        "VGG": _vgg,
        "ResNet-20": _resnet20,
        "LSTM": _lstm,
        "transformer": _transformer,
    }
)


@dataclass(frozen=True)
class Size:
    """How long a network is trained, and on how much it is pruned and judged.

    Attributes:
        epochs: Passes over the training examples.
        limit: Number of training examples, None for all.
        batch: Examples a batch.
        lr: Largest learning rate.
        calibration: Examples for evidence and fold, of which a fifth judges the fold.
        tests: Test examples, None for all.
        tuning: Steps of a fine-tuning, of 64 examples each, at the learning rate of training.
        halved: Whether images are averaged over 2 x 2 pixels first.
    """

    epochs: int
    limit: int | None = None
    batch: int = 64
    lr: float = 3e-3
    calibration: int | None = 1000
    tests: int | None = 2000
    tuning: int = 32
    halved: bool = False

    def full(self) -> Size:
        """Return the same on all examples and pixels, fine-tuned ten times as long."""
        more = {"epochs": 2 * self.epochs, "tuning": 10 * self.tuning}
        return replace(self, limit=None, calibration=None, tests=None, halved=False, **more)

    def tiny(self, limit: int) -> Size:
        """Return a size for seconds."""
        return replace(self, epochs=1, limit=limit, calibration=100, tests=200, tuning=2)


_DIGITS = Size(20, batch=32, calibration=None, tests=None, lr=5e-3)
SIZES: Mapping[tuple[str, str], Size] = MappingProxyType(
    {
        ("fashion", "MLP"): Size(8, 6_000),
        ("fashion", "LeNet-5"): Size(8, 6_000),
        ("fashion", "VGG"): Size(4, 8_000, halved=True),
        ("fashion", "ResNet-20"): Size(4, 6_000, halved=True),
        ("fashion", "LSTM"): Size(8, 8_000, lr=1e-2),
        ("fashion", "transformer"): Size(4, 6_000),
        ("digits", "MLP"): _DIGITS,
        ("digits", "LeNet-5"): _DIGITS,
        ("digits", "VGG"): replace(_DIGITS, epochs=6),
        ("digits", "ResNet-20"): replace(_DIGITS, epochs=8),
        ("digits", "LSTM"): replace(_DIGITS, lr=1e-2),
        ("digits", "transformer"): _DIGITS,
    }
)


def make_data(name: str, network: str, folder: str | None = None, halved: bool = False) -> Dataset:
    """Return the data for a network, its pixels averaged by 2 x 2 if asked for.

    LeNet-5 is given digits with each pixel doubled, to the 16 x 16 that it needs.
    """
    data = load_dataset(name, folder)
    if halved:
        return _mapped(data, lambda x: functional.avg_pool2d(x, 2))
    if network == "LeNet-5" and data.shape[1] < 16:
        return _mapped(data, lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return data


def _mapped(data: Dataset, change: Callable[[Tensor], Tensor]) -> Dataset:
    return replace(data, parts=MappingProxyType({key: (change(x), y) for key, (x, y) in data.parts.items()}))


def make_network(name: str, data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network.

    Raises:
        InputError: An unknown name.
    """
    if name not in NETWORKS:
        raise InputError(unknown("network", name, list(NETWORKS)))
    return NETWORKS[name](data, seed)


def trained(name: str, data: Dataset, seed: int, size: Size, cache: str | None = None) -> nn.Module:
    """Return a trained network, from the folder `cache` where it lies there already."""
    model = make_network(name, data, seed)
    if cache is None:
        return _fit(model, data, seed, size)
    how = [name, data.name, data.shape, seed, size.epochs, size.limit, size.batch, size.lr]
    path = weights_file(cache, f"{name}-{data.name}-{seed}", data, how)
    return remembered(path, model, lambda: _fit(model, data, seed, size))


def _fit(model: nn.Module, data: Dataset, seed: int, size: Size) -> nn.Module:
    options: dict[str, Any] = {"lr": size.lr, "batch_size": size.batch, "limit": size.limit, "seed": seed}
    return zoo.train(model, data, size.epochs, **options).model
