"""Points of the program that forward passes give: what a search starts from, and ends with at its limit.

In the free form every forward pass is feasible.  In the valid form h <= s U binds: a unit at score s gives
a - (1 - s) D, so that a - D <= s (U - D) must hold.  Where the units before it raise its input a above
the nominal D, its score cannot fall below (a - D) / (U - D).  Raising the scores to that, layer after
layer, makes any scores feasible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import sparse
from scipy.special import softmax

from secateur.structures.relu_mip.chain import Affine, Float, MaxPool, ReLU
from secateur.structures.relu_mip.program import Program

__all__ = ["descend", "raise_scores", "starting_scores"]

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_ROUNDING = 1e-9
_STEPS = 60
_FIRST_STEP = 0.3

Scores = Mapping[str, Float]


def starting_scores(program: Program) -> Iterator[Scores]:
    """Yield scores to start from: without the dead units; then, with bounds that are valid, many more."""
    yield {name: (~dead).astype(float) for name, dead in program.dead.items()}
    if program.kind == "paper":
        return
    ranks = {n: np.argsort(np.argsort(a, kind="stable")) for n, a in program.activity().items()}
    for share in _SHARES:
        quietest = {n: (rank >= share * len(rank)).astype(float) for n, rank in ranks.items()}
        yield raise_scores(program, quietest)
    yield from descend(program, {n: np.ones(len(rank)) for n, rank in ranks.items()})


def raise_scores(program: Program, scores: Scores) -> Scores:
    """Return the scores, raised where the valid form needs it; those of the other forms stay.

    Example:
        >>> from secateur.structures.relu_mip import Chain, build
        >>> W = [np.ones((2, 1)), np.array([[1.0, -1.0]]), np.array([[1.0], [0.0]])]
        >>> chain = Chain.dense(W, [np.zeros(2), np.array([1.0]), np.zeros(2)])
        >>> program = build(chain, np.array([[1.0]]), np.array([0]), kind="valid")
        >>> raise_scores(program, {"layer1": np.array([1.0, 0.5]), "layer2": np.array([0.0])})["layer2"]
        array([0.5])
    """
    if program.kind != "valid":
        return scores
    raised = {name: np.asarray(s, float).copy() for name, s in scores.items()}
    h = program.x
    for number, step in enumerate(program.chain.steps):
        if not isinstance(step, ReLU):
            h = step(h)
            continue
        if step.scored:
            D, U = program.drops[number], program.caps[number]
            grown = h - D
            least = np.where(grown > _ROUNDING, grown / np.maximum(U - D, _ROUNDING), 0).max(0)
            np.maximum.at(raised[step.name], step.units, np.minimum(least, 1))
            h = h - (1 - raised[step.name][step.units]) * D
        h = np.maximum(h, 0)
    return raised


def descend(program: Program, scores: Scores) -> Iterator[Scores]:
    """Yield the points of a projected subgradient descent of objective (6) over forward passes.

    No score moves by more than 0.3 / sqrt(k) in step k.
    """
    now = {name: np.asarray(s, float) for name, s in scores.items()}
    for k in range(_STEPS):
        gradient = _gradient(program, now)
        step = _FIRST_STEP / np.sqrt(1 + k)
        # A unit's share of its layer is 1 / units: times units, layers of every width move alike.
        now = {n: np.clip(s - step * np.clip(len(s) * gradient[n], -1, 1), 0, 1) for n, s in now.items()}
        now = dict(raise_scores(program, now))
        yield now


def _gradient(program: Program, scores: Scores) -> Scores:
    """Return a subgradient of objective (6) in the scores, the values being those of a forward pass."""
    chain = program.chain
    outputs = [program.x, *chain.outputs(program.x, scores, program.drops, program.caps)]
    gradient = _sparsity_gradient(program, scores)
    labels = np.eye(chain.classes)[program.labels]
    back = program.cost[program.epigraph][:, None] * (softmax(outputs[-1], axis=1) - labels)
    for number in reversed(range(len(chain.steps))):
        step, before = chain.steps[number], outputs[number]
        if isinstance(step, Affine):
            back = np.asarray((step.W.T @ back.T).T)
        elif isinstance(step, MaxPool):
            back = _through_maximum(step, before, back)
        else:
            back = _through_relu(program, number, step, before, scores, back, gradient)
    return gradient


def _sparsity_gradient(program: Program, scores: Scores) -> dict[str, Float]:
    """Return the gradient of equation (4): of the row that is the largest."""
    first = len(program.layers)
    v = np.zeros(program.width)
    for name, columns in program.layers.items():
        v[columns] = scores[name]
    rows: sparse.csr_array = program.rows[:first]
    largest = int((program.row_lower[:first] - rows @ v).argmax())
    row = -rows[[largest]].toarray().ravel()
    return {name: row[columns].copy() for name, columns in program.layers.items()}


def _through_maximum(step: MaxPool, before: Float, back: Float) -> Float:
    """Send the gradient of every maximum to its first winner."""
    padded = np.concatenate([before, np.full((len(before), 1), -np.inf)], axis=1)
    slot = padded[:, step.windows].argmax(2)
    winner = np.take_along_axis(step.windows[None], slot[:, :, None], 2)[:, :, 0]
    sent = np.zeros_like(before)
    np.add.at(sent, (np.arange(len(before))[:, None], winner), back)
    return sent


def _through_relu(
    program: Program,
    number: int,
    step: ReLU,
    before: Float,
    scores: Scores,
    back: Float,
    gradient: dict[str, Float],
) -> Float:
    """Add what a ReLU's scores change to `gradient`; return the gradient of its input."""
    if not step.scored:
        return back * (before > 0)
    s, D, U = scores[step.name][step.units], program.drops[number], program.caps[number]
    lowered = before - (1 - s) * D
    capped = lowered > s * U + _ROUNDING
    # At score 0 a unit's a - D is 0 exactly where its input has not changed: there raising s counts.
    on = (lowered > -_ROUNDING) & ~capped
    change = np.where(capped, U, np.where(on, D, 0)) * back
    np.add.at(gradient[step.name], step.units, change.sum(0))
    return back * on
