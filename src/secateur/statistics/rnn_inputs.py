"""The inputs of the weights inside a recurrent kernel.

`torch.lstm`, `torch.gru` and `torch.rnn_*` run all layers and directions in one call.  If they run layer by
layer, the output of each layer is its hidden states h_1 ... h_T.  So the inputs of W_hh are h_0 ... h_{T-1},
or in the other direction h_2 ... h_T and the initial state, and the input of the next W_ih is the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

__all__ = ["recurrent_inputs"]


def recurrent_inputs(kernel: Callable[..., Any], *args: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a recurrent kernel layer by layer; yield each matrix with its input, features last.

    Args:
        kernel: `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`.
        *args: Its arguments: (input, states, parameters, biases, layers, dropout, training,
            bidirectional, batch_first), or for packed sequences (data, batch_sizes, states, parameters,
            biases, layers, dropout, training, bidirectional).

    Yields:
        (weight, x): every W_ih and W_hh with its input [..., features].  The matrix of a projection
        (`proj_size`) is omitted: no kernel returns its input.
    """
    sizes: Tensor | None = None
    if isinstance(args[3], (list, tuple)):
        x, sizes, states, parameters, biases, layers, _, _, bidirectional = args
        batch_first = False
    else:
        x, states, parameters, biases, layers, _, _, bidirectional, batch_first = args
    directions = 2 if bidirectional else 1
    per = len(parameters) // (layers * directions)
    for layer in range(layers):
        first = layer * directions
        weights = list(parameters[first * per : (first + directions) * per])
        start = _part(states, first, directions)
        tail = (biases, 1, 0.0, False, bidirectional)
        where = (x, start) if sizes is None else (x, sizes, start)
        rest = () if sizes is not None else (batch_first,)
        h0 = start if isinstance(start, Tensor) else start[0]
        for d in range(directions):
            yield weights[d * per], x
        # Whoever gets the inputs may change the weights: later inputs follow from what they are then.
        y, version = kernel(*where, weights, *tail, *rest)[0], _version(weights)
        for d, h in enumerate(y.chunk(directions, -1)):
            yield weights[d * per + 1], _previous(h, h0[d], sizes, batch_first, reverse=d == 1)
        changed = layer + 1 < layers and _version(weights) != version
        x = kernel(*where, weights, *tail, *rest)[0] if changed else y


def _version(weights: Sequence[Tensor]) -> int:
    """Return a number that grows whenever a weight is changed in place."""
    return sum(weight._version for weight in weights)


def _part(states: Tensor | Sequence[Tensor], first: int, count: int) -> Any:
    if isinstance(states, Tensor):
        return states[first : first + count].contiguous()
    return tuple(s[first : first + count].contiguous() for s in states)


def _previous(h: Tensor, h0: Tensor, sizes: Tensor | None, batch_first: bool, reverse: bool) -> Tensor:
    """Return the hidden states before each step, given those after it."""
    if sizes is not None:
        return _previous_packed(h, h0, sizes, reverse)
    time = 1 if batch_first else 0
    h0 = h0.unsqueeze(time)
    steps = h.shape[time]
    rest = h.narrow(time, 1 if reverse else 0, steps - 1)
    return torch.cat([rest, h0] if reverse else [h0, rest], time)


def _previous_packed(h: Tensor, h0: Tensor, sizes: Tensor, reverse: bool) -> Tensor:
    padded, lengths = pad_packed_sequence(PackedSequence(h, sizes))
    steps = torch.arange(len(padded), device=h.device)[:, None]
    lengths = lengths.to(h.device)
    starts = steps == (lengths - 1 if reverse else torch.zeros_like(lengths))
    previous = torch.where(starts[..., None], h0, padded.roll(-1 if reverse else 1, 0))
    return previous[steps < lengths]
