"""Two small networks that are trained here on Fashion-MNIST: a ResNet and a vision transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from real_networks.base import Network, choose
from secateur.data import Dataset, fashion
from secateur.zoo.residual import ResNet
from secateur.zoo.training import train

__all__ = ["FashionResNet", "FashionViT"]

BATCH, TESTED = 128, 4000


class Fashion(Network):
    """A classifier of clothes."""

    metrics: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "agreement": "top-1 agreement"}
    absolute = True
    epochs: ClassVar[int]
    train_lr: ClassVar[float]

    @abstractmethod
    def untrained(self) -> nn.Module:
        """Return the network with its initial weights."""

    def model(self, folder: Path) -> nn.Module:
        """Return the trained network; the first call trains it."""
        torch.manual_seed(0)
        model, path = self.untrained(), folder / f"{self.name}.safetensors"
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        trained = train(model, _data(), self.epochs, lr=self.train_lr, progress=True).model
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained.state_dict(), path)
        return trained.eval()

    def calibration(self, seed: int) -> list[Any]:
        """Return 512 images that the training has not seen."""
        return _draw("calibration", 512, seed)

    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return 16,384 images of the training."""
        return _draw("train", 16384, seed)

    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Count the right classes, and those of the original."""
        images, targets = (part[:TESTED] for part in _data().parts["test"])
        wanted = _classes(original, images)

        def measure(model: nn.Module) -> dict[str, float]:
            given = _classes(model, images)
            right, same = (float((given == x).double().mean()) for x in (targets, wanted))
            return {"accuracy": right, "agreement": same}

        return measure


class FashionResNet(Fashion):
    """Three residual blocks of two convolutions, each with BatchNorm."""

    name, title = "resnet", "ResNet, BatchNorm"
    about = (
        "Six convolutions in three residual blocks of 32, 64 and 128 channels behind a stem of stride "
        "2, each with BatchNorm (0.31M parameters), trained here on Fashion-MNIST. 512 images "
        "calibrate; 16,384 images of the training are for the teacher, without labels; accuracy, and "
        "agreement with the original, on the first 4,000 test images."
    )
    batchnorm, epochs, train_lr, steps = True, 2, 5e-3, 128

    def untrained(self) -> nn.Module:
        """Return the zoo's ResNet with a stride in its stem."""
        model = ResNet((1, 1, 1), 32, "projection", 1, 10)
        model.conv = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
        return model


class Attention(nn.Module):
    """Attention of tokens to one another, queries, keys and values from one projection."""

    def __init__(self, width: int, heads: int) -> None:
        """Build both projections."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same shape."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the block."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 7 x 7 pixels as tokens, blocks, and a linear layer on the mean of the tokens."""

    def __init__(self, width: int = 96, heads: int = 4, depth: int = 4) -> None:
        """Build the patches, positions, blocks and classifier."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, 28, 28] to [batch, 10]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(tokens)).mean(1))


class FashionViT(Fashion):
    """A small vision transformer."""

    name, title = "vit", "ViT"
    about = (
        "A vision transformer of four blocks, width 96, four heads, patches of 7 x 7 pixels (0.31M "
        "parameters), trained here on Fashion-MNIST; images as for the ResNet."
    )
    epochs, train_lr, steps = 4, 2e-3, 128

    def untrained(self) -> nn.Module:
        """Return the transformer."""
        return ViT()

    def heads(self, model: nn.Module) -> dict[nn.Module, int]:
        """Return four heads for every projection."""
        return {module.qkv: module.heads for module in model.modules() if isinstance(module, Attention)}


@cache
def _data() -> Dataset:
    return fashion()


def _draw(part: str, count: int, seed: int) -> list[Tensor]:
    images, _ = _data().parts[part]
    return list(images[choose(count, len(images), seed)].split(BATCH))


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model.eval()(batch).argmax(-1) for batch in images.split(500)])
