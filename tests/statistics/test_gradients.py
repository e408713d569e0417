"""Losses, gradients, gates and synaptic flow against loops, finite differences and conservation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bank import BANK
from torch import Tensor, nn

from secateur.core import InputError, PruningGraph
from secateur.outputs import logits
from secateur.statistics.collect import collect_statistics
from secateur.statistics.gradients import SynapticFlow, gradients
from secateur.statistics.loss import default_loss
from secateur.statistics.unit_gates import Gates
from secateur.tracing.trace import trace


def mlp(*widths: int, bias: bool = True, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        parts += [nn.Linear(n_in, n_out, bias=bias), activation()]
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1], bias=bias)).double().eval()


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.net = nn.LSTM(3, 5, 2, batch_first=batch_first)
        self.head = nn.Linear(5, 4)
        self.last = (slice(None), -1) if batch_first else (-1,)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][self.last])


class Loop(nn.Module):
    """Writes states into a buffer of its own, which cannot be vectorised over examples."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.cell.hidden_size, dtype=x.dtype)
        out = torch.zeros(len(x), x.shape[1], self.cell.hidden_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out[:, t] = h
        return self.head(out.sum(1))


def conv() -> nn.Module:
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    body += [nn.Conv2d(4, 6, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    model = nn.Sequential(*body).double()
    model(torch.randn(16, 2, 6, 6, dtype=torch.float64))
    return model.eval()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.out, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(3, 6, 5, 4, activation=nn.Tanh), (7, 3)),
    "conv": (conv, (7, 2, 6, 6)),
    "lstm": (Recurrent, (7, 5, 3)),
    "loop": (Loop, (7, 5, 3)),
    "heads": (Heads, (7, 5, 6)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, PruningGraph, Tensor, Tensor]:
    make, shape = MODELS[request.param]
    model = make().double().eval()
    x = torch.randn(*shape, dtype=torch.float64)
    return model, trace(model, x), x, torch.randint(4, (len(x),))


def gated_losses(
    model: nn.Module, graph: PruningGraph, group: str, unit: int, z: float, examples: Iterable[Any]
) -> list[float]:
    """Losses of single examples when everything that reads a unit is multiplied by z, in place."""
    own = graph.group(group)
    slots = [slot for _, slot in graph.consumers(own)] or list(own.slots_with("out"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        before = {s.tensor: parameters[s.tensor].clone() for s in slots}
        for slot in slots:
            weight, index = parameters[slot.tensor], torch.from_numpy(slot.index[unit])
            weight.index_copy_(slot.axis, index, weight.index_select(slot.axis, index) * z)
        losses = [float(F.cross_entropy(model(x), y)) for x, y in examples]
        for name, value in before.items():
            parameters[name].copy_(value)
    return losses


def test_gates_are_derivatives_example_by_example(
    case: tuple[nn.Module, PruningGraph, Tensor, Tensor],
) -> None:
    model, graph, x, y = case
    found = Gates(model, graph, default_loss)((x,), {}, y)
    assert set(found) == {g.name for g in graph.groups} and found
    h = 1e-5
    examples = list(zip(x.split(1), y.split(1), strict=True))
    for group in graph.groups:
        for unit in range(group.size):
            ends = [gated_losses(model, graph, group.name, unit, z, examples) for z in (1 + h, 1 - h)]
            squares = [((a - b) / (2 * h)) ** 2 for a, b in zip(*ends, strict=True)]
            assert float(found[group.name][unit]) == pytest.approx(sum(squares), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("name", ["mlp", "conv", "heads", "loop"])
def test_one_by_one_and_vectorised_gates_agree(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make().double().eval(), torch.randn(*shape, dtype=torch.float64)
    y = torch.randint(4, (len(x),))
    gates = Gates(model, trace(model, x), default_loss)
    fast = gates((x,), {}, y)
    assert gates._batched == (name != "loop")
    gates._batched = False
    for key, slow in gates((x,), {}, y).items():
        torch.testing.assert_close(fast[key], slow, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "name",
    [
        "ResNeXt (grouped convolution)",
        "ConvTranspose2d autoencoder",
        "nn.MultiheadAttention, cross",
        "Einsum attention",
        "Grouped queries, expand",
        "Grouped 1 x 1 and channel shuffle",
    ],
)
def test_gates_on_inputs_and_on_weights_agree(name: str) -> None:
    entry = BANK[name]
    model, (args, kwargs) = entry.build(), entry.example()
    gates = Gates(model, trace(model, args, example_kwargs=kwargs), lambda o, t: logits(o).square().mean())
    fast = gates(args, kwargs, torch.zeros(entry.batch))
    assert gates._batched and fast
    gates._batched = False
    for key, slow in gates(args, kwargs, torch.zeros(entry.batch)).items():
        torch.testing.assert_close(fast[key], slow, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("steps", [4, 7])
def test_examples_are_found_on_the_second_axis(steps: int) -> None:
    model = Recurrent(batch_first=False).double().eval()
    x, y = torch.randn(steps, 7, 3, dtype=torch.float64), torch.randint(4, (7,))
    graph = trace(model, x[:, :3])
    found = Gates(model, graph, default_loss)((x,), {}, y)
    model.net.batch_first, model.last = True, (slice(None), -1)
    expected = Gates(model, graph, default_loss)((x.transpose(0, 1).contiguous(),), {}, y)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-14)


class Tokens(nn.Module):
    """A language model: every token also sees the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 11)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        mean = h.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(self.hidden(h + mean).relu())


@pytest.mark.parametrize(("batch", "tokens"), [(3, 200), (40, 12), (1, 90)])
def test_few_forward_passes_find_the_axis_of_the_examples(batch: int, tokens: int) -> None:
    model = Tokens().double().eval()
    x, y = torch.randint(11, (batch, tokens)), torch.randint(11, (batch, tokens))
    graph = trace(model, torch.zeros(2, 5, dtype=torch.int64))
    calls = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        gates = Gates(model, graph, default_loss)
        found = gates((x,), {}, y)
        assert len(calls) <= 11  # the whole, one alone, eight parts, and the gates
        calls.clear()
        gates((x,), {}, y)
        assert len(calls) == 1
    assert gates._split == (0, 0)
    exact = Gates(model, graph, default_loss)
    exact._split = (0, 0)
    assert found and all(torch.equal(value, found[name]) for name, value in exact((x,), {}, y).items())


def test_gates_need_a_loss_of_single_examples() -> None:
    model = mlp(3, 6, 4)
    x = torch.randn(5, 3, dtype=torch.float64)

    def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) < 2:
            raise ValueError("pairs are needed")
        return (outputs[:-1] * outputs[1:]).sum()

    with pytest.raises(InputError, match="one example at a time"):
        Gates(model, trace(model, x), contrastive)((x,), {}, torch.zeros(5))


def test_gradients_are_those_of_the_loss_and_leave_no_trace() -> None:
    model = mlp(3, 6, 4)
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(4, (5,))
    found = gradients(model, (x,), {}, y, default_loss)
    assert all(p.grad is None for p in model.parameters()) and not model[0].bias.requires_grad
    model[0].bias.requires_grad_(True)
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_gradients_add_up_over_batches_and_unused_ones_are_zero() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Partial().double()
    graph = trace(model, torch.randn(2, 3, dtype=torch.float64))
    batches = [(torch.randn(n, 3, dtype=torch.float64), torch.randint(4, (n,))) for n in (4, 9)]
    found = collect_statistics(model, graph, batches, {"gradients"}).gradients
    total = sum(F.cross_entropy(model(x), y) for x, y in batches)
    torch.testing.assert_close(found["used.weight"], torch.autograd.grad(total, model.used.weight)[0])
    assert not found["unused.weight"].any()


def test_a_loss_of_ones_own() -> None:
    model = mlp(3, 6, 1)
    graph = trace(model, torch.randn(2, 3, dtype=torch.float64))
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64).round()
    with pytest.raises(InputError, match="pass loss="):
        collect_statistics(model, graph, [(x, y)], {"gradients"})

    def binary(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)

    found = collect_statistics(model, graph, [(x, y)], {"gradients", "taylor"}, loss=binary)
    expected = torch.autograd.grad(binary(model(x), y), model[0].weight)[0]
    torch.testing.assert_close(found.gradients["0.weight"], expected)
    assert found.taylor["0"].shape == (6,)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, targets: outputs, "one number"),
        (lambda outputs, targets: 1.0, "one number"),
        (lambda outputs, targets: torch.zeros(()), "does not depend"),
        (lambda outputs, targets: outputs.sum() * torch.nan, "not finite"),
    ],
)
def test_losses_are_checked(loss: Any, message: str) -> None:
    model = mlp(3, 6, 4)
    graph = trace(model, torch.randn(2, 3, dtype=torch.float64))
    batch = (torch.randn(5, 3, dtype=torch.float64), torch.zeros(5).long())
    with pytest.raises(InputError, match=message):
        collect_statistics(model, graph, [batch], {"gradients"}, loss=loss)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((5, 3), (5,)), ((5, 7, 3), (5, 7)), ((5, 3, 4, 6), (5, 4, 6)), ((4, 4, 4), (4, 4))],
)
def test_cross_entropy_finds_the_classes(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    scores = torch.randn(*outputs)
    wanted = torch.randint(3, targets)
    classes = 1 if len(outputs) == 4 else -1
    log = F.log_softmax(scores, classes)
    rows = log.movedim(classes, -1).reshape(-1, log.shape[classes])
    expected = -rows[range(len(rows)), wanted.ravel()].mean()
    torch.testing.assert_close(default_loss(scores, wanted), expected)


def test_floating_targets_of_the_outputs_shape_give_the_mean_squared_error() -> None:
    outputs, targets = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(default_loss(outputs, targets), (outputs - targets).square().mean())
    with pytest.raises(InputError, match="pass loss="):
        default_loss(outputs, torch.randn(5))
    with pytest.raises(InputError, match="pass loss="):
        default_loss(outputs, {"boxes": targets})


def test_projections_estimate_the_squared_change_of_all_outputs() -> None:
    """The mean over seeds is the exact squared derivative, each output relative to its size."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.boxes, self.classes = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x).tanh()
            return 100 * self.boxes(h), self.classes(h)

    torch.manual_seed(0)
    model = Detector().double()
    x = torch.randn(6, 3, dtype=torch.float64)
    graph = trace(model, x)
    h = model.body(x).tanh()
    exact = torch.zeros(5, dtype=torch.float64)
    for layer, output in zip((model.boxes, model.classes), (100, 1), strict=True):
        scale = (output * layer(h)).square().sum()
        exact += (output * layer.weight[None] * h[:, None]).square().sum((0, 1)) / scale
    draws = [collect_statistics(model, graph, [x], {"taylor"}, seed).taylor["body"] for seed in range(300)]
    torch.testing.assert_close(torch.stack(draws).mean(0), exact.detach(), rtol=0.15, atol=0.0)
    again = collect_statistics(model, graph, [x], {"taylor"}, 7).taylor["body"]
    assert torch.equal(again, draws[7])
    found = collect_statistics(model, graph, [x], {"gradients"})
    assert found.gradients["body.weight"].abs().min() > 0


def test_a_loss_of_ones_own_needs_no_targets() -> None:
    model = mlp(3, 6, 4)
    x = torch.randn(5, 3, dtype=torch.float64)
    found = collect_statistics(
        model, trace(model, x), [x], {"taylor", "gradients"}, loss=lambda outputs, _: outputs.square().mean()
    )
    assert found.taylor["0"].min() > 0 and found.gradients["0.weight"].shape == (6, 3)


def test_logits_are_found_in_outputs() -> None:
    scores = torch.randn(2, 3)
    named = type("Output", (), {"logits": scores})()
    for outputs in (scores, named, {"other": None, "logits": scores}, (scores, None), [None, scores]):
        assert logits(outputs) is scores
    with pytest.raises(InputError, match="tuple, which holds no floating tensor"):
        logits(("text", 3))


def test_synaptic_flow_is_conserved_through_every_layer() -> None:
    model = mlp(6, 9, 7, 5, 4, bias=False)
    graph = trace(model, torch.randn(2, 6, dtype=torch.float64))
    flow = SynapticFlow(model, graph)
    masks = {"2.weight": torch.rand(7, 9) > 0.3}
    for given in ({}, masks):
        scores = flow(given)
        x = torch.ones(2, 6, dtype=torch.float64)
        for name, weight in model.named_parameters():
            mask = given.get(name, torch.ones_like(weight))
            x = x @ (weight.detach().abs() * mask).T
        for score in scores.values():
            torch.testing.assert_close(score.sum(), x.sum(), rtol=1e-12, atol=0.0)
    assert not scores["2.weight"][~masks["2.weight"]].any()
    # Neuron by neuron: what flows in flows out.
    torch.testing.assert_close(scores["0.weight"].sum(1), scores["2.weight"].sum(0), rtol=1e-12, atol=0.0)


def test_neutral_normalisation_restores_conservation() -> None:
    body = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False)]
    model = nn.Sequential(*body, nn.Flatten()).double().train()
    for _ in range(5):
        model(torch.randn(8, 2, 6, 6, dtype=torch.float64) + 1)
    with torch.no_grad():
        model[1].bias.fill_(0.5)
    flow = SynapticFlow(model, trace(model, torch.randn(2, 2, 6, 6, dtype=torch.float64)))
    trained, neutral = (
        [float(flow({}, neutral_bn=n)[f"{i}.weight"].sum()) for i in (0, 3)] for n in (False, True)
    )
    assert neutral[0] == pytest.approx(neutral[1], rel=1e-10)
    assert trained[0] != pytest.approx(trained[1], rel=1e-2)
    assert model.training and model[1].bias[0] == 0.5


def test_flow_survives_what_float32_cannot_hold() -> None:
    model = mlp(*([256] * 30), bias=False).float()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    scores = SynapticFlow(model, trace(model, torch.randn(2, 256)))({})
    # 256 inputs, 29 matrices of ones, two rows: 2 * 256^30.
    assert float(scores["0.weight"].sum()) == pytest.approx(2 * 256.0**30, rel=1e-10)


def test_flow_through_recurrent_layers_and_tokens() -> None:
    model = Recurrent().float()
    flow = SynapticFlow(model, trace(model, torch.randn(2, 5, 3)))({})
    assert flow["net.weight_hh_l1"].dtype == torch.float64 and (flow["net.weight_hh_l1"] > 0).any()
    assert float(flow["head.weight"].sum() + flow["head.bias"].sum()) > 0
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3, bias=False))
    ids = torch.tensor([[1, 2], [2, 3]])
    scores = SynapticFlow(words, trace(words, ids))({})
    assert torch.nonzero(scores["0.weight"].sum(1)).ravel().tolist() == [1, 2, 3]


def test_flow_rejects_wrong_masks_and_overflow() -> None:
    model = mlp(3, 6, 4)
    flow = SynapticFlow(model, trace(model, torch.randn(2, 3, dtype=torch.float64)))
    with pytest.raises(InputError, match=r"mask for '0.weight' of shape \(2, 2\)"):
        flow({"0.weight": torch.ones(2, 2)})
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e200)
    with pytest.raises(InputError, match="overflows float64"):
        SynapticFlow(model, trace(model, torch.randn(2, 3, dtype=torch.float64)))({})
