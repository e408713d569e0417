"""Sequence classifiers that read an image row by row: recurrent layers and a small transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core import InputError
from secateur.zoo.factory import factory

__all__ = ["RowRecurrent", "RowTransformer", "TopDown", "gru", "lstm", "top_down", "transformer"]

Cell = type[nn.LSTM] | type[nn.GRU]


class RowRecurrent(nn.Module):
    """A recurrent network over the rows of an image, and a linear layer on its last output."""

    def __init__(self, cell: Cell, side: int, hidden: int, layers: int, classes: int) -> None:
        """Build the recurrent layers and the classifier."""
        super().__init__()
        self.rnn = cell(side, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, rows, side] to [batch, classes]."""
        outputs, _ = self.rnn(x.squeeze(1))
        return self.fc(outputs[:, -1])


class TopDown(nn.Module):
    """Two recurrent layers over the rows of an image; the upper one feeds back to the lower one.

    The lower layer reads a row and the state that the upper layer had one step before.
    """

    def __init__(self, side: int, hidden: int, classes: int) -> None:
        """Build both layers, their learned first states, and the classifier."""
        super().__init__()
        self.lower, self.upper = nn.GRUCell(side + hidden, hidden), nn.GRUCell(hidden, hidden)
        self.lower_start, self.upper_start = (nn.Parameter(torch.zeros(1, hidden)) for _ in range(2))
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, rows, side] to [batch, classes]."""
        lower = self.lower_start.expand(len(x), -1)
        upper = self.upper_start.expand(len(x), -1)
        for row in x.squeeze(1).unbind(1):
            lower = self.lower(torch.cat([row, upper], 1), lower)
            upper = self.upper(lower, upper)
        return self.fc(upper)


class RowTransformer(nn.Module):
    """A transformer encoder over the rows of an image, their mean, and a linear layer."""

    def __init__(self, side: int, width: int, heads: int, layers: int, classes: int) -> None:
        """Build embedding, positions, encoder and classifier."""
        super().__init__()
        self.embed = nn.Linear(side, width)
        self.positions = nn.Parameter(0.02 * torch.randn(side, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, side, side] to [batch, classes]."""
        y = self.encoder(self.embed(x.squeeze(1)) + self.positions)
        return self.fc(self.norm(y.mean(1)))


@factory(1, 28, 28)
def lstm(
    hidden: int = 128, layers: int = 1, *, side: int = 28, classes: int = 10, seed: int = 0
) -> RowRecurrent:
    """Return an LSTM that reads an image row by row.

    Example:
        >>> lstm(hidden=32)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    return RowRecurrent(nn.LSTM, side, hidden, layers, classes)


@factory(1, 28, 28)
def gru(
    hidden: int = 128, layers: int = 1, *, side: int = 28, classes: int = 10, seed: int = 0
) -> RowRecurrent:
    """Return a GRU that reads an image row by row."""
    return RowRecurrent(nn.GRU, side, hidden, layers, classes)


@factory(1, 28, 28)
def top_down(hidden: int = 32, *, side: int = 28, classes: int = 10, seed: int = 0) -> TopDown:
    """Return two recurrent layers with top-down feedback that read an image row by row."""
    return TopDown(side, hidden, classes)


@factory(1, 28, 28)
def transformer(
    width: int = 64, heads: int = 4, layers: int = 2, *, side: int = 28, classes: int = 10, seed: int = 0
) -> RowTransformer:
    """Return a small transformer encoder whose tokens are the rows of an image."""
    if width % heads:
        raise InputError(f"width must be a multiple of heads; got {width} and {heads}")
    return RowTransformer(side, width, heads, layers, classes)
