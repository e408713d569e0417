"""Lyapunov spectra, Cohen-Grossberg networks and directed modularity on known answers."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from cohen_grossberg import CohenGrossberg, CohenGrossbergSystem
from sampled import sampled
from torch import nn

from secateur.core import InputError
from secateur_studies.lattice.dynamics import Map, autodiff_jacobian, lyapunov_spectrum
from secateur_studies.lattice.modularity import communities, modularity
from secateur_studies.lattice.recurrent_systems import recurrent_system

D = torch.float64


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=D)


def test_logistic_map_at_4_has_exponent_log_2():
    logistic = Map(1, lambda x: 4 * x * (1 - x), lambda x: (4 - 8 * x).reshape(1, 1))
    result = lyapunov_spectrum(logistic, vector(0.3), steps=4000)
    assert result.largest == pytest.approx(math.log(2), abs=0.005)
    at_two = Map(1, lambda x: 3.2 * x * (1 - x))
    period_2 = lyapunov_spectrum(at_two, vector(0.3), steps=500, warmup=200)
    assert period_2.largest == pytest.approx(math.log(abs(-(3.2**2) + 2 * 3.2 + 4)) / 2, abs=1e-6)


def test_henon_map_has_largest_419_and_sum_log_3_tenths():
    def henon(x):
        return torch.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    def derivative(x):
        return torch.stack([torch.stack([-2.8 * x[0], torch.ones_like(x[0])]), vector(0.3, 0)])

    result = lyapunov_spectrum(Map(2, henon, derivative), vector(0.1, 0.1), steps=8000, warmup=100)
    assert result.largest == pytest.approx(0.419, abs=0.008)
    assert float(result.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-9)
    assert not result.certified and math.isnan(result.norm)


def test_linear_rnn_has_the_logarithms_of_the_moduli_of_its_eigenvalues():
    W = torch.randn(6, 6, dtype=D, generator=torch.Generator().manual_seed(1))
    result = lyapunov_spectrum(Map(6, lambda x: W @ x, lambda x: W), torch.zeros(6, dtype=D), steps=4000)
    moduli = torch.linalg.eigvals(W).abs().log().sort(descending=True).values
    assert torch.allclose(result.exponents, moduli, atol=2e-3)
    top = lyapunov_spectrum(Map(6, lambda x: W @ x, lambda x: W), torch.zeros(6, dtype=D), steps=4000, k=2)
    assert torch.allclose(top.exponents, moduli[:2], atol=2e-3)


def test_the_norm_condition_is_sound_where_it_holds_and_says_nothing_of_many_stable_maps():
    small = 0.9 * torch.linalg.qr(torch.randn(4, 4, dtype=D))[0]
    contraction = Map(4, lambda x: small @ x, lambda x: small)
    held = lyapunov_spectrum(contraction, torch.ones(4, dtype=D), steps=50, norm=True)
    assert held.certified and held.largest <= held.bound + 1e-12
    assert held.bound == pytest.approx(math.log(0.9))
    shear = torch.tensor([[0.5, 10.0], [0.0, 0.5]], dtype=D)
    silent = lyapunov_spectrum(
        Map(2, lambda x: shear @ x, lambda x: shear), vector(1, 1), steps=3000, warmup=500, norm=True
    )
    assert silent.largest == pytest.approx(math.log(0.5), abs=2e-3)
    assert not silent.certified and silent.bound > 2.3


@pytest.mark.parametrize(
    "module",
    [
        nn.RNN(3, 7),
        nn.RNN(3, 7, nonlinearity="relu", bias=False),
        nn.GRU(3, 7),
        nn.LSTM(3, 7),
        nn.LSTMCell(3, 7),
        nn.GRUCell(3, 7),
        nn.RNNCell(3, 7),
    ],
    ids=lambda m: type(m).__name__,
)
def test_step_equals_the_module_and_jacobian_equals_automatic_differentiation(module):
    module = module.double()
    system = recurrent_system(module)
    x, u = torch.randn(system.size, dtype=D), torch.randn(3, dtype=D)
    state = x[None].chunk(2, 1) if system.size == 14 else x[None]
    if isinstance(module, nn.RNNCellBase):
        after = module(u[None], state)
        after = torch.cat(after, 1)[0] if isinstance(after, tuple) else after[0]
    else:
        lifted = tuple(s[None].contiguous() for s in state) if isinstance(state, tuple) else state[None]
        after = module(u[None, None], lifted)[1]
        after = torch.cat(after, 2)[0, 0] if isinstance(after, tuple) else after[0, 0]
    assert torch.allclose(system.step(x, u), after, atol=1e-14)
    assert torch.allclose(system.jacobian(x, u), autodiff_jacobian(system, x, u), atol=1e-13)


def test_second_layer_and_backward_direction_are_read_from_their_own_weights():
    gru = nn.GRU(3, 4, num_layers=2, bidirectional=True).double()
    system = recurrent_system(gru, layer=1, reverse=True)
    assert system.W is not None and torch.equal(system.W, gru.weight_ih_l1_reverse.detach())
    assert not system.U.requires_grad
    with pytest.raises(InputError, match="weight_hh_l2"):
        recurrent_system(gru, layer=2)
    with pytest.raises(InputError, match="proj_size"):
        recurrent_system(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(InputError, match="Linear is not an RNN"):
        recurrent_system(nn.Linear(3, 4))


def test_driven_lstm_spectrum_has_the_sum_of_log_determinants():
    system = recurrent_system(nn.LSTM(2, 5).double())
    inputs = torch.randn(40, 2, dtype=D)
    result = lyapunov_spectrum(system, torch.zeros(10, dtype=D), inputs=inputs, norm=True)
    x, total = torch.zeros(10, dtype=D), 0.0
    for u in inputs:
        total += float(torch.linalg.slogdet(system.jacobian(x, u))[1])
        x = system.step(x, u)
    assert float(result.exponents.sum()) == pytest.approx(total / 40, rel=1e-9)
    assert torch.allclose(result.state, x) and result.steps == 40
    assert result.largest <= result.bound


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "either `steps`"),
        ({"steps": 0}, "0 steps"),
        ({"inputs": torch.zeros(0, 2, dtype=D)}, "0 steps"),
        ({"steps": 5, "warmup": 5}, "warm-up of 5"),
        ({"steps": 5, "k": 9}, r"1\.\.4"),
    ],
)
def test_bad_trajectories_are_refused(options, message):
    system = recurrent_system(nn.GRU(2, 4).double())
    with pytest.raises(InputError, match=message):
        lyapunov_spectrum(system, torch.zeros(4, dtype=D), **options)
    with pytest.raises(InputError, match="shape"):
        lyapunov_spectrum(system, torch.zeros(3, dtype=D), steps=5)
    with pytest.raises(InputError, match="finite"):
        lyapunov_spectrum(Map(1, lambda x: 3 * x**3), vector(9), steps=20)


def network(weight: torch.Tensor, method: str, dt: float, **functions: Any) -> CohenGrossberg:
    layer = CohenGrossberg(1, len(weight), dt=dt, method=method, **functions).double()
    with torch.no_grad():
        layer.weight_hh.copy_(weight)
    return layer


DYNAMICS = {
    "linear decay, tanh": {},
    "cubic decay, sigmoid": {"decay": lambda x: x + x**3, "activation": torch.sigmoid},
    "sinh, softplus": {"decay": torch.sinh, "activation": nn.functional.softplus},
}


@pytest.mark.parametrize("method", sampled(["euler", "rk4"], "euler"))
@pytest.mark.parametrize("kind", ["linear decay, tanh", "cubic decay, sigmoid"])
def test_symmetric_cohen_grossberg_converges_with_falling_energy(method, kind):
    """For any decay and rising activation, as the theory says."""
    W = torch.randn(8, 8, dtype=D, generator=torch.Generator().manual_seed(3))
    layer = network(W + W.T, method, dt=0.05, **DYNAMICS[kind])
    drive = torch.randn(8, dtype=D, generator=torch.Generator().manual_seed(4))
    x, energies = torch.randn(8, dtype=D), []
    with torch.no_grad():
        for _ in range(1000):
            energies.append(float(layer.energy(x, drive)))
            x = layer.step(x, drive)
        assert max(np.diff(energies)) <= 1e-12 and energies[0] - energies[-1] > 1
        assert layer.field(x, drive).abs().max() < 1e-6
    assert lyapunov_spectrum(CohenGrossbergSystem(layer), x, steps=200).largest < 0


@pytest.mark.parametrize("kind", DYNAMICS)
def test_energy_has_the_derivative_of_the_theory(kind):
    W = torch.randn(5, 5, dtype=D)
    layer = network(W + W.T, "rk4", 0.01, **DYNAMICS[kind])
    x, drive = torch.randn(5, dtype=D, requires_grad=True), torch.randn(5, dtype=D)
    (gradient,) = torch.autograd.grad(layer.energy(x, drive), x)
    field = layer.field(x, drive)
    (slope,) = torch.autograd.grad(layer.f(x).sum(), x)
    assert torch.allclose(gradient, -slope * field, atol=1e-12)


def test_asymmetric_cohen_grossberg_runs_on_a_limit_cycle_with_exponent_0():
    layer = network(torch.tensor([[2.0, -3.0], [3.0, 2.0]], dtype=D), "rk4", 0.05)
    result = lyapunov_spectrum(CohenGrossbergSystem(layer), vector(0.1, 0), steps=1200, warmup=400)
    assert abs(result.largest) < 5e-3 and float(result.exponents[1]) < -0.1
    assert layer.field(result.state, torch.zeros(2, dtype=D)).norm() > 0.5


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("kind", DYNAMICS)
def test_cohen_grossberg_jacobian_equals_automatic_differentiation(method, kind):
    layer = CohenGrossberg(3, 6, dt=0.3, method=method, **DYNAMICS[kind])
    system = CohenGrossbergSystem(layer.double())
    x, u = torch.randn(6, dtype=D), torch.randn(3, dtype=D)
    assert torch.allclose(system.jacobian(x, u), autodiff_jacobian(system, x, u), atol=1e-13)


def test_the_exponent_is_not_continuous_in_the_threshold():
    """Arxiv 2502.16525, "Continuity of the Lyapunov exponent": f_tau jumps where tau passes a weight."""
    W, start, largest = torch.tensor([[0.5, 1.0], [1.0, 0.5]], dtype=D), vector(0.3, 0.2), []
    for tau in (0.4999, 0.5001):
        w = torch.where(W.abs() < tau, 0.0, W)
        cut = Map(
            2, lambda x, w=w: torch.tanh(w @ x), lambda x, w=w: (1 - torch.tanh(w @ x) ** 2)[:, None] * w
        )
        largest.append(lyapunov_spectrum(cut, start, steps=2000).largest)
    assert largest[0] == pytest.approx(-0.931, abs=2e-3)
    assert abs(largest[1]) < 5e-3


def test_runge_kutta_is_of_fourth_order_and_euler_of_first():
    W = torch.randn(4, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    start, errors = torch.ones(4, dtype=D), {}
    with torch.no_grad():
        truth = _integrate(network(W, "rk4", 1 / 512), start, 512)
        for method in ("euler", "rk4"):
            errors[method] = [
                float((_integrate(network(W, method, 1 / n), start, n) - truth).norm()) for n in (8, 16)
            ]
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.25)
    assert errors["rk4"][0] / errors["rk4"][1] == pytest.approx(16, rel=0.35)


def _integrate(layer: CohenGrossberg, x: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        x = layer.step(x, torch.zeros_like(x))
    return x


def test_cohen_grossberg_learns_and_refuses_what_it_cannot_take():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, 2, generator=generator)
    y = (x.sum((1, 2)) > 0).long()
    layer, head = CohenGrossberg(2, 12, dt=0.3), nn.Linear(12, 2)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(head(layer(x)[0][:, -1]), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2 and (head(layer(x)[0][:, -1]).argmax(1) == y).float().mean() > 0.95
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    with pytest.raises(InputError, match="time >= 1"):
        layer(torch.zeros(2, 0, 2))
    with pytest.raises(InputError, match="method"):
        CohenGrossberg(2, 3, method="heun")
    with pytest.raises(InputError, match="dt"):
        CohenGrossberg(2, 3, dt=0.0)


@pytest.mark.parametrize("seed", range(10))
def test_modularity_equals_networkx_and_the_double_sum(seed):
    rng = np.random.default_rng(seed)
    a = rng.random((9, 9)) * (rng.random((9, 9)) < 0.5)
    c = rng.integers(0, 3, 9)
    W, out, into = a.sum(), a.sum(1), a.sum(0)
    direct = sum(a[i, j] - out[i] * into[j] / W for i in range(9) for j in range(9) if c[i] == c[j]) / W
    classes = [set(np.flatnonzero(c == k)) for k in set(c.tolist())]
    theirs = nx.community.modularity(nx.from_numpy_array(a, create_using=nx.DiGraph), classes)
    assert modularity(a, c) == pytest.approx(direct, abs=1e-12) == pytest.approx(theirs, abs=1e-12)


def test_communities_of_two_cliques_are_found_the_same_way_twice():
    a = np.kron(np.eye(2), np.ones((5, 5))) + 0.01
    np.fill_diagonal(a, 0)
    result = communities(a, seed=1)
    assert result.tolist() == [0] * 5 + [1] * 5 == communities(a, seed=1).tolist()
    assert modularity(a, result) == pytest.approx(0.5, abs=0.02)


def test_theorem_5_is_false_removing_weak_edges_can_lower_modularity():
    a = np.zeros((6, 6))
    c = np.array([0, 0, 0, 1, 1, 1])
    a[:3, :3] = a[3:, 3:] = 1.0
    a[0, 1] = a[3, 4] = 9.0
    a[0, 3] = a[4, 1] = a[2, 5] = 1.6
    np.fill_diagonal(a, 0)
    inside, between = a[c[:, None] == c], a[c[:, None] != c]
    assert between[between > 0].mean() < inside[inside > 0].mean()
    pruned = np.where(a < 1.5, 0, a)
    assert modularity(pruned, c) < modularity(a, c) - 0.01


@pytest.mark.parametrize("a", [np.zeros((2, 3)), -np.ones((2, 2)), np.full((2, 2), np.nan), np.zeros((2, 2))])
def test_modularity_refuses_what_has_none(a):
    with pytest.raises(InputError):
        modularity(a, [0, 1])
