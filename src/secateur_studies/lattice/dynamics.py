"""Lyapunov spectra of discrete-time systems, and the norm condition for stability.

The spectrum is computed by the QR method (G. Benettin et al., Lyapunov characteristic exponents for
smooth dynamical systems, Meccanica 15, 1980): Q R = Df(x_t) Q_t; the exponents are the means of log |diag R|.
arXiv 2502.16525, Theorem III.7, concludes log L >= the largest exponent from |Df| <= L < 1; `Spectrum` has
both sides, since on trained networks the norm is usually above 1 and the condition does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.core import InputError

__all__ = ["Map", "Spectrum", "System", "autodiff_jacobian", "lyapunov_spectrum"]


class System(Protocol):
    """A map x -> f(x, u) on vectors [n], with its Jacobian in x."""

    @property
    def size(self) -> int:
        """Dimension n of the state."""
        ...

    @property
    def dt(self) -> float:
        """Time that one step covers."""
        ...

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return f(x, u), [n]."""
        ...

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return Df(x, u) in x, [n, n]."""
        ...


@dataclass(frozen=True)
class Map:
    """An autonomous map given by two functions of x.

    Attributes:
        size: Dimension of x.
        function: x -> f(x).
        derivative: x -> Df(x), [n, n]; by default automatic differentiation.
        dt: Time that one step covers.
    """

    size: int
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None = None
    dt: float = 1.0

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return f(x)."""
        return self.function(x)

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return Df(x)."""
        if self.derivative is None:
            return autodiff_jacobian(self, x, u)
        return self.derivative(x)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Lyapunov exponents of one trajectory.

    Attributes:
        exponents: The k largest, descending, in units of 1 / time, float64 [k].
        norm: Largest spectral norm of Df along the trajectory, or NaN if not requested.
        steps: Steps averaged over.
        dt: Time of a step.
        state: Final state of the trajectory [n].
    """

    exponents: Tensor
    norm: float
    steps: int
    dt: float
    state: Tensor

    @property
    def largest(self) -> float:
        """Largest exponent."""
        return float(self.exponents[0])

    @property
    def bound(self) -> float:
        """Upper bound on the exponent from the norm condition: log(norm) / dt."""
        return math.log(self.norm) / self.dt if self.norm > 0 else self.norm - math.inf

    @property
    def certified(self) -> bool:
        """Whether the norm condition proves stability on this trajectory (norm < 1)."""
        return self.norm < 1


def autodiff_jacobian(system: System, x: Tensor, u: Tensor | None = None) -> Tensor:
    """Return Df(x, u) in x by `torch.func.jacrev`: slow; it checks the analytic Jacobians."""
    return torch.func.jacrev(lambda state: system.step(state, u))(x)


@torch.no_grad()
def lyapunov_spectrum(
    system: System,
    x: Tensor,
    *,
    steps: int | None = None,
    inputs: Tensor | None = None,
    k: int | None = None,
    warmup: int = 0,
    norm: bool = False,
    seed: int = 0,
) -> Spectrum:
    """Estimate the k largest Lyapunov exponents along one trajectory.

    Args:
        system: The map and its Jacobian.
        x: Initial state [n].
        steps: Length of the trajectory, when no inputs drive it.
        inputs: Driving inputs [steps, features], one each step.
        k: Number of exponents (default: all n).
        warmup: First steps that are not averaged, for the transient and for Q to align.
        norm: Also report the largest spectral norm of Df.
        seed: Seed of the random orthogonal start.

    Raises:
        InputError: If the lengths or shapes do not fit, or the trajectory leaves the finite numbers.

    Example:
        >>> logistic = Map(1, lambda x: 4 * x * (1 - x), lambda x: (4 - 8 * x).reshape(1, 1))
        >>> spectrum = lyapunov_spectrum(logistic, torch.tensor([0.3], dtype=torch.float64), steps=2000)
        >>> abs(spectrum.largest - math.log(2)) < 0.01
        True
    """
    total = _check_lengths(system, x, steps, inputs, k, warmup)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(system.size, k or system.size, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(start)[0].to(x)
    logs = torch.zeros(Q.shape[1], dtype=torch.float64)
    largest = 0.0 if norm else math.nan
    for t in range(total):
        u = None if inputs is None else inputs[t]
        J = system.jacobian(x, u)
        Q, R = torch.linalg.qr(J @ Q)
        x = system.step(x, u)
        if t >= warmup:
            logs += R.diagonal().abs().double().log().cpu()
            if norm:
                largest = max(largest, float(torch.linalg.matrix_norm(J, ord=2)))
    if not torch.isfinite(x).all():
        raise InputError(
            f"the trajectory left the finite numbers within {total} steps: it is unstable from this start; "
            "take another initial state or a smaller dt"
        )
    exponents = (logs / ((total - warmup) * system.dt)).sort(descending=True).values
    return Spectrum(exponents, largest, total - warmup, system.dt, x)


def _check_lengths(
    system: System, x: Tensor, steps: int | None, inputs: Tensor | None, k: int | None, warmup: int
) -> int:
    if x.shape != (system.size,):
        raise InputError(f"the initial state has shape {tuple(x.shape)}; the system needs ({system.size},)")
    if (steps is None) == (inputs is None):
        raise InputError("give either `steps` (autonomous) or `inputs` [steps, features] (driven)")
    total = steps if inputs is None else len(inputs)
    if total is None or not 0 <= warmup < total:
        raise InputError(f"a trajectory of {total} steps leaves nothing after a warm-up of {warmup}")
    if k is not None and not 1 <= k <= system.size:
        raise InputError(f"k must be in 1..{system.size}, the dimension of the state; got {k}")
    return total
