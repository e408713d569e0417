"""Cohen-Grossberg networks: dx_i/dt = -a_i(x_i) + sum_j w_ij f_j(x_j) + I_i.

M. Cohen and S. Grossberg, Absolute stability of global pattern formation and parallel memory storage by
competitive neural networks, IEEE Trans. SMC 13, 1983.  Here a_i(x) = d_i a(x) with d_i > 0, a and f are any
smooth functions of single elements (by default a(x) = x and f = tanh), and I_i is an affine function of the
input.  For symmetric w and rising f the energy

    V(x) = sum_i d_i (integral of a(s) f'(s) from 0 to x_i) - f(x)^T w f(x) / 2 - I^T f(x)

never increases: dV/dt = -sum_i f'(x_i) (dx_i/dt)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core import InputError, unknown

__all__ = ["CohenGrossberg", "CohenGrossbergSystem"]

Elementwise = Callable[[Tensor], Tensor]


class CohenGrossberg(nn.Module):
    """A trainable Cohen-Grossberg layer, integrated by Euler or classical Runge-Kutta steps.

    Args:
        input_size: Features of the input.
        hidden_size: Units n.
        dt: Time of a step; one step for each element of the sequence.
        method: "euler" or "rk4" (the input is held during the step).
        decay: The function a.
        activation: The function f.

    Shapes: input [batch, time, input_size] -> outputs f(x) [batch, time, n] and final x [batch, n].

    Raises:
        InputError: If a size or dt is not positive, the method is unknown, or a sequence has length 0.

    Example:
        >>> layer = CohenGrossberg(3, 5, dt=0.2)
        >>> outputs, x = layer(torch.zeros(2, 7, 3))
        >>> outputs.shape, x.shape
        (torch.Size([2, 7, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dt: float = 0.1,
        method: str = "euler",
        decay: Elementwise = torch.clone,
        activation: Elementwise = torch.tanh,
    ) -> None:
        """Draw weights as `nn.RNN` does; decays start at 1."""
        super().__init__()
        if input_size < 1 or hidden_size < 1 or not dt > 0:
            raise InputError(f"sizes and dt must be positive; got {input_size}, {hidden_size} and dt={dt}")
        if method not in ("euler", "rk4"):
            raise InputError(unknown("integration method", method, ["euler", "rk4"]))
        self.dt, self.method, self.a, self.f = dt, method, decay, activation
        bound = 1 / math.sqrt(hidden_size)
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.raw_decay = nn.Parameter(torch.full((hidden_size,), math.log(math.expm1(1.0))))

    @property
    def hidden_size(self) -> int:
        """Number of units that there are now."""
        return len(self.weight_hh)

    def rates(self) -> Tensor:
        """Return d > 0, [n]."""
        return F.softplus(self.raw_decay)

    def field(self, x: Tensor, drive: Tensor) -> Tensor:
        """Return dx/dt at x [..., n] for the drive I [..., n]."""
        return drive - self.rates() * self.a(x) + F.linear(self.f(x), self.weight_hh)

    def step(self, x: Tensor, drive: Tensor) -> Tensor:
        """Return x one step later."""
        h, k1 = self.dt, self.field(x, drive)
        if self.method == "euler":
            return x + h * k1
        k2 = self.field(x + h / 2 * k1, drive)
        k3 = self.field(x + h / 2 * k2, drive)
        k4 = self.field(x + h * k3, drive)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def forward(self, input: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integrate along the sequence from x (default 0)."""
        if input.dim() != 3 or input.shape[1] == 0:
            raise InputError(f"the input must be [batch, time >= 1, features]; got {tuple(input.shape)}")
        drives = F.linear(input, self.weight_ih, self.bias)
        x = torch.zeros_like(drives[:, 0]) if x is None else x
        outputs = []
        for drive in drives.unbind(1):
            x = self.step(x, drive)
            outputs.append(x.tanh())
        return torch.stack(outputs, 1), x

    def energy(self, x: Tensor, drive: Tensor) -> Tensor:
        """Return V(x) [...] for x [..., n]; it falls along trajectories if `weight_hh` is symmetric."""
        f = self.f(x)
        wf = F.linear(f, self.weight_hh)
        return (self.rates() * self._integral(x) - f * wf / 2 - drive * f).sum(-1)

    def _integral(self, x: Tensor) -> Tensor:
        """Integrate a(s) f'(s) from 0 to x by Gauss and Legendre's rule."""
        nodes, weights = (torch.from_numpy(part).to(x) for part in np.polynomial.legendre.leggauss(48))
        s = x[..., None] * (nodes + 1) / 2
        return x / 2 * (self.a(s) * _slope(self.f, s) * weights).sum(-1)


def _slope(function: Elementwise, x: Tensor) -> Tensor:
    """Return the derivative of a function of single elements."""
    return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


@dataclass(frozen=True, eq=False)
class CohenGrossbergSystem:
    """A layer as a dynamical system; exponents are per unit of time, the step's Jacobian is exact.

    Attributes:
        layer: The layer; its weights are read, not changed.
    """

    layer: CohenGrossberg

    @property
    def size(self) -> int:
        """Number of units."""
        return self.layer.hidden_size

    @property
    def dt(self) -> float:
        """Time of a step."""
        return self.layer.dt

    def _drive(self, u: Tensor | None) -> Tensor:
        bias = self.layer.bias.detach()
        return bias if u is None else self.layer.weight_ih.detach() @ u + bias

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return the state one step later."""
        return self.layer.step(x, self._drive(u))

    def _field_jacobian(self, x: Tensor) -> Tensor:
        gain, decay = _slope(self.layer.f, x), _slope(self.layer.a, x)
        return self.layer.weight_hh.detach() * gain - torch.diag(self.layer.rates().detach() * decay)

    def jacobian(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return 1 + h A(x) for Euler; for Runge-Kutta the same stages applied to the derivative."""
        h, one = self.layer.dt, torch.eye(self.size, dtype=x.dtype, device=x.device)
        if self.layer.method == "euler":
            return one + h * self._field_jacobian(x)
        drive, field = self._drive(u), self.layer.field
        k1 = field(x, drive)
        k2 = field(x + h / 2 * k1, drive)
        k3 = field(x + h / 2 * k2, drive)
        K1 = self._field_jacobian(x)
        K2 = self._field_jacobian(x + h / 2 * k1) @ (one + h / 2 * K1)
        K3 = self._field_jacobian(x + h / 2 * k2) @ (one + h / 2 * K2)
        K4 = self._field_jacobian(x + h * k3) @ (one + h * K3)
        return one + h / 6 * (K1 + 2 * K2 + 2 * K3 + K4)
