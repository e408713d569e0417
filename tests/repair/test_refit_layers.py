"""What a refit solves, layer by layer, against least squares by brute force."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from layer_kinds import KINDS, best_error
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import Plan
from secateur.core.indices import kept_indices
from secateur.repair.refit import refit
from secateur.tracing.trace import trace


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half(model: nn.Module, x: Tensor) -> tuple[Plan, nn.Module]:
    plan = oracles.half_plan(trace(model, x))
    return plan, shrink(model, plan)


def least(z: Tensor, t: Tensor, constant: bool = True) -> float:
    """Return the least mean square of V z + c - t."""
    z, t = z.detach().flatten(0, -2), t.detach().flatten(0, -2)
    design = torch.cat([z, torch.ones(len(z), 1).to(z)], 1) if constant else z
    return float((design @ torch.linalg.lstsq(design, t).solution - t).square().mean())


class Before(nn.Module):
    """Mix channels, bend them, and give them to a layer, which so reads what was removed."""

    def __init__(self, layer: nn.Module, features_last: bool) -> None:
        super().__init__()
        self.features_last = features_last
        self.first, self.layer, self.last = nn.Linear(8, 8), layer, nn.Linear(8, 2)

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the layer reads."""
        if self.features_last:
            return torch.tanh(self.first(x))
        return torch.tanh(self.first(x.movedim(1, -1))).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, mixed again if it has as many channels, so that these can go."""
        y = self.layer(self.hidden(x))
        mixed = not self.features_last and y.shape[1] == self.last.in_features
        return self.last(y.movedim(1, -1)) if mixed else y


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "transposed, grouped"])  # no unit of that can go
def test_a_layer_gets_its_best_weights(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    model, x = Before(make(8), "linear" in kind).double(), data(*shape)
    plan, small = half(model, x)
    with torch.no_grad():
        small.first.weight += 0.1 * data(*small.first.weight.shape)  # a whole group could be matched exactly
    better, notes = refit(model, small, plan, [(part, None) for part in x.split(len(x) // 2)])
    t = model.layer(model.hidden(x)).detach()
    kept = kept_indices(plan.graph, plan.keep).get("layer.weight", {})
    if 0 in kept and "transposed" not in kind:
        t = t.index_select(1, torch.from_numpy(kept[0]))
    z = better.hidden(x).detach()
    reached = float((better.layer(z) - t).detach().square().mean())
    best = best_error(better.layer, z, t)
    assert not notes["layer.weight"]["undone"]
    assert best * (1 - 1e-9) <= reached <= best * (1 + 1e-4)
    assert reached < float((small.layer(z) - t).detach().square().mean())


class Attention(nn.Module):
    """Queries, keys and values of one tensor; `written` changes it between keys and values."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written, self.first = written, nn.Linear(6, 8)
        self.q, self.k, self.v = (nn.Linear(8, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 6] to [B, T, 6]."""
        h = torch.tanh(self.first(x))
        q, k = self.q(h), self.k(h)
        if self.written:
            h.square_()
        return torch.softmax(q @ k.mT, -1) @ self.v(h)


@pytest.mark.parametrize("written", [False, True])
def test_readers_of_one_tensor_share_its_factors(written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Attention(written).double(), data(20, 5, 6)
    plan = oracles.half_plan(trace(model, x), only="first")
    small = shrink(model, plan)
    calls, cholesky = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda A: calls.append(A) or cholesky(A))
    better, _ = refit(model, small, plan, [(x, None)])
    assert len({tuple(A.flatten().tolist()) for A in calls}) == len(calls) >= 2  # no matrix twice
    h, z = torch.tanh(model.first(x)), torch.tanh(better.first(x))
    for name in "qkv":
        new, old = getattr(better, name), getattr(model, name)
        a, b = (z.square(), h.square()) if written and name == "v" else (z, h)
        best = least(a, old(b))
        assert best <= float((new(a) - old(b)).detach().square().mean()) <= best * (1 + 1e-4), name


@pytest.mark.parametrize("length", [5, 30])  # 30 is the batch: mixing up the axes would not show in shapes
def test_projections_of_multi_head_attention_are_solved(length: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.last(torch.tanh(self.attention(h, h, h, need_weights=False)[0]))

    torch.manual_seed(0)
    model, x = Block().double(), data(30, length, 6)
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [(x, None)])
    solved = {name for name, note in notes.items() if not note.get("undone", True)}
    assert {"attention.in_proj_weight", "attention.out_proj.weight", "last.weight"} == solved
    captured: list[Tensor] = []
    for net in (model, better):
        net.last.register_forward_pre_hook(lambda module, args: captured.append(args[0]))
        net(x)
    best, reached = least(captured[1], model.last(captured[0])), better.last(captured[1])
    assert float((reached - model.last(captured[0])).detach().square().mean()) <= best * (1 + 1e-4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_each_matrix_of_a_recurrent_layer_sees_those_before_it_repaired(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind).double()
    x = data(30, 6, 5)
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [(x, None)])
    for layer, (a, b) in {
        0: (model.inputs(x), better.inputs(x)),
        1: (model.middle(x), better.middle(x)),
    }.items():
        name = f"rnn.weight_ih_l{layer}"
        if notes[name].get("undone", True):
            continue
        W, V = model.get_parameter(name), better.get_parameter(name)
        kept = torch.from_numpy(kept_indices(plan.graph, plan.keep).get(name, {}).get(0, np.arange(len(W))))
        bias = f"rnn.bias_ih_l{layer}"
        t = (a @ W.mT)[..., kept] + model.get_parameter(bias)[kept]
        error = float((b @ V.mT + better.get_parameter(bias) - t).detach().square().mean())
        assert error <= least(b, t) * (1 + 1e-2), name
    assert not notes["rnn.weight_ih_l1"]["undone"] and not notes["last.weight"]["undone"]


class Recurrent(nn.Module):
    """A recurrent network of two layers between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(5, 8), kind(8, 10, 2, batch_first=True)
        self.last = nn.Linear(10, 2)

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the first recurrent layer reads."""
        return torch.tanh(self.first(x))

    def middle(self, x: Tensor) -> Tensor:
        """Return what the second recurrent layer reads."""
        one = type(self.rnn)(self.rnn.input_size, self.rnn.hidden_size, batch_first=True).to(x)
        one.load_state_dict({k: v for k, v in self.rnn.state_dict().items() if k.endswith("_l0")})
        return one(self.inputs(x))[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 5] to [B, T, 2]."""
        return self.last(self.rnn(self.inputs(x))[0])


class Shared(nn.Module):
    """A layer used twice, and a reader behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 8), nn.Linear(5, 8)
        self.shared, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def calls(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the shared layer."""
        return torch.tanh(self.one(x)), torch.tanh(self.two(x)) + 1

    def between(self, x: Tensor) -> Tensor:
        """Return what the norm reads."""
        a, b = self.calls(x)
        return torch.tanh(self.shared(a)) + torch.tanh(self.shared(b)).square()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5] to [B, 3]."""
        return self.last(torch.tanh(self.norm(self.between(x))))


def test_a_layer_that_is_called_twice_is_solved_from_both_calls_before_the_others_go_on() -> None:
    torch.manual_seed(0)
    model, x = Shared().double(), data(300, 5)
    model.norm(model.between(x))  # running statistics
    model.eval()
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [(part, None) for part in x.split(100)])
    z, t = torch.cat(better.calls(x)), model.shared(torch.cat(model.calls(x)))
    keep = kept_indices(plan.graph, plan.keep)
    t = t[:, torch.from_numpy(keep["shared.weight"][0])]
    best = least(z, t)
    assert best <= float((better.shared(z) - t).detach().square().mean()) <= best * (1 + 1e-4)
    seen, behind = better.norm(better.between(x)), model.norm(model.between(x))
    behind = behind[:, torch.from_numpy(keep["norm.weight"][0])]
    torch.testing.assert_close(seen.mean(0), behind.mean(0), rtol=0, atol=1e-5)
    last = least(torch.tanh(seen), model(x))
    assert float((better(x) - model(x)).detach().square().mean()) <= last * (1 + 1e-4)
    assert all(0 <= note["after"] <= note["before"] for note in notes.values() if "before" in note)


def test_a_convolution_without_bias_gets_its_constant_in_the_norm_behind_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4))
    model, x = model.double(), data(12, 3, 6, 6)
    for _ in range(50):
        model(x)
    model.eval()
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [(x, None)])
    z, t = small[:2](x).detach(), model(x).detach()
    layer = nn.Conv2d(4, 4, 3).double()
    scale = (model[3].weight / (model[3].running_var + model[3].eps).sqrt()).detach()[:, None, None]
    best = best_error(layer, z, t / scale)
    reached = float(((better(x) - t) / scale).detach().square().mean())
    assert not notes["2.weight"]["undone"]
    assert best * (1 - 1e-9) <= reached <= best * (1 + 1e-3)
    torch.testing.assert_close(better(x).mean((0, 2, 3)), t.mean((0, 2, 3)))


def test_statistics_of_a_norm_follow_the_change_of_its_input() -> None:
    """A known answer: what reaches the norm doubles and moves, so its statistics do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    x = data(100, 3)
    plan = oracles.half_plan(trace(model, x), only="0")
    small = shrink(model, plan)
    with torch.no_grad():
        small[0].weight.mul_(2)
        small[0].bias.mul_(2).add_(5)
    kept = torch.from_numpy(plan.keep["0"])
    better, _ = refit(model, small, plan, [(x, None)])
    m, now = model[0](x).mean(0)[kept], small[0](x).mean(0)
    assert torch.allclose(better[1].running_var, 4 * model[1].running_var[kept])
    assert torch.allclose(better[1].running_mean, now - 2 * (m - model[1].running_mean[kept]))
    again, _ = refit(model, better, plan, [(x, None)])  # renewing twice is renewing once
    assert torch.allclose(again[1].running_mean, better[1].running_mean)


class Odd(nn.Module):
    """Two readers that share a bias, an expert for some inputs, and an attribute that holds values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.expert = nn.Linear(8, 3)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor, long: Tensor | None = None) -> Tensor:
        """Map [B, 4] to [B, 3]."""
        self.hidden = torch.tanh(self.first(x))
        y = self.a(self.hidden) + torch.tanh(self.b(self.hidden))
        return y if long is None else y + self.expert(self.hidden)


def test_a_shared_bias_stays() -> None:
    torch.manual_seed(0)
    model, x = Odd().double(), data(50, 4)
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [{"x": x}])
    assert torch.equal(better.a.bias, model.a.bias) and better.a.bias is better.b.bias
    assert not notes["a.weight"]["undone"] and not notes["b.weight"]["undone"]
    z, h = torch.tanh(better.first(x)), torch.tanh(model.first(x))
    t = h @ model.a.weight.mT
    best = least(z, t, constant=False)
    assert float((z @ better.a.weight.mT - t).detach().square().mean()) <= best * (1 + 1e-4)
