"""What each weight reads, against dense computation: every way a weight can read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from written_graphs import agree, moments

from secateur.core import Layer
from secateur.statistics.weight_inputs import InputHooks, WeightInput


def test_linear_over_batches_and_positions() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    xs = [torch.randn(n, 5, 4, dtype=torch.float64) for n in (7, 2)]
    layers = [Layer(n, "linear", f"{n}.weight") for n in "02"]
    found = moments(model, [(x, None) for x in xs], *layers)
    flat = torch.cat(xs).reshape(-1, 4)
    agree(found["0.weight"], flat)
    agree(found["2.weight"], F.relu(model[0](flat)))


@pytest.mark.parametrize(
    ("make", "space"),
    [
        (lambda: nn.Conv2d(3, 4, 3), (7, 6)),
        (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (9, 8)),
        (lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (7, 6)),
        (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (7, 6)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (7, 6)),
        (lambda: nn.Conv1d(3, 4, 4, padding="same", dilation=2), (11,)),
        (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (4, 5, 6)),
        (lambda: nn.Conv2d(3, 4, 1, stride=2), (7, 6)),
    ],
)
def test_convolutions_gather_their_patches(make: Callable[[], nn.Module], space: tuple[int, ...]) -> None:
    conv = make().double()
    model = nn.Sequential(conv)
    x = torch.randn(5, conv.in_channels, *space, dtype=torch.float64)
    found = moments(model, x, Layer("0", "conv", "0.weight", groups=conv.groups))["0.weight"]
    taps = int(np.prod(conv.kernel_size))
    assert found.taps == taps
    # What the patches hold must be what the convolution multiplies: y = W p for every patch.
    W = conv.weight.detach().reshape(conv.groups, conv.out_channels // conv.groups, -1)
    y = (conv(x) - conv.bias.reshape(-1, *[1] * len(space))).transpose(0, 1).reshape(conv.out_channels, -1)
    assert found.gram is not None and found.gram_mean is not None
    features = len(found.gram) // conv.groups
    for g in range(conv.groups):
        own = slice(g * features, (g + 1) * features)
        out = y[g * len(W[g]) : (g + 1) * len(W[g])]
        torch.testing.assert_close(W[g] @ found.gram[own, own] @ W[g].T, out @ out.T / out.shape[1])
        torch.testing.assert_close(W[g] @ found.gram_mean[own], out.mean(1))
    if taps > 1 and conv.padding_mode == "zeros":
        torch.testing.assert_close(found.mean, x.transpose(0, 1).reshape(x.shape[1], -1).mean(1))


def test_patches_are_those_of_unfold() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    x = torch.randn(5, 3, 8, 7, dtype=torch.float64)
    rows = F.unfold(x, 3, stride=2, padding=1).transpose(1, 2).reshape(-1, 27)
    found = moments(nn.Sequential(conv), x, Layer("0", "conv", "0.weight"))["0.weight"]
    torch.testing.assert_close(found.gram, rows.T @ rows / len(rows), rtol=1e-12, atol=1e-12)
    capped = moments(nn.Sequential(conv), x, Layer("0", "conv", "0.weight"), max_patch=26)["0.weight"]
    assert capped.taps == 1
    agree(capped, x.movedim(1, -1).reshape(-1, 3))


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_few_rows_take_the_place_of_a_gram_matrix(rows: int) -> None:
    """At most half as many as features, however they are spread over the batches."""
    model, x = nn.Sequential(nn.Linear(8, 2).double()), torch.randn(rows, 8, dtype=torch.float64)
    layer = Layer("0", "linear", "0.weight")
    found = moments(model, [(x[:2], None), (x[2:], None)], layer, roots=True)["0.weight"]
    assert (found.root is None) == (rows > 4) and (found.gram is None) == (rows <= 4)
    both = found.gram if found.root is None else found.root.T @ found.root
    torch.testing.assert_close(both, x.T @ x / rows)
    torch.testing.assert_close(found.gram_mean, x.mean(0))


def test_transposed_convolution_reads_channels() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2)).double()
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    layer = Layer("0", "conv_transpose", "0.weight", out_axis=1, in_axis=0)
    agree(moments(model, x, layer)["0.weight"], x.movedim(1, -1).reshape(-1, 3))


class Bare(nn.Module):
    """One bare weight [out, in] or [in, out], used in a way of its own."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any], *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(x, self.w)


USES: list[tuple[str, Callable[[Tensor, Tensor], Any], tuple[int, ...], int]] = [
    ("x @ w", lambda x, w: x @ w, (4, 6), 0),
    ("x @ w.t()", lambda x, w: x @ w.t(), (6, 4), 1),
    ("w.T of mm", lambda x, w: torch.mm(x.reshape(-1, 4), w.T), (6, 4), 1),
    ("w on the left", lambda x, w: w @ x.transpose(1, 2), (6, 4), 1),
    ("reflected", lambda x, w: w.__rmatmul__(x), (4, 6), 0),
    ("addmm", lambda x, w: torch.addmm(w.new_zeros(6), x.reshape(-1, 4), w), (4, 6), 0),
    ("baddbmm", lambda x, w: torch.baddbmm(w.new_zeros(1), x, w.expand(5, 4, 6)), (4, 6), 0),
    ("einsum", lambda x, w: torch.einsum("bti,oi->bto", x, w), (6, 4), 1),
    ("einsum with dots", lambda x, w: torch.einsum("io, ...i -> ...o", w, x), (4, 6), 0),
    ("functional", lambda x, w: F.linear(x, w), (6, 4), 1),
    ("chunks", lambda x, w: [F.linear(x, w.chunk(2)[0]), w[3:].shape], (6, 4), 1),
    ("select", lambda x, w: F.linear(x, w[1]), (2, 6, 4), 2),
    ("scaled", lambda x, w: F.linear(x, (w * 2.0).to(torch.float64)), (6, 4), 1),
    ("vector", lambda x, w: x @ w, (4,), 0),
    ("view", lambda x, w: F.linear(x, w.view(6, 4)), (2, 3, 4), 2),
    ("copied", lambda x, w: x @ w.transpose(0, 1).contiguous().clone(), (6, 4), 1),
]


@pytest.mark.parametrize(("use", "shape", "axis"), [u[1:] for u in USES], ids=[u[0] for u in USES])
def test_bare_parameters_are_recognised(
    use: Callable[[Tensor, Tensor], Any], shape: tuple[int, ...], axis: int
) -> None:
    model = Bare(use, *shape)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    agree(moments(model, x, Layer("", "linear", "w", in_axis=axis))["w"], x.reshape(-1, 4))


@pytest.mark.parametrize(("use", "shape", "axis"), [u[1:] for u in USES], ids=[u[0] for u in USES])
def test_what_is_read_can_be_replaced(
    use: Callable[[Tensor, Tensor], Any], shape: tuple[int, ...], axis: int
) -> None:
    model = Bare(use, *shape)
    x, z = torch.randn(5, 3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)

    def scale(read: WeightInput) -> Tensor:
        return (read.x.movedim(read.axis, -1) * z).movedim(-1, read.axis)

    with InputHooks({"w": (model.w, axis)}, scale):
        found = model(x)
    with torch.no_grad():
        model.w *= z.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    torch.testing.assert_close(found, model(x))


def test_other_uses_of_a_weight_are_no_reads() -> None:
    seen: list[WeightInput] = []
    w = torch.randn(4, 4, requires_grad=True)
    with InputHooks({"w": (w, 1)}, seen.append):
        x = torch.randn(3, 4)
        x @ w  # contracts axis 0
        torch.einsum("bi,oi->boi", x, w)  # contracts nothing
        x + w[0]
        F.embedding(torch.tensor([1]), w)
    assert not seen


def test_reused_and_tied_weights_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))

    model = Twice().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    a = torch.tanh(model.first(x))
    b = torch.tanh(model.first(a))
    layers = [Layer("first", "linear", "first.weight"), Layer("second", "linear", "first.weight")]
    agree(moments(model, x, *layers)["first.weight"], torch.cat([x, a, b]))


def test_a_weight_read_along_both_axes_has_two_keys() -> None:
    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(F.linear(x, self.w)), self.w.t())

    model, x = Auto(), torch.randn(6, 5, dtype=torch.float64)
    layers = (Layer("", "linear", "w"), Layer("", "linear", "w", out_axis=1, in_axis=0))
    found = moments(model, x, *layers)
    assert set(found) == {"w", "w[0]"}
    agree(found["w"], x)
    agree(found["w[0]"], torch.relu(x @ model.w.T))


KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": partial(nn.RNN, nonlinearity="relu"),
}


def stepwise(net: nn.RNNBase, x: Tensor, state: Any) -> dict[str, Tensor]:
    """Run one sequence [T, F] cell by cell; return the rows that each matrix reads."""
    cells = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
    rows = {}
    for layer in range(net.num_layers):
        outputs = []
        for d in range(2 if net.bidirectional else 1):
            tail = f"l{layer}{'_reverse' if d else ''}"
            options = {"nonlinearity": net.nonlinearity} if type(net) is nn.RNN else {}
            cell = cells.get(type(net).__name__, nn.RNNCell)(x.shape[1], net.hidden_size, **options).double()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(cell, name, getattr(net, f"{name}_{tail}"))
            number = layer * (2 if net.bidirectional else 1) + d
            now = tuple(s[number][None] for s in state) if isinstance(state, tuple) else state[number][None]
            before, after = [], []
            for t in range(len(x))[:: -1 if d else 1]:
                before.append(now[0] if isinstance(now, tuple) else now)
                now = cell(x[t][None], now)
                after.append(now[0] if isinstance(now, tuple) else now)
            order = 1 if d == 0 else -1
            rows[f"weight_ih_{tail}"], rows[f"weight_hh_{tail}"] = x, torch.cat(before[::order])
            outputs.append(torch.cat(after[::order]))
        x = torch.cat(outputs, 1)
    return rows


def recurrent_layers(net: nn.RNNBase) -> list[Layer]:
    names = [k for k, _ in net.named_parameters() if k.startswith("weight")]
    return [Layer("", "recurrent", k, reads="state" if "hh" in k else "input") for k in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "both", "batch_first"), [(1, False, False), (2, True, True), (3, True, False)]
)
def test_recurrent_kernels_are_replayed(kind: str, layers: int, both: bool, batch_first: bool) -> None:
    net = KINDS[kind](3, 5, layers, bidirectional=both, batch_first=batch_first).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    state = torch.randn(layers * (1 + both), 4, 5, dtype=torch.float64)
    states: Any = (state, state.flip(0)) if kind == "lstm" else state
    found = moments(net, [((x if batch_first else x.transpose(0, 1), states), None)], *recurrent_layers(net))
    own = [tuple(s[:, i] for s in states) if kind == "lstm" else states[:, i] for i in range(4)]
    parts = [stepwise(net, x[i], own[i]) for i in range(4)]
    for name in parts[0]:
        agree(found[name], torch.cat([p[name] for p in parts]))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_sequences_are_replayed(kind: str) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = KINDS[kind](3, 5, 2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.net(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))

    model = Packed().double()
    x, lengths = torch.randn(4, 6, 3, dtype=torch.float64), torch.tensor([2, 6, 1, 4])
    layers = [Layer("net", "recurrent", f"net.{layer.weight}") for layer in recurrent_layers(model.net)]
    found = moments(model, [((x, lengths), None)], *layers)
    zero = torch.zeros(4, 5, dtype=torch.float64)
    states = (zero, zero) if kind == "lstm" else zero
    parts = [stepwise(model.net, x[i, :n], states) for i, n in enumerate(lengths)]
    for name in parts[0]:
        agree(found[f"net.{name}"], torch.cat([p[name] for p in parts]))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_read_input_and_state(cell: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(3, 5)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            states = (h, h.clone()) if cell is nn.LSTMCell else h
            for t in range(x.shape[1]):
                h = states[0] if isinstance(states, tuple) else states
                self.before = torch.cat([self.before, h]) if t else h
                states = self.cell(x[:, t], states)
            return h

    model, x, h = Loop().double(), torch.randn(4, 6, 3).double(), torch.randn(4, 5).double()
    names = ("cell.weight_ih", "cell.weight_hh")
    found = moments(model, [((x, h), None)], *(Layer("cell", "recurrent", n) for n in names))
    agree(found["cell.weight_ih"], x.transpose(0, 1).reshape(-1, 3))
    with torch.no_grad():
        model(x, h)
    agree(found["cell.weight_hh"], model.before)


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_shows_its_inner_projections(batch_first: bool) -> None:
    model = nn.MultiheadAttention(6, 2, batch_first=batch_first).double()

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = model

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x, x, x)[0]

    outer, x = Call(), torch.randn(4, 5, 6, dtype=torch.float64)
    before = outer(x).detach()
    layers = [Layer("mix", "linear", n) for n in ("mix.in_proj_weight", "mix.out_proj.weight")]
    found = moments(outer, x, *layers)
    agree(found["mix.in_proj_weight"], x.reshape(-1, 6))
    # The output is a linear image of what the output projection reads.
    W, gram = model.out_proj.weight.detach(), found["mix.out_proj.weight"].gram
    y = (before - model.out_proj.bias).reshape(-1, 6).detach()
    torch.testing.assert_close(W @ gram @ W.T, y.T @ y / len(y))
    outputs: list[Tensor] = []
    with InputHooks({"w": (model.out_proj.weight, 1)}, lambda read: outputs.append(read.x)), torch.no_grad():
        assert torch.equal(outer(x), before)


def test_cross_attention_reads_queries_and_memory() -> None:
    class Cross(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.mix = nn.MultiheadAttention(6, 2, batch_first=True, **options)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.mix(x, memory, memory)[0]

    x, memory = torch.randn(4, 3, 6).double(), torch.randn(4, 5, 6).double()
    found = moments(Cross().double(), [((x, memory), None)], Layer("mix", "linear", "mix.in_proj_weight"))
    agree(found["mix.in_proj_weight"], torch.cat([t.reshape(-1, 6) for t in (x, memory, memory)]))
    memory = torch.randn(4, 5, 7).double()
    layers = [Layer("mix", "linear", f"mix.{n}_proj_weight") for n in "qkv"]
    found = moments(Cross(kdim=7, vdim=7).double(), [((x, memory), None)], *layers)
    agree(found["mix.q_proj_weight"], x.reshape(-1, 6))
    agree(found["mix.v_proj_weight"], memory.reshape(-1, 7))


def test_the_fast_path_of_the_encoder_is_off_and_comes_back() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
    x = torch.randn(3, 5, 8)
    names = [f"layers.{i}.{n}.weight" for i in range(2) for n in ("linear1", "linear2", "self_attn.out_proj")]
    found = moments(model, x, *(Layer("", "linear", n) for n in names))
    assert {k: len(m.mean) for k, m in found.items()} == dict(zip(names, (8, 12, 8, 8, 12, 8), strict=True))
    assert torch.backends.mha.get_fastpath_enabled()
