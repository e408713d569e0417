"""Networks of the joint study, narrow enough to train in under a minute, and their data."""

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
from secateur_studies.models import lenet5, load_or_train, lstm, perceptron, vgg, weights_file

__all__ = ["NETWORKS", "SIZES", "Size", "load_data", "load_trained", "make_network"]


def _make_perceptron(data: Dataset, seed: int) -> nn.Module:
    large = data.shape[1] * data.shape[2] > 64
    return perceptron(data, *((256, 128) if large else (128, 64)), seed=seed)


def _transformer(data: Dataset, seed: int) -> nn.Module:
    width = 64 if data.shape[1] > 8 else 32
    return zoo.transformer(width, 4, 2, side=data.shape[1], classes=data.classes, seed=seed)


NETWORKS: Mapping[str, Callable[[Dataset, int], nn.Module]] = MappingProxyType(
    {
        "MLP": _make_perceptron,
        "LeNet-5": lambda data, seed: lenet5(data, seed=seed),
        "VGG": lambda data, seed: vgg("small", data, width=0.5, seed=seed),
        "ResNet-20": lambda data, seed: zoo.resnet20(width=8, channels=1, classes=data.classes, seed=seed),
        "LSTM": lambda data, seed: lstm(data, 64, seed=seed),
        "transformer": _transformer,
    }
)


@dataclass(frozen=True)
class Size:
    """Size of training, pruning and tests.

    Attributes:
        epochs: Passes over the training examples.
        limit: Number of training examples, None for all.
        batch: Examples in a batch.
        lr: Largest learning rate.
        calibration: Examples for statistics and fold, of which a fifth judges the fold.
        tests: Test examples, None for all.
        tuning: Steps of a fine-tuning, of 64 examples each, at the learning rate of training.
        halved: Whether images are first averaged over 2 x 2 pixels.
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
        """Return the same on all examples and pixels, trained twice and fine-tuned ten times as long."""
        more = {"epochs": 2 * self.epochs, "tuning": 10 * self.tuning}
        return replace(self, limit=None, calibration=None, tests=None, halved=False, **more)

    def tiny(self, limit: int) -> Size:
        """Return a size that takes seconds."""
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


def load_data(name: str, network: str, folder: str | None = None, halved: bool = False) -> Dataset:
    """Return the data for a network, its pixels averaged over 2 x 2 if `halved`.

    LeNet-5 gets digits with each pixel doubled, because it needs 16 x 16 pixels.
    """
    data = load_dataset(name, folder)
    if halved:
        return _transform_images(data, lambda x: functional.avg_pool2d(x, 2))
    if network == "LeNet-5" and data.shape[1] < 16:
        return _transform_images(data, lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return data


def _transform_images(data: Dataset, change: Callable[[Tensor], Tensor]) -> Dataset:
    return replace(data, parts=MappingProxyType({key: (change(x), y) for key, (x, y) in data.parts.items()}))


def make_network(name: str, data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in NETWORKS:
        raise InputError(unknown("network", name, list(NETWORKS)))
    return NETWORKS[name](data, seed)


def load_trained(name: str, data: Dataset, seed: int, size: Size, cache: str | None = None) -> nn.Module:
    """Return a trained network, from the folder `cache` if it is there."""
    settings = [name, data.name, data.shape, seed, size.epochs, size.limit, size.batch, size.lr]
    path = None if cache is None else weights_file(cache, f"{name}-{data.name}-{seed}", data, settings)
    options: dict[str, Any] = {"lr": size.lr, "batch_size": size.batch, "limit": size.limit, "seed": seed}
    model = make_network(name, data, seed)
    return load_or_train(path, model, lambda: zoo.train(model, data, size.epochs, **options).model)
