"""Recurrent layers as dynamical systems with analytic Jacobians.

The equations and the order of the gates are those of `torch.nn.RNN`, `GRU` and `LSTM`.  `D(v) M` below is the
matrix M with row i scaled by v_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core import InputError
from secateur_studies.lattice.dynamics import System

__all__ = ["GRUSystem", "LSTMSystem", "RNNSystem", "recurrent_system"]


@dataclass(frozen=True, eq=False)
class _Cell:
    """Weights of one layer and direction.

    Attributes:
        W: Input weights [gates * n, features].
        U: Recurrent weights [gates * n, n].
        b: Input bias [gates * n].
        c: Recurrent bias [gates * n].
    """

    W: Tensor
    U: Tensor
    b: Tensor
    c: Tensor

    @property
    def size(self) -> int:
        """Dimension of the state."""
        return self.U.shape[1]

    @property
    def dt(self) -> float:
        """One step."""
        return 1.0

    def driven(self, u: Tensor | None) -> Tensor:
        """Return W u + b; without an input, b."""
        return self.b if u is None else self.W @ u + self.b


@dataclass(frozen=True, eq=False)
class RNNSystem(_Cell):
    """h' = phi(W u + b + U h + c), phi = tanh or relu."""

    relu: bool = False

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return h'."""
        a = self.driven(u) + self.U @ x + self.c
        return a.relu() if self.relu else a.tanh()

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return D(phi') U."""
        h = self.step(x, u)
        slope = (h > 0).to(h) if self.relu else 1 - h * h
        return slope[:, None] * self.U


@dataclass(frozen=True, eq=False)
class GRUSystem(_Cell):
    """h' = (1 - z) n + z h with n = tanh(W_n u + b_n + r q), q = U_n h + c_n."""

    def _gates(self, x: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (wr, wz, wn), (ur, uz, q) = self.driven(u).chunk(3), (self.U @ x + self.c).chunk(3)
        r, z = (wr + ur).sigmoid(), (wz + uz).sigmoid()
        return r, z, (wn + r * q).tanh(), q

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return h'."""
        _, z, n, _ = self._gates(x, u)
        return (1 - z) * n + z * x

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return D(z) + D((h - n) z') U_z + D((1 - z) n') (D(r) U_n + D(q r') U_r)."""
        r, z, n, q = self._gates(x, u)
        Ur, Uz, Un = self.U.chunk(3)
        candidate = r[:, None] * Un + (q * r * (1 - r))[:, None] * Ur
        J = ((x - n) * z * (1 - z))[:, None] * Uz + ((1 - z) * (1 - n * n))[:, None] * candidate
        return J + torch.diag(z)


@dataclass(frozen=True, eq=False)
class LSTMSystem(_Cell):
    """State (h, c'): c' = f c + i g, h = o tanh(c'), the state being [h, c]."""

    @property
    def size(self) -> int:
        """Dimension of the state: hidden and cell."""
        return 2 * self.U.shape[1]

    def _gates(self, h: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        i, f, g, o = (self.driven(u) + self.U @ h + self.c).chunk(4)
        return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return the next [h, c]."""
        h, c = x.chunk(2)
        i, f, g, o = self._gates(h, u)
        c = f * c + i * g
        return torch.cat([o * c.tanh(), c])

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return the four blocks; dc'/dh = D(c f') U_f + D(g i') U_i + D(i g') U_g, dc'/dc = D(f)."""
        h, c = x.chunk(2)
        i, f, g, o = self._gates(h, u)
        Ui, Uf, Ug, Uo = self.U.chunk(4)
        t = (f * c + i * g).tanh()
        dc_dh = (c * f * (1 - f))[:, None] * Uf + (g * i * (1 - i))[:, None] * Ui
        dc_dh = dc_dh + (i * (1 - g * g))[:, None] * Ug
        slope = o * (1 - t * t)
        dh_dh = (t * o * (1 - o))[:, None] * Uo + slope[:, None] * dc_dh
        return torch.cat(
            [
                torch.cat([dh_dh, torch.diag(slope * f)], 1),
                torch.cat([dc_dh, torch.diag(f)], 1),
            ]
        )


def recurrent_system(module: nn.Module, layer: int = 0, reverse: bool = False) -> System:
    """Read one layer and direction of a recurrent module as a dynamical system (weights detached).

    Args:
        module: `nn.RNN`, `GRU`, `LSTM` or one of their cells.
        layer: Layer number.
        reverse: Whether to take the backward direction of a bidirectional module.

    Raises:
        InputError: If it is another module, has no such layer or direction, or a projection (`proj_size`).
    """
    kinds: list[tuple[tuple[type[nn.Module], ...], Callable[..., System]]] = [
        ((nn.LSTM, nn.LSTMCell), LSTMSystem),
        ((nn.GRU, nn.GRUCell), GRUSystem),
        ((nn.RNN, nn.RNNCell), RNNSystem),
    ]
    make = next((make for types, make in kinds if isinstance(module, types)), None)
    if make is None:
        raise InputError(f"{type(module).__name__} is not an RNN, GRU, LSTM or cell of one")
    if getattr(module, "proj_size", 0):
        raise InputError(
            f"{type(module).__name__} with proj_size={module.proj_size} has a projected state; its Jacobian "
            "is not available"
        )
    suffix = "" if isinstance(module, nn.RNNCellBase) else f"_l{layer}" + ("_reverse" if reverse else "")
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
    if f"weight_hh{suffix}" not in tensors:
        raise InputError(f"the module has no weight_hh{suffix}: no such layer or direction")
    W, U = tensors[f"weight_ih{suffix}"], tensors[f"weight_hh{suffix}"]
    b, c = (tensors.get(f"bias_{side}{suffix}", U.new_zeros(U.shape[0])) for side in ("ih", "hh"))
    options = {"relu": module.nonlinearity == "relu"} if make is RNNSystem else {}
    return make(W, U, b, c, **options)
