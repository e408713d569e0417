"""Recurrent networks: torch's layers in every arrangement."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .entry import B, Entry, Maker, floats, tokens


class Sequence(nn.Module):
    """A recurrent layer and a linear layer on its last output; input [B, T, 8] or [T, B, 8]."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        layers: int = 1,
        *,
        both: bool = False,
        first: bool = True,
        **more: object,
    ) -> None:
        super().__init__()
        self.first = first
        self.rnn = kind(8, 14, layers, bidirectional=both, batch_first=first, **more)
        self.last = nn.Linear(28 if both else 14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        y, _ = self.rnn(x)
        return self.last(y[:, -1] if self.first else y[-1])


class Everywhere(nn.Module):
    """An LSTM followed, at each step, by a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 14, batch_first=True)
        self.hidden, self.last = nn.Linear(14, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        return self.last(torch.relu(self.hidden(self.rnn(x)[0])))


class FinalState(nn.Module):
    """Reads the final hidden states of both directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(8, 14, bidirectional=True, batch_first=True)
        self.last = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        state = self.rnn(x)[1]
        h = state[0] if isinstance(state, tuple) else state
        return self.last(torch.cat([h[-2], h[-1]], 1))


class BothEnds(nn.Module):
    """Reads the last output of each direction, cut out of the outputs by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 14
        self.rnn = nn.LSTM(8, self.width, 2, bidirectional=True, batch_first=True)
        self.forth, self.back = nn.Linear(self.width, 5), nn.Linear(self.width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        y, _ = self.rnn(x)
        return self.forth(y[:, -1, : self.width]) + self.back(y[:, 0, self.width :])


class SummedDirections(nn.Module):
    """Adds the outputs of both directions, which an axis of its own counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 14, 2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        y, _ = self.rnn(x)
        return self.last(y.view(*y.shape[:2], 2, self.rnn.hidden_size).sum(2))


class Chain(nn.Module):
    """A GRU that feeds an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.GRU(8, 12, batch_first=True), nn.LSTM(12, 16, batch_first=True)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        y, _ = self.upper(torch.tanh(self.lower(x)[0]))
        return self.last(y[:, -1])


class EncoderDecoder(nn.Module):
    """The encoder's hidden state starts the decoder."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(23, 9), nn.Embedding(19, 10)
        self.encoder = kind(9, 14, layers, batch_first=True)
        self.decoder = kind(10, 14, layers, batch_first=True)
        self.last = nn.Linear(14, 19)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map ids [B, S] and [B, T] to scores [B, T, 19]."""
        _, state = self.encoder(self.source(source))
        return self.last(self.decoder(self.target(target), state)[0])


class LanguageModel(nn.Module):
    """Embedding, LSTM, projection; the output layer may be tied to the embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(29, 14)
        self.rnn, self.last = nn.LSTM(14, 18, 2, batch_first=True), nn.Linear(14, 29)
        self.project = nn.Linear(18, 14)
        if tied:
            self.last.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, T] to scores [B, T, 29]."""
        return self.last(self.project(self.rnn(self.embedding(ids))[0]))


class ConvolutionFirst(nn.Module):
    """Convolution over time, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(8, 16, 3), nn.GRU(16, 12, batch_first=True)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 8, T] to [B, 5]."""
        y, _ = self.rnn(torch.relu(self.conv(x)).transpose(1, 2))
        return self.last(y[:, -1])


class ImageRows(nn.Module):
    """A convolution whose channels and rows together feed an LSTM, column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 6, 3), nn.LSTM(36, 14, bidirectional=True)
        self.last = nn.Linear(28, 11)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 1, 8, W] to scores of each column."""
        x = torch.relu(self.conv(x))
        n, c, h, w = x.shape
        return self.last(self.rnn(x.permute(3, 0, 1, 2).reshape(w, n, c * h))[0])


class Attentive(nn.Module):
    """A bidirectional GRU summed with attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 14, bidirectional=True, batch_first=True)
        self.score, self.context, self.last = (
            nn.Linear(28, 16),
            nn.Linear(16, 1, bias=False),
            nn.Linear(28, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        y, _ = self.rnn(x)
        weight = torch.softmax(self.context(torch.tanh(self.score(y))), 1)
        return self.last((weight * y).sum(1))


class GivenState(nn.Module):
    """A learnt initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.GRU(8, 14, 2, batch_first=True), nn.Linear(14, 5)
        self.h0 = nn.Parameter(torch.randn(2, 1, 14))

    def forward(self, x: Tensor) -> Tensor:
        """Classify the sequence."""
        y, _ = self.rnn(x, self.h0.expand(-1, x.size(0), -1).contiguous())
        return self.last(y[:, -1])


class ZeroState(nn.Module):
    """Initial states written out by the user."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 14
        self.rnn, self.last = nn.LSTM(8, self.width, 2), nn.Linear(self.width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, B, 8] to [B, 5]."""
        h = torch.zeros(2, x.size(1), self.width, dtype=x.dtype, device=x.device)
        y, _ = self.rnn(x, (h, h.clone()))
        return self.last(y[-1])


class ResidualStack(nn.Module):
    """GRUs of equal width with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.last = nn.Linear(8, 14), nn.Linear(14, 5)
        self.layers = nn.ModuleList(nn.GRU(14, 14, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        x = self.inlet(x)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.last(x)


class Projected(nn.Module):
    """An LSTM with `proj_size`, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 14, proj_size=6, batch_first=True)
        self.hidden, self.last = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        return self.last(torch.relu(self.hidden(self.rnn(x)[0])))


class Packed(nn.Module):
    """Packs what it reads, and takes the mean or the largest output over the true length of each sequence."""

    def __init__(
        self, kind: type[nn.RNNBase], layers: int, both: bool, first: bool, padding: float, ordered: bool
    ) -> None:
        super().__init__()
        self.first, self.padding, self.ordered = first, padding, ordered
        self.rnn = kind(8, 14, layers, bidirectional=both, batch_first=first)
        self.last = nn.Linear(28 if both else 14, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Classify sequences [B, T, 8] or [T, B, 8] of these lengths."""
        if self.ordered:
            lengths = lengths.sort(descending=True).values
        packed = pack_padded_sequence(x, lengths, self.first, enforce_sorted=self.ordered)
        y, sizes = pad_packed_sequence(self.rnn(packed)[0], self.first, padding_value=self.padding)
        time = 1 if self.first else 0
        return self.last(y.amax(time) if self.padding else y.sum(time) / sizes[:, None])


class PackedTagger(nn.Module):
    """Classifies every element; the states of one GRU, final states included, go to another, still packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.GRU(8, 12, batch_first=True), nn.GRU(12, 12, 2, batch_first=True)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map [B, T, 8] to [B, T, 5]."""
        packed, state = self.lower(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
        y = self.upper(packed, state.repeat(2, 1, 1))[0]
        return self.last(pad_packed_sequence(y, True, total_length=x.shape[1])[0])


def lengths(most: int) -> Maker:
    """Make lengths of sequences in a batch, one of them the most."""

    def make(batch: int, generator: torch.Generator) -> Tensor:
        found = torch.randint(1, most + 1, (batch if batch else 1,), generator=generator)
        found[-1] = most
        return found

    return make


SERIES, TIME_FIRST = (floats(B, 7, 8),), (floats(7, B, 8),)
KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
ARRANGEMENTS: dict[str, tuple[dict[str, Any], tuple[Maker, ...], int]] = {
    "": ({}, SERIES, 14),
    ", 2 layers": ({"layers": 2}, SERIES, 28),
    ", bidirectional": ({"both": True}, SERIES, 28),
    ", 2 layers, bidirectional, time first": ({"layers": 2, "both": True, "first": False}, TIME_FIRST, 56),
    ", time first, without bias": ({"first": False, "bias": False}, TIME_FIRST, 14),
}
ENTRIES = (
    *(
        Entry(name + how, partial(Sequence, kind, **options), inputs, outputs=("last",), units=units)
        for how, (options, inputs, units) in ARRANGEMENTS.items()
        for name, kind in KINDS.items()
    ),
    Entry(
        "RNN, relu",
        lambda: Sequence(nn.RNN, nonlinearity="relu"),
        SERIES,
        outputs=("last",),
        units=14,
    ),
    Entry("LSTM, MLP at each step", Everywhere, SERIES, outputs=("last",), units=32),
    Entry(
        "GRU, final states of both directions",
        lambda: FinalState(nn.GRU),
        SERIES,
        outputs=("last",),
        units=28,
    ),
    Entry(
        "LSTM, final states of both directions",
        lambda: FinalState(nn.LSTM),
        SERIES,
        outputs=("last",),
        units=28,
    ),
    Entry("LSTM, directions cut apart", BothEnds, SERIES, outputs=("forth", "back"), units=56),
    Entry("GRU, directions added", SummedDirections, SERIES, outputs=("last",), units=14),
    Entry("GRU feeding LSTM", Chain, SERIES, outputs=("last",), units=28),
    Entry(
        "LSTM encoder and decoder",
        lambda: EncoderDecoder(nn.LSTM),
        (tokens(23, B, 7), tokens(19, B, 6)),
        outputs=("last",),
        units=33,
    ),
    Entry(
        "GRU encoder and decoder, 2 layers",
        lambda: EncoderDecoder(nn.GRU, 2),
        (tokens(23, B, 7), tokens(19, B, 6)),
        outputs=("last",),
        units=47,
    ),
    Entry(
        "LSTM language model",
        lambda: LanguageModel(tied=False),
        (tokens(29, B, 7),),
        outputs=("last",),
        units=64,
    ),
    Entry(
        "LSTM language model, tied",
        lambda: LanguageModel(tied=True),
        (tokens(29, B, 7),),
        outputs=("last",),
        units=50,
    ),
    Entry("Conv1d feeding GRU", ConvolutionFirst, (floats(B, 8, 11),), outputs=("last",), units=28),
    Entry("Conv2d columns feeding LSTM", ImageRows, (floats(B, 1, 8, 11),), outputs=("last",), units=34),
    Entry("Bidirectional GRU with attention", Attentive, SERIES, outputs=("last",), units=44),
    Entry("GRU, learnt initial state", GivenState, SERIES, outputs=("last",), units=14),
    Entry("LSTM, zero state written out", ZeroState, TIME_FIRST, outputs=("last",), units=28),
    Entry("Residual GRUs", ResidualStack, SERIES, outputs=("last",), units=14),
    Entry(
        "LSTM, packed sequences",
        lambda: Packed(nn.LSTM, 1, True, True, 0.0, False),
        (*SERIES, lengths(7)),
        outputs=("last",),
        units=28,
    ),
    Entry(
        "GRU, packed and sorted, time first, largest output",
        lambda: Packed(nn.GRU, 2, False, False, -torch.inf, True),
        (*TIME_FIRST, lengths(7)),
        outputs=("last",),
        units=28,
    ),
    Entry(
        "GRU feeding GRU, packed throughout",
        PackedTagger,
        (*SERIES, lengths(7)),
        outputs=("last",),
        units=12,
    ),
    Entry("LSTM with projection", Projected, SERIES, outputs=("last",), units=16),
)
