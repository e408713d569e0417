"""Recurrent layers and cells: a hidden unit lives in every gate of its layer and direction.

Each layer and direction of a module has its own units.  `hidden_size` is one number for the whole module,
so all keep equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.tracing.labels import Label, concatenate, tile
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import rule
from secateur.tracing.stacked_states import stack_rows

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    hidden: Any,
    parameters: Any,
    has_biases: Any,
    num_layers: Any,
    *rest: Any,
) -> Any:
    """Run all layers and directions over a sequence."""
    if isinstance(parameters, TensorAxes) or isinstance(num_layers, float):
        return packed(propagation, out, x, hidden, parameters, has_biases)
    _, _, bidirectional, batch_first = rest
    directions = 2 if bidirectional else 1
    states = list(hidden) if isinstance(hidden, (list, tuple)) else [hidden]
    per_cell = len(parameters) // (num_layers * directions)
    if per_cell != (4 if has_biases else 2):
        return _refuse(
            propagation, out, [x, *states, *parameters], "proj_size: the projection cannot lose units yet"
        )
    batched = x.ndim == 3
    time, batch = (1, 0) if batched and batch_first else (0, 1)
    units = _units(propagation, states, num_layers * directions)
    for state in states:
        propagation.freeze(state, [0], "layers and directions")
        if state.ndim == 3:
            propagation.equate(state.labels[1], x.labels[batch])
    features = x.labels[-1]
    x = propagation.freeze(x, [time], "time steps")
    uses = x.shape[time] * (x.shape[batch] if batched else 1)
    sizes = [states[0].shape[-1]] * directions
    for i, unit in enumerate(units):
        if i and i % directions == 0:
            features = concatenate(units[i - directions : i], sizes)  # what all directions below give
        cell(propagation, parameters[i * per_cell : (i + 1) * per_cell], features, unit, uses)
    units = [propagation.algebra.normal(unit) for unit in units]
    features = propagation.algebra.normal(concatenate(units[-directions:], sizes))
    return _sequence_and_states(out, x, states, units, features)


def _units(propagation: Propagation, states: list[TensorAxes], cells: int) -> list[Label]:
    """Return the units of each layer and direction, tied by the initial states where these have values."""
    units = [propagation.algebra.label(states[0].shape[-1]) for _ in range(cells)]
    why = f"one hidden_size for all layers and directions of {propagation.module or 'the model'}"
    propagation.equal_lengths.append((tuple(units), f"{why}: {propagation.location}"))
    for state in states:
        # Zeros may lose any indices, if only their number is right.
        rows = state.rows or (state.labels[-1],) * (1 if state.all_zero else cells)
        for row, unit in zip(rows, units, strict=False):
            propagation.equate(row, unit)
    return units


def _sequence_and_states(
    out: Shapes, x: TensorAxes, states: list[TensorAxes], units: Sequence[Label], features: Label
) -> list[TensorAxes]:
    """Return the outputs of all steps and the last states; dead units are 0 if they start as 0."""
    zero = all(s.zero[-1] for s in states)
    sequence = TensorAxes(out[0], (*x.labels[:-1], features), (*(False,) * (x.ndim - 1), zero))
    finals = [
        TensorAxes(shape, (None, *s.labels[1:-1], None), (*(False,) * (len(shape) - 1), zero))
        for shape, s in zip(out[1:], states, strict=True)
    ]
    return [sequence, *(stack_rows(final, units) for final in finals)]


def cell(
    propagation: Propagation, parameters: list[TensorAxes], features: Label, unit: Label, uses: float
) -> None:
    """Tie the tensors of one cell: rows of all gates and columns of W_hh to the unit."""
    w_ih, w_hh, *biases = parameters
    gates = w_hh.shape[0] // w_hh.shape[1]
    rows = tile(unit, gates)
    for state in (w_ih, w_hh, *biases):
        propagation.equate(state.labels[0], rows)
    propagation.equate(w_hh.labels[1], unit)
    propagation.equate(w_ih.labels[1], features)
    b_ih, b_hh = biases if biases else (None, None)
    propagation.record_layer("recurrent", w_ih, 0, 1, uses, b_ih, gates=gates)
    propagation.record_layer("recurrent", w_hh, 0, 1, uses, b_hh, gates=gates, reads="state")


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def one_step(
    propagation: Propagation, out: Shapes, x: TensorAxes, hidden: Any, *parameters: TensorAxes | None
) -> Any:
    """Run one step of a cell."""
    states = list(hidden) if isinstance(hidden, (list, tuple)) else [hidden]
    unit = states[0].labels[-1]
    for other in states:
        propagation.equate(unit, other.labels[-1])
        if x.ndim == 2:
            propagation.equate(x.labels[0], other.labels[0])
    weights = [p for p in parameters if p is not None]
    unit = propagation.equate(unit, weights[1].labels[1])
    uses = x.shape[0] if x.ndim == 2 else 1
    cell(propagation, weights, x.labels[-1], unit, uses)
    unit = propagation.algebra.normal(unit)
    zero = all(s.zero[-1] for s in states)
    results = [
        TensorAxes(shape, (*x.labels[:-1], unit), (False,) * (len(shape) - 1) + (zero,)) for shape in out
    ]
    return results[0] if len(results) == 1 else results


def packed(propagation: Propagation, out: Shapes, *operands: Any) -> Any:
    """Freeze everything for packed sequences, whose rows mix batch and time."""
    flat: list[TensorAxes] = []
    for operand in operands:
        flat += [
            o
            for o in (operand if isinstance(operand, (list, tuple)) else [operand])
            if isinstance(o, TensorAxes)
        ]
    return _refuse(propagation, out, flat, "packed sequences are not followed")


def _refuse(propagation: Propagation, out: Shapes, states: list[TensorAxes], why: str) -> Any:
    for state in states:
        propagation.freeze_all(state, why)
    return [propagation.unlabelled(shape) for shape in out]
