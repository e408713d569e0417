"""Recurrent cells: torch's in a Python loop, and those written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats


class CellLoop(nn.Module):
    """A cell called in a Python loop."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.last = kind(8, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, 5]."""
        h = x.new_zeros(x.size(0), self.cell.hidden_size)
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            else:
                h = self.cell(x[:, t], h)
        return self.last(h)


class StackedCells(nn.Module):
    """Two LSTM cells, one above the other, every output kept; the state starts as None."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper, self.last = nn.LSTMCell(8, 12), nn.LSTMCell(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        low = high = None
        steps = []
        for t in range(x.size(1)):
            low = self.lower(x[:, t], low)
            high = self.upper(low[0], high)
            steps.append(high[0])
        return self.last(torch.stack(steps, 1))


class ConvLSTM(nn.Module):
    """An LSTM whose gates are convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 10
        self.gates, self.last = (
            nn.Conv2d(3 + self.hidden, 4 * self.hidden, 3, padding=1),
            nn.Conv2d(self.hidden, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 3, H, W] to [B, 2, H, W]."""
        n, steps, _, height, width = x.shape
        h = c = x.new_zeros(n, self.hidden, height, width)
        for t in range(steps):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.last(h)


class ElmanByHand(nn.Module):
    """h = tanh(W x + U h), written with two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.last = nn.Linear(8, 14), nn.Linear(14, 14, bias=False), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, 5]."""
        h = torch.zeros(x.size(0), self.u.in_features, dtype=x.dtype)
        for step in x.unbind(1):
            h = torch.tanh(self.w(step) + self.u(h))
        return self.last(h)


class GRUByHand(nn.Module):
    """A gated cell whose gates share one matrix, split by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.last = nn.Linear(8, 42), nn.Linear(14, 42), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        h, out = x.new_zeros(x.size(0), self.h.in_features), []
        for t in range(x.size(1)):
            (rx, zx, nx), (rh, zh, nh) = self.x(x[:, t]).chunk(3, -1), self.h(h).chunk(3, -1)
            r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
            h = torch.lerp(torch.tanh(nx + r * nh), h, z)
            out.append(h)
        return self.last(torch.stack(out, 1))


class MinimalGated(nn.Module):
    """A gated cell on the concatenation of input and state."""

    def __init__(self) -> None:
        super().__init__()
        self.forget, self.new, self.last = nn.Linear(22, 14), nn.Linear(22, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, 5]."""
        h = x.new_zeros(x.size(0), self.forget.out_features)
        for t in range(x.size(1)):
            f = torch.sigmoid(self.forget(torch.cat([x[:, t], h], 1)))
            h = (1 - f) * h + f * torch.tanh(self.new(torch.cat([x[:, t], f * h], 1)))
        return self.last(F.relu(h))


SERIES = (floats(B, 7, 8),)
ENTRIES = (
    Entry("RNNCell in a loop", lambda: CellLoop(nn.RNNCell), SERIES, outputs=("last",), units=14),
    Entry("GRUCell in a loop", lambda: CellLoop(nn.GRUCell), SERIES, outputs=("last",), units=14),
    Entry("LSTMCell in a loop", lambda: CellLoop(nn.LSTMCell), SERIES, outputs=("last",), units=14),
    Entry("Two LSTMCells, no state given", StackedCells, SERIES, outputs=("last",), units=28),
    Entry("ConvLSTM", ConvLSTM, (floats(B, 4, 3, 6, 6),), outputs=("last",), units=10),
    Entry("Elman cell by hand", ElmanByHand, SERIES, outputs=("last",), units=14),
    Entry("GRU by hand", GRUByHand, SERIES, outputs=("last",), units=14),
    Entry("Minimal gated unit by hand", MinimalGated, SERIES, outputs=("last",), units=14),
)
