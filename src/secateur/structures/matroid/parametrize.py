"""Weight matrices of structured matroids, as torch parametrizations of `nn.Linear`.

Sorted parameters are a_0 = r_0, a_i = a_(i-1) + softplus(r_i).  With increasing a and b,
exp(a_i b_j) is totally positive, and so is Cauchy's 1 / (a_i + b_j) where a and b are positive; the negated
bidiagonal B exp(a b^T), B_ii = 1, B_(i+1, i) = (-1)^(i+1) 3/2, is not.  The Gaussian exp(-(a_i - b_j)^2 / 2)
is the exponential kernel with positive row and column factors, exp(-a_i^2 / 2) and exp(-b_j^2 / 2): totally
positive, and at most 1, so that it trains with many inputs where the exponential overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parametrize

__all__ = [
    "BIDIAGONAL",
    "KERNELS",
    "KernelWeight",
    "Kind",
    "cauchy",
    "draw_raw",
    "gaussian",
    "increasing",
    "negated_bidiagonal",
    "parametrize_linear",
    "tp_exponential",
]

Kind = Literal["tp_exponential", "negated_bidiagonal", "cauchy", "gaussian", "unconstrained"]

BIDIAGONAL = 1.5

# (low, high) of the first raw entry and of all others.
_EXPONENTIAL = ((0.5, 1.0), (0.2, 0.5))
_STARTS = {
    "tp_exponential": _EXPONENTIAL,
    "negated_bidiagonal": _EXPONENTIAL,
    "cauchy": ((1.0, 2.0), (0.3, 0.8)),
    "gaussian": ((-1.0, 0.0), (-3.0, -1.0)),
}


def increasing(raw: Tensor) -> Tensor:
    """Return a strictly increasing sequence: raw[0], then steps of softplus(raw[i]).

    Example:
        >>> increasing(torch.zeros(3)).diff().tolist()
        [0.693..., 0.693...]
    """
    return torch.cat([raw[:1], softplus(raw[1:])]).cumsum(0)


def tp_exponential(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(a b^T) [n, d].

    Raises:
        OverflowError: If an entry is too large for the dtype.
    """
    exponent = torch.outer(a, b)
    weight = torch.exp(exponent)
    if not torch.compiler.is_compiling() and not torch.isfinite(weight).all():
        raise OverflowError(
            f"exp(a b^T) overflows {weight.dtype}, its largest exponent being "
            f"{float(exponent.detach().max()):.4g}; use float64, fewer units, or smaller a and b"
        )
    return weight


def negated_bidiagonal(a: Tensor, b: Tensor) -> Tensor:
    """Return B exp(a b^T) [n, d] with the alternating subdiagonal of B."""
    e = tp_exponential(a, b)
    sign = torch.ones(len(a) - 1, dtype=e.dtype, device=e.device)
    sign[::2] = -1.0
    return torch.cat([e[:1], e[1:] + BIDIAGONAL * sign[:, None] * e[:-1]])


def cauchy(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 / (a_i + b_j) [n, d]."""
    return 1.0 / (a[:, None] + b[None, :])


def gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(-(a_i - b_j)^2 / 2) [n, d]."""
    return torch.exp(-0.5 * (a[:, None] - b[None, :]).square())


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tp_exponential": tp_exponential,
    "negated_bidiagonal": negated_bidiagonal,
    "cauchy": cauchy,
    "gaussian": gaussian,
}


class KernelWeight(nn.Module):
    """A parametrization weight = kernel(increasing(raw a), increasing(raw b)).

    Args:
        kind: A key of `KERNELS`.
        raw_a: Start for the rows [n].
        raw_b: Start for the columns [d].
    """

    def __init__(self, kind: str, raw_a: Tensor, raw_b: Tensor) -> None:
        """Keep the starting point until the parametrization is registered."""
        super().__init__()
        self.kind = kind
        self._start: tuple[Tensor, Tensor] | None = (raw_a, raw_b)

    def forward(self, raw_a: Tensor, raw_b: Tensor) -> Tensor:
        """Return the weight [n, d]."""
        return KERNELS[self.kind](increasing(raw_a), increasing(raw_b))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the starting point, once: not every weight has this form.

        Raises:
            ValueError: If the weight is assigned later.
        """
        if self._start is None:
            raise ValueError(f"a {self.kind} weight cannot be assigned; set its raw parameters")
        start, self._start = self._start, None
        return start[0].to(weight), start[1].to(weight)


def draw_raw(kind: Kind, size: int, generator: np.random.Generator) -> Tensor:
    """Draw the raw start of one sorted sequence, float64 [size], from the generator's stream."""
    first, others = _STARTS[kind]
    values = [generator.uniform(*first), *generator.uniform(*others, size=size - 1)]
    return torch.tensor(values, dtype=torch.float64)


def parametrize_linear(linear: nn.Linear, kind: Kind, generator: np.random.Generator) -> nn.Linear:
    """Parametrize a linear layer's weight as `kind`, in place, and return the layer.

    Args:
        linear: The layer; its bias is left alone.
        kind: ``"tp_exponential"``, ``"negated_bidiagonal"``, ``"cauchy"``, ``"gaussian"``, or
            ``"unconstrained"``, which draws the weight from N(0, 2 / d) and leaves it free.
        generator: Draws raw a, then raw b.

    Raises:
        ValueError: If the kind is unknown.
        OverflowError: If the start overflows the layer's dtype (float32 does from some 40 units on).

    Example:
        >>> layer = parametrize_linear(nn.Linear(2, 5).double(), "tp_exponential", np.random.default_rng(0))
        >>> bool((layer.weight[1:] > layer.weight[:-1]).all())
        True
    """
    if kind == "unconstrained":
        n, d = linear.weight.shape
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(generator.normal(0, np.sqrt(2.0 / d), (n, d))))
        return linear
    if kind not in KERNELS:
        raise ValueError(f"no parametrization {kind!r}; known: {', '.join((*KERNELS, 'unconstrained'))}")
    raw_a = draw_raw(kind, linear.out_features, generator)
    raw_b = draw_raw(kind, linear.in_features, generator)
    parametrize.register_parametrization(linear, "weight", KernelWeight(kind, raw_a, raw_b))
    return linear
