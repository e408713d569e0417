"""Networks, data and training of the spectral study.

The paper (appendix A, after Frankle et al. 2021) uses SGD with momentum, batches of 256 and a weight decay of
1e-4, weights from Kaiming's normal distribution, BatchNorm scales from U(0, 1), and all of the training
images. CIFAR: 160 epochs from a learning rate of 0.1, divided by ten at epochs 80 and 120, with images
flipped and shifted by up to 4 pixels. Tiny ImageNet: 200 epochs from 0.2, divided by ten at epochs 100 and
150, with crops of scale 0.1 to 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.core import InputError, unknown
from secateur.data import Batch, Dataset, cifar10, digits, fashion, fashion_available, split
from secateur.measure.metrics import accuracy
from secateur.repair.finetune import finetune
from secateur.zoo import resnet18, resnet20
from secateur_studies.models import MakeOptimizer, lenet5, perceptron, vgg, with_schedule

__all__ = [
    "FULL",
    "NETS",
    "PLAIN",
    "PLAIN_FULL",
    "PLAIN_QUICK",
    "QUICK",
    "Scale",
    "load_data",
    "make_network",
    "measure_accuracy",
    "normalise",
    "train_network",
]

PLAIN = ("MLP", "LeNet-5")  # networks without normalisation, for pruning without retraining
NETS = {"VGG-11": "cifar10", "ResNet-20": "cifar10", "VGG-16": "cifar100", "ResNet-18": "tinyimagenet"}


@dataclass(frozen=True)
class Scale:
    """Size of the experiments.

    Attributes:
        width: Share of the published channels.
        side: Side of the images. Larger images are averaged, smaller ones padded. None keeps them.
        examples: Training examples, or None for all.
        test: Test examples, or None for all.
        epochs: Passes, or None for the paper's 160 or 200.
        densities: Densities of Figures 2 and 3.
        sparser: Factor on the densities of Table 1.
        rounds: Rounds of SynFlow.
        paper: Train by the paper's recipe (SGD, steps, augmentation) instead of Adam with one cycle.
        device: Device for training and tests.
    """

    width: float = 1.0
    side: int | None = None
    examples: int | None = None
    test: int | None = None
    epochs: int | None = None
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
    sparser: float = 1.0
    rounds: int = 100
    paper: bool = True
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {**asdict(self), "densities": list(self.densities)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scale:
        """Return the scale from the result of `to_json`."""
        return cls(**{**values, "densities": tuple(values["densities"])})


FULL = Scale(device="cuda" if torch.cuda.is_available() else "cpu")
QUICK = Scale(0.125, 16, 3200, 4000, 3, (0.2, 0.1, 0.05, 0.02, 0.01), 5.0, 10, paper=False)
PLAIN_FULL = Scale(1.0, 28, epochs=20, paper=False, device=FULL.device)
PLAIN_QUICK = Scale(1.0, 28, 12000, 4000, 4, paper=False)


def make_network(net: str, data: Dataset, scale: Scale, seed: int) -> nn.Module:
    """Return an untrained network of the paper for the data, its channels times the scale's width.

    Raises:
        InputError: If the network is unknown.
    """
    kinds: dict[str, Callable[[], nn.Module]] = {
        "ResNet-20": lambda: _resnet(resnet20, 16, data, scale, seed),
        "ResNet-18": lambda: _resnet(resnet18, 64, data, scale, seed),
        "VGG-11": lambda: vgg("11", data, width=scale.width, seed=seed),
        "VGG-16": lambda: vgg("16", data, width=scale.width, seed=seed),
        "MLP": lambda: perceptron(data, 300, 100, seed=seed),
        "LeNet-5": lambda: lenet5(data, seed=seed),
    }
    if net not in kinds:
        raise InputError(unknown("network", net, list(kinds)))
    model = kinds[net]()
    if scale.paper:
        _initialise_as_published(model, seed)
    return model.eval()


def _resnet(build: Callable[..., nn.Module], full: int, data: Dataset, scale: Scale, seed: int) -> nn.Module:
    width = max(4, round(64 * scale.width)) if scale.width < 1 else full
    projected = {"shortcut": "projection"} if scale.paper and build is resnet20 else {}
    return build(width=width, channels=data.shape[0], classes=data.classes, seed=seed, **projected)


def _initialise_as_published(model: nn.Module, seed: int) -> None:
    """Initialise in place as OpenLTH does."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, generator=generator)


def load_data(net: str, folders: Mapping[str, str | Path], scale: Scale, seed: int) -> Dataset:
    """Return the paper's data for a network if its folder is given, else Fashion-MNIST, else digits."""
    name = NETS.get(net, "fashion")
    if name in folders:
        read = {"cifar10": cifar10, "cifar100": _cifar100, "tinyimagenet": _tiny_imagenet}[name]
        data = read(folders[name], seed=seed)
    else:
        data = fashion(seed=seed) if fashion_available() else digits(seed)
    data = _with_all_for_training(data) if scale.paper else data
    return data if scale.side is None else _resize(data, scale.side)


def _with_all_for_training(data: Dataset) -> Dataset:
    """Add what is set apart for calibration and selection to the training part."""
    apart = [part for name, part in data.parts.items() if name != "test"]
    x, y = (torch.cat(tensors) for tensors in zip(*apart, strict=True))
    return replace(data, parts={**data.parts, "train": (x, y)})


def _resize(data: Dataset, side: int) -> Dataset:
    def fit_side(x: Tensor) -> Tensor:
        if x.shape[-1] > side:
            x = functional.adaptive_avg_pool2d(x, side if x.shape[-1] % side == 0 else x.shape[-1] // 2)
        gap = side - x.shape[-1]
        return functional.pad(x, (gap // 2, gap - gap // 2, gap // 2, gap - gap // 2))

    return replace(data, parts={part: (fit_side(x), y) for part, (x, y) in data.parts.items()})


def _cifar100(folder: str | Path, seed: int) -> Dataset:
    """Read CIFAR-100's binary version: records of a coarse and a fine label and 3 x 32 x 32 pixels."""
    pairs = []
    for name in ("train.bin", "test.bin"):
        path = Path(folder) / name
        if not path.is_file() or path.stat().st_size % 3074:
            raise InputError(f"{path} must exist and hold records of 3074 bytes: CIFAR-100's binary version")
        raw = np.fromfile(path, np.uint8).reshape(-1, 3074)
        pixels = torch.from_numpy(raw[:, 2:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)
        pairs.append((pixels, torch.from_numpy(raw[:, 1].astype(np.int64))))
    parts = split(*pairs[0], {"train": 0.85, "calibration": 0.05, "selection": 0.1}, seed)
    return Dataset("cifar100", {**parts, "test": pairs[1]}, 100)


def _tiny_imagenet(folder: str | Path, seed: int) -> Dataset:
    """Read Tiny ImageNet as published: train/CLASS/images, val/val_annotations.txt. Needs 6 GB."""
    try:
        from PIL import Image  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError("reading Tiny ImageNet's JPEG files needs Pillow: pip install pillow") from error
    root = Path(folder)
    names = sorted(path.name for path in (root / "train").glob("n*"))
    if not names:
        raise InputError(f"no classes in {root / 'train'}: give the folder tiny-imagenet-200")

    def read(items: list[tuple[Path, int]]) -> Batch:
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in items])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        return images, torch.tensor([label for _, label in items])

    train = [(p, i) for i, name in enumerate(names) for p in sorted((root / "train" / name).rglob("*.JPEG"))]
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    test = [(root / "val" / "images" / row[0], names.index(row[1])) for row in rows]
    parts = split(*read(train), {"train": 0.85, "calibration": 0.05, "selection": 0.1}, seed)
    return Dataset("tinyimagenet", {**parts, "test": read(test)}, len(names))


@dataclass(frozen=True, eq=False)
class _Batches:
    """Training batches in a seeded order, augmented as in the paper."""

    data: Dataset
    scale: Scale
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return -(-len(self.data.parts["train"][1][: self.scale.examples]) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        x, y = (part[: self.scale.examples] for part in self.data.parts["train"])
        for at in torch.randperm(len(y), generator=self.generator).split(self.size):
            images = x[at].to(self.scale.device)
            yield self._augment(images) if self.scale.paper else images, y[at].to(self.scale.device)

    def _augment(self, x: Tensor) -> Tensor:
        """Flip, and shift by up to 4 pixels. Crop Tiny ImageNet at random scale and aspect."""
        n, draw = len(x), lambda low, high: low + (high - low) * torch.rand(len(x), generator=self.generator)
        flip = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
        wide, high = torch.ones(n), torch.ones(n)
        if self.data.name == "tinyimagenet":
            area, aspect = draw(0.1, 1), draw(0.8, 1.25)
            wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
            shift = torch.stack([draw(-1, 1) * (1 - wide), draw(-1, 1) * (1 - high)], 1)
        else:
            pixels = torch.randint(-4, 5, (n, 2), generator=self.generator)
            shift = 2 * pixels / x.shape[-1]
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = flip * wide, high, shift
        grid = functional.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


def normalise(data: Dataset) -> Dataset:
    """Subtract each channel's mean over the training part and divide by its deviation."""
    x = data.parts["train"][0]
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    return replace(data, parts={part: ((x - mean) / deviation, y) for part, (x, y) in data.parts.items()})


def train_network(
    model: nn.Module, data: Dataset, scale: Scale, seed: int, masks: Mapping[str, Any] | None = None
) -> nn.Module:
    """Train a copy with masked weights kept at zero. Return it on the CPU, in evaluation mode."""
    tiny = data.name == "tinyimagenet"
    epochs = scale.epochs or (200 if tiny else 160)
    batches = _Batches(data, scale, 256 if scale.paper else 64, torch.Generator().manual_seed(seed))
    if scale.paper:
        optimizer, lr = _steps(len(batches), tiny), 0.2 if tiny else 0.1
    else:
        optimizer, lr = _cycle(epochs * len(batches)), 1e-2
    trained, _ = finetune(
        copy.deepcopy(model).to(scale.device),
        batches,
        epochs=epochs,
        lr=lr,
        masks=masks,
        optimizer=optimizer,
        mixed_precision=False,
        seed=seed,
        progress=False,
    )
    return trained.cpu().eval()


def measure_accuracy(model: nn.Module, data: Dataset, scale: Scale) -> float:
    """Return the accuracy on the test part, in percent."""
    batches = ((x.to(scale.device), y.to(scale.device)) for x, y in data.batches("test", 500, scale.test))
    return 100 * accuracy(copy.deepcopy(model).to(scale.device), batches)


def _steps(length: int, tiny: bool) -> MakeOptimizer:
    marks = [length * epoch for epoch in ((100, 150) if tiny else (80, 120))]
    return with_schedule(
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4),
        lambda optimizer, _: torch.optim.lr_scheduler.MultiStepLR(optimizer, marks),
    )


def _cycle(steps: int) -> MakeOptimizer:
    return with_schedule(
        torch.optim.Adam,
        lambda optimizer, lr: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps + 1, cycle_momentum=False
        ),
    )
