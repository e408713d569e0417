"""Multilayer perceptrons, LeNets and other small feed-forward networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats, tokens


def mlp(activation: type[nn.Module] = nn.ReLU, norm: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers 10-24-20-6, with an optional normalisation after each hidden one."""
    layers: list[nn.Module] = []
    for n, m in ((10, 24), (24, 20)):
        layers += [nn.Linear(n, m), *([norm(m)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(20, 6))


def weight_normed() -> nn.Sequential:
    """Convolutions along time, the middle one with a norm for each place in its kernel, as in wav2vec 2.0."""
    middle = nn.utils.parametrizations.weight_norm(nn.Conv1d(12, 16, 3), dim=2)
    ends = nn.Conv1d(3, 12, 3), nn.Conv1d(16, 4, 3)
    return nn.Sequential(ends[0], nn.GELU(), middle, nn.GELU(), ends[1], nn.Flatten(), nn.Linear(24, 5))


class LeNet5(nn.Module):
    """LeNet-5 on 32 x 32 inputs; subclasses differ in how they flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
        self.flat = nn.Flatten()

    def flatten(self, x: Tensor) -> Tensor:
        """Flatten by a module."""
        return self.flat(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, 32, 32] to [B, 10]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = self.flatten(F.max_pool2d(F.relu(self.conv2(x)), 2))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class LeNet5View(LeNet5):
    """Flattens by `view(B, -1)`."""

    def flatten(self, x: Tensor) -> Tensor:
        """Keep the batch size."""
        return x.view(x.size(0), -1)


class LeNet5Permuted(LeNet5):
    """Flattens with the channels last."""

    def flatten(self, x: Tensor) -> Tensor:
        """Permute first."""
        return x.permute(0, 2, 3, 1).flatten(1)


class LeNet5Literal(LeNet5):
    """Flattens with a literal number of features."""

    def flatten(self, x: Tensor) -> Tensor:
        """Infer the batch size."""
        return x.view(-1, 400)


class LeNet5Computed(LeNet5):
    """Flattens with a number of features computed from the shape."""

    def flatten(self, x: Tensor) -> Tensor:
        """Multiply the sizes."""
        return x.reshape(-1, x.shape[1] * x.shape[2] * x.shape[3])


class Shared(nn.Module):
    """A layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(10, 22), nn.Linear(22, 22), nn.Linear(22, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 6]."""
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Siamese(nn.Module):
    """One tower used on both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh())
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare x and y, both [B, 10]."""
        x, y = self.tower(x), self.tower(y)
        return self.head(torch.cat([(x - y).abs(), x * y], -1))


class Bare(nn.Module):
    """Parameters used without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(10, 24) / 3)
        self.offset = nn.Parameter(torch.randn(24))
        self.gain = nn.Parameter(torch.randn(1, 24))
        self.second = nn.Parameter(torch.randn(6, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 6]."""
        return F.linear(torch.relu(x @ self.first + self.offset) * self.gain, self.second)


class Residual(nn.Module):
    """Residual blocks with a learnt gain on each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(10, 18), nn.Linear(18, 6)
        self.up = nn.ModuleList(nn.Linear(18, 28) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(28, 18) for _ in range(2))
        self.gain = nn.ParameterList(nn.Parameter(torch.randn(())) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 6]."""
        x = self.inlet(x)
        for up, down, gain in zip(self.up, self.down, self.gain, strict=True):
            x = x + gain * down(F.gelu(up(x)))
        return self.outlet(x)


class Normalised(nn.Module):
    """LayerNorm on the residual width, free hidden units beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.norm, self.outlet = nn.Linear(10, 18), nn.LayerNorm(18), nn.Linear(18, 6)
        self.up, self.down = nn.Linear(18, 28), nn.Linear(28, 18)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 6]."""
        x = self.inlet(x)
        return self.outlet(x + self.down(F.silu(self.up(self.norm(x)))))


class BagOfWords(nn.Module):
    """Mean of embeddings, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(31, 22)
        self.hidden, self.last = nn.Linear(22, 26), nn.Linear(26, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, T] to [B, 5]."""
        return self.last(torch.relu(self.hidden(self.embedding(ids).mean(1))))


class TwoWay(nn.Module):
    """Two inputs joined late, a dictionary of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 14, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(9, 20), nn.ReLU())
        self.kind, self.size = nn.Linear(34, 5), nn.Linear(34, 2)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Classify and measure."""
        both = torch.cat([self.image(image), self.table(table)], 1)
        return {"kind": self.kind(both), "size": self.size(both)}


class DeepSet(nn.Module):
    """A sum over the elements of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 18), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(18, 20), nn.ReLU(), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, elements, 4] to [B, 3]."""
        return self.rho(self.phi(x).sum(1))


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(11, 18)
        self.bias = nn.Parameter(torch.randn(11))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct [B, 11]."""
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


class Branching(nn.Module):
    """Chooses its path by the data: cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 6), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 6] by one of two layers."""
        x = torch.relu(self.hidden(x))
        return self.a(x) if x.sum() > 0 else self.b(x)


IMAGE = (floats(B, 3, 32, 32),)
TABLE = (floats(B, 10),)
ENTRIES = (
    Entry("MLP", mlp, TABLE, outputs=("4",), units=44),
    Entry("MLP, BatchNorm1d", lambda: mlp(norm=nn.BatchNorm1d), TABLE, outputs=("6",), units=44),
    Entry(
        "MLP, LayerNorm after each layer",
        lambda: mlp(nn.GELU, nn.LayerNorm),
        TABLE,
        outputs=("6",),
        units=44,
    ),
    Entry("MLP, sigmoid", lambda: mlp(nn.Sigmoid), TABLE, outputs=("4",), units=44),
    Entry("MLP, batch as wide as the layers", lambda: mlp(nn.ELU), TABLE, outputs=("4",), units=44, batch=20),
    Entry(
        "PReLU per unit",
        lambda: nn.Sequential(nn.Linear(10, 24), nn.PReLU(24), nn.Linear(24, 6)),
        TABLE,
        outputs=("2",),
        units=24,
    ),
    Entry("LeNet-5, Flatten", LeNet5, IMAGE, outputs=("fc3",), units=226),
    Entry("LeNet-5, view(B, -1)", LeNet5View, IMAGE, outputs=("fc3",), units=226),
    Entry("LeNet-5, permute before flatten", LeNet5Permuted, IMAGE, outputs=("fc3",), units=226),
    Entry("LeNet-5, view(-1, 400)", LeNet5Literal, IMAGE, outputs=("fc3",), units=210),
    Entry("LeNet-5, reshape by computed size", LeNet5Computed, IMAGE, outputs=("fc3",), units=226),
    Entry("Layer used twice", Shared, TABLE, outputs=("last",), units=22),
    Entry("Siamese", Siamese, (floats(B, 10), floats(B, 10)), outputs=("head",), units=40),
    Entry("Bare nn.Parameter", Bare, TABLE, units=24),
    Entry("Residual MLP with gains", Residual, TABLE, outputs=("outlet",), units=74),
    Entry("LayerNorm on the residual", Normalised, TABLE, outputs=("outlet",), units=46),
    Entry("Embedding, mean, MLP", BagOfWords, (tokens(31, B, 7),), outputs=("last",), units=48),
    Entry(
        "Two inputs, two outputs",
        TwoWay,
        (floats(B, 3, 9, 9), floats(B, 9)),
        outputs=("kind", "size"),
        units=34,
    ),
    Entry("Deep sets", DeepSet, (floats(B, 7, 4),), outputs=("rho.2",), units=62),
    Entry("Weight-normalised convolution", weight_normed, (floats(B, 3, 12),), outputs=("6",), units=32),
    Entry("Tied autoencoder", Tied, (floats(B, 11),), units=18),
    Entry("A single layer", lambda: nn.Linear(10, 6), TABLE, outputs=("",), refused="an output of the model"),
    Entry("Path chosen by the data", Branching, TABLE, outputs=("a", "b"), refused="data"),
)
