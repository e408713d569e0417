"""Networks of the studies that fit their data, and trained weights that several trials share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from secateur import zoo
from secateur.bench.models import hash_values
from secateur.bench.trial import key_versions
from secateur.data import Dataset
from secateur.zoo.plain import VGG_PLANS

__all__ = [
    "MakeOptimizer",
    "lenet5",
    "load_or_train",
    "lstm",
    "perceptron",
    "vgg",
    "weights_file",
    "with_schedule",
]

MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def perceptron(data: Dataset, *hidden: int, seed: int) -> nn.Sequential:
    """Return a perceptron with these hidden layers."""
    channels, height, width = data.shape
    return zoo.mlp((channels * height * width, *hidden, data.classes), seed=seed)


def lenet5(data: Dataset, pool: Literal["avg", "max"] = "max", *, seed: int) -> nn.Sequential:
    """Return LeNet-5."""
    return zoo.lenet5(pool, channels=data.shape[0], side=data.shape[1], classes=data.classes, seed=seed)


def lstm(data: Dataset, hidden: int, *, seed: int) -> nn.Module:
    """Return an LSTM that reads the rows of images."""
    return zoo.lstm(hidden, side=data.shape[1], classes=data.classes, seed=seed)


def vgg(
    plan: str,
    data: Dataset,
    *,
    seed: int,
    width: float = 1.0,
    pool: type[nn.Module] = nn.MaxPool2d,
    hidden: Sequence[int] = (),
) -> nn.Sequential:
    """Return a VGG with batch normalisation, as in the zoo but with other widths, pooling and head.

    Images too small for all poolings are not pooled to one pixel: 8 of 9 kernel weights would be idle.

    Args:
        plan: Key of `secateur.zoo.plain.VGG_PLANS`.
        data: Data set that the network fits.
        seed: Seed of the initial weights.
        width: Factor on all channels and hidden units.
        pool: Pooling layer.
        hidden: Hidden linear layers, before the factor.
    """
    channels, side, _ = data.shape
    steps = VGG_PLANS[plan]
    large = side >= 2 ** steps.count("M")
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in steps:
            if step != "M":
                out = max(4, round(step * width))
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            elif side > 2 or large:
                layers.append(pool(2))
                side //= 2
        layers.append(nn.Flatten())
        features = channels * side**2
        for size in hidden:
            out = max(1, round(size * width))
            layers += [nn.Linear(features, out), nn.ReLU()]
            features = out
        return nn.Sequential(*layers, nn.Linear(features, data.classes))


def weights_file(folder: str | Path, stem: str, data: Dataset, settings: Sequence[Any]) -> Path:
    """Return the file of a trained network. Its name contains a hash of data, settings and versions.

    Args:
        folder: Folder of the file.
        stem: Beginning of the name.
        data: Data set, of which the training part counts.
        settings: Everything else that the training depends on, as JSON.
    """
    text = json.dumps([*settings, hash_values([data.parts["train"]]), key_versions()], sort_keys=True)
    return Path(folder) / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def load_or_train(path: Path | None, model: nn.Module, train: Callable[[], nn.Module]) -> nn.Module:
    """Return a trained model in evaluation mode, from the file or by training.

    Other processes see the whole file or none. An incomplete file is replaced.

    Args:
        path: Safetensors file, or None to train without a file.
        model: An untrained model that receives the weights of the file.
        train: Returns the trained model.
    """
    if path is None:
        return train().eval()
    with suppress(FileNotFoundError, SafetensorError):
        load_model(model, path)
        return model.eval()
    trained = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_model(trained, str(part))
    part.replace(path)
    return trained.eval()


def with_schedule(
    make_optimizer: Callable[..., torch.optim.Optimizer],
    make_schedule: Callable[[torch.optim.Optimizer, float], torch.optim.lr_scheduler.LRScheduler],
) -> MakeOptimizer:
    """Return a maker of optimisers whose learning rate follows a schedule, step by step.

    Args:
        make_optimizer: (parameters, learning rate) -> optimiser.
        make_schedule: (optimiser, learning rate) -> schedule.
    """

    def make(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        optimizer = make_optimizer(parameters, lr)
        schedule = make_schedule(optimizer, lr)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    return make
