"""Small networks in which a careless rule removes what it must not, or ties what it need not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats, tokens


class Between(nn.Module):
    """A linear layer, something done to its output, and another linear layer."""

    def __init__(self, act: Callable[[Tensor], Tensor], hidden: int = 16, read: int = 16) -> None:
        super().__init__()
        self.act = act
        self.first, self.second, self.last = nn.Linear(10, hidden), nn.Linear(read, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        return self.last(torch.tanh(self.second(self.act(torch.relu(self.first(x))))))


def summed(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Divide by a number made of all features: exact only if dead features do not enter it."""
    return lambda x: x / (1 + act(x).square())


def overwritten(x: Tensor) -> Tensor:
    """Write into a slice of a buffer, then sum: what was written at dead places must be known."""
    buffer = torch.ones(x.size(0), 2, x.size(1), dtype=x.dtype)
    buffer[:, 0] = x
    return x / (1 + buffer.sum((1, 2), keepdim=True)[:, 0].square())


def head_normed(x: Tensor) -> Tensor:
    """Divide heads of 4 by their root mean square: the heads may go, their positions must stay."""
    x = x.unflatten(-1, (-1, 4))
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).flatten(-2)


def scattered(x: Tensor) -> Tensor:
    """Move features by a fixed permutation."""
    order = torch.tensor([3, 0, 2, 1, *range(15, 3, -1)])
    return x[:, order] + x


class Outer(nn.Module):
    """The outer product of two towers, or of one with itself, flattened."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both, self.a, self.b = both, nn.Linear(10, 8), nn.Linear(10, 6)
        self.last = nn.Linear(48 if both else 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(x)) if self.both else a
        return self.last((a[:, :, None] * b[:, None, :]).flatten(1))


class Factorised(nn.Module):
    """A factorisation machine: embeddings, their dot products, a linear part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(31, 14), nn.Embedding(31, 1)
        self.hidden, self.last = nn.Linear(56, 18), nn.Linear(18, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, 4] to [B, 1]."""
        v = self.embedding(ids)
        pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(-1, keepdim=True)
        return pairs + self.linear(ids).sum(1) + self.last(torch.relu(self.hidden(v.flatten(1))))


class LowRank(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.last = nn.Linear(10, 16), nn.Linear(16, 5)
        self.a, self.b = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        return self.last(torch.relu(self.base(x) + (x @ self.a.T) @ self.b.T))


class MergedLowRank(LowRank):
    """The same, added to the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        return self.last(torch.relu(F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)))


class Hypernetwork(nn.Module):
    """Weights made by another network from a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.make = nn.Linear(6, 13), nn.Linear(13, 10 * 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map [B, 10] and [B, 6] to [B, 5]."""
        weight = self.make(torch.relu(self.code(y))).view(-1, 16, 10)
        return self.last(torch.relu(torch.bmm(weight, x[:, :, None])[:, :, 0]))


class Experts(nn.Module):
    """Experts in one tensor, weighted by a softmax: the experts stay, their hidden units may go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(10, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 10, 14)), nn.Parameter(torch.randn(4, 14, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.up))
        return torch.einsum("beh,eho,be->bo", hidden, self.down, self.gate(x).softmax(-1))


class Joined(nn.Module):
    """A weight concatenated of two parameters, and one sliced in two."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.bottom = nn.Parameter(torch.randn(9, 10)), nn.Parameter(torch.randn(7, 10))
        self.wide = nn.Parameter(torch.randn(18, 16))
        self.last = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        x = torch.relu(F.linear(x, torch.cat([self.top, self.bottom])))
        halves = [F.linear(x, w) for w in (self.wide[:11], self.wide[11:])]
        return self.last(torch.tanh(torch.cat(halves, -1)))


class GraphConvolution(nn.Module):
    """Two graph convolutions with the adjacency as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map nodes [B, N, 6] and [B, N, N] to [B, 3]."""
        x = torch.relu(adjacency @ self.first(x))
        return self.last(torch.relu(adjacency @ self.second(x)).amax(1))


class GraphAttention(nn.Module):
    """Graph attention: scores are sums of two projections, over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.project = 3, nn.Linear(6, 15, bias=False)
        self.source, self.target = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3, 5))
        self.last = nn.Linear(15, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map nodes [B, N, 6] and [B, N, N] to [B, N, 4]."""
        h = self.project(x).unflatten(-1, (self.heads, -1))
        score = (h * self.source).sum(-1)[:, :, None] + (h * self.target).sum(-1)[:, None]
        score = F.leaky_relu(score, 0.2) + (1 - adjacency.sigmoid().round())[..., None] * -9.0
        return self.last(F.elu(torch.einsum("bijh,bjhd->bihd", score.softmax(2), h).flatten(2)))


class Euler(nn.Module):
    """An ordinary differential equation, five Euler steps; the time is a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.last = nn.Linear(10, 12), nn.Linear(12, 5)
        self.field = nn.Sequential(nn.Linear(13, 20), nn.Tanh(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        x = self.inlet(x)
        for step in range(5):
            time = torch.full((x.size(0), 1), step / 5, dtype=x.dtype)
            x = x + self.field(torch.cat([x, time], 1)) / 5
        return self.last(x)


class Bilinear(nn.Module):
    """nn.Bilinear on two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pair = nn.Linear(10, 8), nn.Linear(6, 7), nn.Bilinear(8, 7, 14)
        self.last = nn.Linear(14, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map [B, 10] and [B, 6] to [B, 5]."""
        return self.last(torch.relu(self.pair(torch.relu(self.a(x)), torch.relu(self.b(y)))))


class Normed(nn.Module):
    """Weight normalisation by torch's parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(10, 16))
        self.second, self.last = nn.Linear(16, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Highway(nn.Module):
    """A gate between a transformed and a copied input."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.change, self.gate, self.last = (
            nn.Linear(10, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        x = torch.relu(self.inlet(x))
        t = torch.sigmoid(self.gate(x))
        return self.last(t * torch.relu(self.change(x)) + (1 - t) * x)


def tail(width: int, classes: int = 4) -> nn.Sequential:
    """Build a perceptron whose 11 units can always go."""
    return nn.Sequential(nn.Linear(width, 11), nn.ReLU(), nn.Linear(11, classes))


class Mixed(nn.Module):
    """Features in rows and columns, each of which may go, beside features that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(10, 20), nn.Linear(10, 8), tail(28)
        self.rows, self.columns = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 4]."""
        a = torch.relu(self.a(x)).unflatten(-1, (self.rows.size(0), self.columns.size(1)))
        a = (a * self.rows * self.columns).flatten(-2)
        return self.last(torch.cat([self.b(x).softmax(-1), a], -1))


class OverTime(nn.Module):
    """A linear layer over time, whose bias makes dead features other than 0, then something over features."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.time, self.last, self.then = nn.Linear(6, 16), nn.Linear(5, 7), tail(16), then

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5, 6] to [B, 7, 4]."""
        x = self.time(torch.relu(self.first(x)).transpose(1, 2)).transpose(1, 2)
        return self.last(self.then(x))


class TimeIntoState(nn.Module):
    """Linear layers over time around a recurrent one: their units are steps, and steps must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(5, 9), nn.Linear(9, 7)
        self.rnn, self.last = nn.GRU(6, 14, batch_first=True), nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5, 6] to [B, 7, 4]."""
        x = torch.tanh(self.before(x.transpose(1, 2))).transpose(1, 2)
        return self.last(self.after(self.rnn(x)[0].transpose(1, 2)).transpose(1, 2))


class EachFeature(nn.Module):
    """A recurrent network for every feature: what is dead has a state all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each = nn.Linear(6, 12), nn.GRU(1, 3, batch_first=True)
        self.last = tail(3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5, 6] to [B, 4]."""
        rows = torch.relu(self.first(x)).transpose(1, 2).reshape(-1, x.size(1), 1)
        return self.last(self.each(rows)[0][:, -1].view(x.size(0), -1, 3).sum(1))


class DeadEnd(nn.Module):
    """An auxiliary head that is computed and dropped: it still has to run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(10, 16), nn.Linear(16, 18), nn.Linear(18, 5)
        self.auxiliary = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 10] to [B, 5]."""
        x = torch.relu(self.first(x))
        self.auxiliary(x)
        return self.last(torch.relu(self.second(x)))


TABLE, PAIR, GRAPH = (floats(B, 10),), (floats(B, 10), floats(B, 6)), (floats(B, 8, 6), floats(B, 8, 8))
SERIES = (floats(B, 5, 6),)


def row(name: str, act: Callable[[Tensor], Tensor], units: int, hidden: int = 16, read: int = 16) -> Entry:
    """List something done between two linear layers; the 18 units of the second can always go."""
    return Entry(name, lambda: Between(act, hidden, read), TABLE, outputs=("last",), units=units)


ENTRIES = (
    row("Sum over features", summed(lambda x: x.sum(-1, keepdim=True)), 34),
    row("Sum after adding 1", summed(lambda x: (x + 1).sum(-1, keepdim=True)), 18),
    row("Sum of exponentials", summed(lambda x: x.exp().sum(-1, keepdim=True)), 18),
    row("Sum of cosines", summed(lambda x: x.cos().sum(-1, keepdim=True)), 18),
    row("Mean over features", summed(lambda x: x.mean(-1, keepdim=True)), 18),
    row("Maximum over features", summed(lambda x: (x - 1).amax(-1, keepdim=True)), 18),
    row("Standard deviation over features", summed(lambda x: x.std(-1, keepdim=True)), 18),
    row("Number of features", summed(lambda x: x.sum(-1, keepdim=True) / x.size(-1)), 18),
    row("Euclidean normalisation", lambda x: F.normalize(x, dim=-1), 18),
    row("Heads divided by their root mean square", head_normed, 22),
    row("Softmax over features", lambda x: x.softmax(-1), 18),
    row("Cumulative sum over features", lambda x: x.cumsum(-1), 18),
    row("Sorted features", lambda x: x.sort(-1).values, 18),
    row("Largest features", lambda x: x.topk(6, -1).values, 18, read=6),
    row("Reversed and added", lambda x: x + x.flip(-1), 18),
    row("Rolled and added", lambda x: x + x.roll(1, -1), 18),
    row("Permuted and added", scattered, 18),
    row("First half times second half", lambda x: x[:, :8] * x[:, 8:], 18, read=8),
    row("Every second feature", lambda x: x[:, ::2], 18, read=8),
    row("Chosen features", lambda x: x[:, [0, 3, 5, 6]], 18, read=4),
    row("Maximum of pairs (maxout)", lambda x: x.unflatten(-1, (8, 2)).amax(-1), 18, read=8),
    row("Overwritten buffer", overwritten, 18),
    row("In-place addition of 1, then a sum", summed(lambda x: x.clone().add_(1).sum(-1, keepdim=True)), 18),
    row("Division by the features", lambda x: 1 / (x + 2), 18),
    row("Logarithm of the features", lambda x: torch.log1p(x), 34),
    row("Features compared with a threshold", lambda x: torch.where(x > 0.5, x, -1.0), 34),
    row("Fourier transform over features", lambda x: torch.fft.fft(x, dim=-1).real, 18),
    row("Distances to themselves", lambda x: x * torch.cdist(x, x.flip(0)).mean(), 18),
    Entry("Outer product of two layers", lambda: Outer(both=True), TABLE, outputs=("last",), units=14),
    Entry("Outer product with itself", lambda: Outer(both=False), TABLE, outputs=("last",), units=8),
    Entry("Factorisation machine", Factorised, (tokens(31, B, 4),), outputs=("last", "linear"), units=32),
    Entry("Low-rank addition", LowRank, TABLE, outputs=("last",), units=22),
    Entry("Low-rank addition to the weight", MergedLowRank, TABLE, outputs=("last",), units=22),
    Entry("Hypernetwork", Hypernetwork, PAIR, outputs=("last",), units=13),
    Entry("Experts in one tensor", Experts, TABLE, units=14),
    Entry("Concatenated and sliced weights", Joined, TABLE, outputs=("last",), units=23),
    Entry("Graph convolution", GraphConvolution, GRAPH, outputs=("last",), units=28),
    Entry("Graph attention", GraphAttention, GRAPH, outputs=("last",), units=8),
    Entry("Euler steps, time as a feature", Euler, TABLE, outputs=("last",), units=32),
    Entry("nn.Bilinear", Bilinear, PAIR, outputs=("last",), units=29),
    Entry("Weight normalisation", Normed, TABLE, outputs=("last",), units=18),
    Entry("Concatenation of pairs and whole features", Mixed, TABLE, outputs=("last.2",), units=20),
    Entry(
        "Linear over time, RMSNorm over features",
        lambda: OverTime(nn.RMSNorm(16, eps=1e-6)),
        SERIES,
        outputs=("last.2",),
        units=11,
    ),
    Entry(
        "Linear over time, sum over features",
        lambda: OverTime(summed(lambda x: x.sum(-1, keepdim=True))),
        SERIES,
        outputs=("last.2",),
        units=11,
    ),
    Entry("Linear over time, then a GRU", TimeIntoState, SERIES, outputs=("last",), units=14),
    Entry("A recurrent network for every feature", EachFeature, SERIES, outputs=("last.2",), units=11),
    Entry("Auxiliary head computed and dropped", DeadEnd, TABLE, outputs=("last", "auxiliary"), units=18),
    Entry("Highway", Highway, TABLE, outputs=("last",), units=16),
)
