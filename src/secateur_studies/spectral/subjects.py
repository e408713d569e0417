"""Networks, data and training of the study.

The paper (its appendix A, after Frankle et al. 2021): SGD with momentum, batches of 256, weight decay 1e-4.
CIFAR: 160 epochs from a learning rate of 0.1, a tenth of it from epoch 80 and 120, images flipped and shifted
by up to 4 pixels.  tinyImageNet: 200 epochs from 0.2, a tenth from 100 and 150, crops of scale 0.1 to 1.
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
from secateur.zoo import lenet5, mlp, resnet18, resnet20
from secateur.zoo.plain import VGG_PLANS

__all__ = [
    "FULL",
    "NETS",
    "PLAIN",
    "PLAIN_FULL",
    "PLAIN_QUICK",
    "QUICK",
    "Scale",
    "accuracy_of",
    "fit",
    "load_data",
    "make",
    "normalised",
]

PLAIN = ("MLP", "LeNet-5")  # networks without normalisation, for pruning without retraining
NETS = {"VGG-11": "cifar10", "ResNet-20": "cifar10", "VGG-16": "cifar100", "ResNet-18": "tinyimagenet"}


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        width: Share of the published channels.
        side: Side of the images; larger ones are averaged, or padded.  None leaves them.
        examples: Training examples, or None for all.
        test: Test examples, or None for all.
        epochs: Passes; the paper's 160 or 200 if None.
        densities: Densities of Figures 2 and 3.
        sparser: Factor on the densities of Table 1.
        rounds: Rounds of SynFlow.
        paper: Whether to train by the paper's recipe (SGD, steps, augmentation) or by Adam, one cycle.
        device: Where to train and test.
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
        """Return what `from_json` reads."""
        return {**asdict(self), "densities": list(self.densities)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scale:
        """Return the scale that `to_json` wrote."""
        return cls(**{**values, "densities": tuple(values["densities"])})


FULL = Scale(device="cuda" if torch.cuda.is_available() else "cpu")
QUICK = Scale(0.125, 16, 3200, 4000, 3, (0.2, 0.1, 0.05, 0.02, 0.01), 5.0, 10, paper=False)
PLAIN_FULL = Scale(1.0, 28, epochs=20, paper=False, device=FULL.device)
PLAIN_QUICK = Scale(1.0, 28, 12000, 4000, 4, paper=False)


def make(net: str, data: Dataset, scale: Scale, seed: int) -> nn.Module:
    """Return an untrained network of the paper for the data, its channels times the scale's width."""
    channels, side, _ = data.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if net == "ResNet-20":
            model: nn.Module = resnet20(
                width=max(4, round(16 * scale.width * 4)) if scale.width < 1 else 16,
                channels=channels,
                classes=data.classes,
                seed=seed,
            )
        elif net == "ResNet-18":
            model = resnet18(
                width=max(4, round(64 * scale.width)), channels=channels, classes=data.classes, seed=seed
            )
        elif net == "MLP":
            model = mlp((channels * side**2, 300, 100, data.classes), seed=seed)
        elif net == "LeNet-5":
            model = lenet5(channels=channels, side=side, classes=data.classes, seed=seed)
        elif net in NETS:
            model = _vgg(VGG_PLANS[net[4:]], scale.width, channels, side, data.classes)
        else:
            raise InputError(unknown("network", net, [*NETS, *PLAIN]))
    return model.eval()


def _vgg(plan: Any, width: float, channels: int, side: int, classes: int) -> nn.Sequential:
    """VGG as in the zoo, narrower; small images are not pooled to one pixel, which would idle 8 of 9 taps."""
    layers: list[nn.Module] = []
    large = side >= 2 ** list(plan).count("M")
    for step in plan:
        if step != "M":
            out = max(4, round(step * width))
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        elif side > 2 or large:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, classes))


def load_data(net: str, folders: Mapping[str, str | Path], scale: Scale, seed: int) -> Dataset:
    """Return the paper's data for a network if its folder is named; else Fashion-MNIST, else digits."""
    name = NETS.get(net, "fashion")
    if name in folders:
        consumers: dict[str, Callable[..., Dataset]] = {
            "cifar10": cifar10,
            "cifar100": _cifar100,
            "tinyimagenet": _tiny_imagenet,
        }
        data = consumers[name](folders[name], seed=seed)
    else:
        data = fashion(seed=seed) if fashion_available() else digits(seed)
    return data if scale.side is None else _resized(data, scale.side)


def _resized(data: Dataset, side: int) -> Dataset:
    def fit_side(x: Tensor) -> Tensor:
        if x.shape[-1] > side:
            x = functional.adaptive_avg_pool2d(x, side if x.shape[-1] % side == 0 else x.shape[-1] // 2)
        gap = side - x.shape[-1]
        return functional.pad(x, (gap // 2, gap - gap // 2, gap // 2, gap - gap // 2))

    return replace(data, parts={part: (fit_side(x), y) for part, (x, y) in data.parts.items()})


def _cifar100(folder: str | Path, seed: int) -> Dataset:
    """CIFAR-100's binary version: records of a coarse and a fine label and 3 x 32 x 32 pixels."""
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
    """Tiny ImageNet as published: train/CLASS/images and val/val_annotations.txt; 6 GB in memory."""
    try:
        from PIL import Image  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError("reading Tiny ImageNet's JPEG files needs Pillow: pip install pillow") from error
    root = Path(folder)
    names = sorted(path.name for path in (root / "train").glob("n*"))
    if not names:
        raise InputError(f"no classes in {root / 'train'}: name the folder tiny-imagenet-200")

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
    """Training batches in a seeded order, normalised by channel and augmented as the paper does."""

    data: Dataset
    scale: Scale
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return -(-len(self.data.parts["train"][1][: self.scale.examples]) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        x, y = (part[: self.scale.examples] for part in self.data.parts["train"])
        for at in torch.randperm(len(y), generator=self.generator).split(self.size):
            images = self._augmented(x[at]) if self.scale.paper else x[at]
            yield images.to(self.scale.device), y[at].to(self.scale.device)

    def _augmented(self, x: Tensor) -> Tensor:
        """Flip, and shift by up to 4 pixels; Tiny ImageNet is cropped at random scale and aspect."""
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
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


def normalised(data: Dataset) -> Dataset:
    """Subtract each channel's mean over the training part and divide by its deviation."""
    x = data.parts["train"][0]
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    return replace(data, parts={part: ((x - mean) / deviation, y) for part, (x, y) in data.parts.items()})


def fit(
    model: nn.Module, data: Dataset, scale: Scale, seed: int, masks: Mapping[str, Any] | None = None
) -> nn.Module:
    """Train a copy, masked weights held at zero; it comes back on the processor, in evaluation mode."""
    tiny = data.name == "tinyimagenet"
    epochs = scale.epochs or (200 if tiny else 160)
    batches = _Batches(data, scale, 256 if scale.paper else 64, torch.Generator().manual_seed(seed))
    rule, lr = (
        (_steps(len(batches), tiny), 0.2 if tiny else 0.1)
        if scale.paper
        else (_cycle(epochs * len(batches)), 1e-2)
    )
    trained, _ = finetune(
        copy.deepcopy(model).to(scale.device),
        batches,
        epochs=epochs,
        lr=lr,
        masks=masks,
        optimizer=rule,
        seed=seed,
        progress=False,
    )
    return trained.cpu().eval()


def accuracy_of(model: nn.Module, data: Dataset, scale: Scale) -> float:
    """Measure the accuracy on the test part, in percent."""
    batches = ((x.to(scale.device), y.to(scale.device)) for x, y in data.batches("test", 500, scale.test))
    return 100 * accuracy(copy.deepcopy(model).to(scale.device), batches)


def _steps(length: int, tiny: bool) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    def rule(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)
        marks = [length * epoch for epoch in ((100, 150) if tiny else (80, 120))]
        schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, marks)
        sgd.register_step_post_hook(lambda *_: schedule.step())
        return sgd

    return rule


def _cycle(steps: int) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    def rule(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        adam = torch.optim.Adam(parameters, lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps + 1, cycle_momentum=False)
        adam.register_step_post_hook(lambda *_: schedule.step())
        return adam

    return rule
