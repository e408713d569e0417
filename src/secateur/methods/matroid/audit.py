"""How much of a plan depends on the order in which the units happen to stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from secateur.core import (
    Budget,
    Evidence,
    Group,
    InputError,
    IntArray,
    Moments,
    Network,
    NothingToPrune,
    Plan,
)
from secateur.methods.base import Method

__all__ = ["PermutationAudit", "permutation_audit"]


@dataclass(frozen=True, eq=False)
class PermutationAudit:
    """A plan, and the plans for the same network with its units in other orders.

    Attributes:
        plan: The plan for the units as they stand.
        permuted: Plans for random orders, in the original numbers; None where nothing could go.
        overlap: For each of them, the share of the units removed by either plan that both remove.
        value: What `measure` says of `plan`; NaN without it.
        values: What it says of the permuted plans; NaN where there is none.
    """

    plan: Plan
    permuted: tuple[Plan | None, ...]
    overlap: tuple[float, ...]
    value: float
    values: tuple[float, ...]

    @property
    def order_free(self) -> bool:
        """Whether every order gives the same plan."""
        return all(o == 1.0 for o in self.overlap)

    def summary(self) -> str:
        """Say it in a line."""
        shares = np.array(self.overlap)
        text = f"{len(shares)} orders: {shares.mean():.0%} of the removed units agree"
        text += f", at least {shares.min():.0%}"
        known = [v for v in self.values if v == v]
        if known:
            spread = f"{np.mean(known):.4g} ({min(known):.4g} to {max(known):.4g})"
            text += f"; {self.value:.4g} as the units stand, {spread} permuted"
        return text


def permutation_audit(
    method: Method,
    network: Network,
    evidence: Evidence,
    budget: Budget,
    *,
    draws: int = 20,
    seed: int = 0,
    measure: Callable[[Plan], float] | None = None,
) -> PermutationAudit:
    """Repeat a plan under random permutations of the units of every group.

    Permuting hidden units leaves the function unchanged, so that what depends on their order is an artefact.
    Weights and statistics are permuted; the plans come back in the original numbers and can be measured on
    the original model.

    Args:
        method: What decides.
        network: The traced network.
        evidence: Weights and moments.
        budget: What is asked of the method.
        draws: Number of permutations.
        seed: Their seed.
        measure: Plan -> a figure, for instance the accuracy of the shrunk model.

    Raises:
        InputError: No draws, or evidence that cannot be permuted (gradients, chain, flow).
    """
    if draws < 1:
        raise InputError(f"an audit needs at least one permutation; got draws={draws}")
    if evidence.chain is not None or evidence.flow is not None or evidence.gradients:
        raise InputError(f"{method.name!r} sees a chain, a flow or gradients, which cannot be permuted")
    plan = method.plan(network, evidence, budget)
    generator = np.random.default_rng(seed)
    permuted = []
    for _ in range(draws):
        orders = {g.name: generator.permutation(g.size) for g in network.groups if g.exact}
        permuted.append(_planned(method, network, _permuted(network, evidence, orders), budget, orders))
    figure = measure or (lambda _: float("nan"))
    values = tuple(float("nan") if p is None else figure(p) for p in permuted)
    overlap = tuple(_overlap(plan, p) for p in permuted)
    return PermutationAudit(plan, tuple(permuted), overlap, figure(plan), values)


def _planned(
    method: Method, network: Network, evidence: Evidence, budget: Budget, orders: Mapping[str, IntArray]
) -> Plan | None:
    """Plan for permuted evidence; unit u there is unit orders[u] of the original."""
    try:
        plan = method.plan(network, evidence, budget)
    except NothingToPrune:
        return None
    keep = {name: np.sort(orders[name][kept]) if name in orders else kept for name, kept in plan.keep.items()}
    return replace(plan, keep=keep, merges={}, masks={})


def _permuted(network: Network, evidence: Evidence, orders: Mapping[str, IntArray]) -> Evidence:
    weights, moments = dict(evidence.weights), dict(evidence.moments)
    for name, order in orders.items():
        group = network.group(name)
        for slot in group.slots:
            tensor = weights[slot.tensor]
            axis = _moved(slot.index, order, tensor.shape[slot.axis])
            weights[slot.tensor] = tensor.index_select(slot.axis, axis.to(tensor.device))
        for weight, index in _features(network, group).items():
            if weight in moments:
                moments[weight] = _permuted_moments(moments[weight], index, order)
    return replace(evidence, weights=weights, moments=moments)


def _features(network: Network, group: Group) -> dict[str, IntArray]:
    found = {}
    for layer, slot in network.readers(group):
        width = network.shapes[layer.weight][slot.axis]
        found[layer.weight] = np.concatenate([slot.index + g * width for g in range(layer.groups)], axis=1)
    return found


def _moved(index: IntArray, order: IntArray, size: int) -> Tensor:
    """Return the permutation of an axis in which unit u takes the place of what was unit order[u]."""
    axis = np.arange(size)
    axis[index.ravel()] = index[order].ravel()
    return torch.from_numpy(axis)


def _permuted_moments(m: Moments, index: IntArray, order: IntArray) -> Moments:
    axis = _moved(index, order, len(m.mean)).to(m.mean.device)
    wide = (axis[:, None] * m.taps + torch.arange(m.taps, device=axis.device)).flatten()
    return replace(
        m,
        mean=m.mean[axis],
        absolute=m.absolute[axis],
        second=m.second[axis],
        gram=None if m.gram is None else m.gram[wide][:, wide],
        gram_mean=None if m.gram_mean is None else m.gram_mean[wide],
    )


def _overlap(a: Plan, b: Plan | None) -> float:
    if b is None:
        return 0.0
    both = either = 0
    for name in {*a.keep, *b.keep}:
        first, second = set(a.removed(name).tolist()), set(b.removed(name).tolist())
        both, either = both + len(first & second), either + len(first | second)
    return both / either if either else 1.0
