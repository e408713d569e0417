"""Statistics as a whole: a model left as it was, only what is asked for, and bad data by name."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bank import BANK, Entry
from torch import Tensor, nn
from written_graphs import agree, moments, reading

from secateur.core import Frozen, Group, InputError, Layer, PruningGraph, Slot
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import default_loss
from secateur.statistics.relu_chain import flatten_images
from secateur.tracing.trace import trace

torch.set_default_dtype(torch.float32)


def working() -> list[Any]:
    """List the entries that work; slow ones, and two of three others, are marked slow."""
    entries = [entry for entry in BANK.values() if not entry.refused]
    return [
        pytest.param(e, id=e.name, marks=pytest.mark.slow if e.slow or e.needs or number % 3 else ())
        for number, e in enumerate(entries)
    ]


@pytest.mark.parametrize("entry", working())
def test_every_reading_weight_of_the_bank_is_seen(entry: Entry) -> None:
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        pytest.skip(f"needs {entry.needs}")
    model = entry.build()
    args, kwargs = entry.example()
    graph = trace(model, args, example_kwargs=kwargs)
    found = collect_statistics(model, graph, [(kwargs or args, None)], {"gram"}).moments
    consumers = {graph.input_key(layer) for group in graph.groups for layer, _ in graph.consumers(group)}
    for layer in graph.layers:
        if layer.in_axis is not None:
            key = graph.input_key(layer)
            width = graph.shapes[layer.weight][layer.in_axis]
            assert len(found[key].mean) in (width, width * layer.groups)
            assert (found[key].gram is not None) == (key in consumers)


def small() -> tuple[nn.Module, PruningGraph, list[Any]]:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    index = np.arange(6)[:, None]
    slots = [Slot(f"{n}", 0, index, "out") for n in ("0.weight", "0.bias")]
    slots += [Slot(f"1.{n}", 0, index, "scale") for n in ("weight", "bias", "running_mean", "running_var")]
    group = Group("0", 6, (*slots, Slot("4.weight", 1, index, "in")))
    layers = (Layer("0", "linear", "0.weight", "0.bias"), Layer("4", "linear", "4.weight", "4.bias"))
    graph = reading(model, *layers, groups=(group,))
    graph = PruningGraph(
        graph.groups,
        (Frozen("0.weight", 1, "input"),),
        layers,
        graph.shapes,
        graph.parameters,
        example_inputs=(torch.ones(2, 4),),
    )
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (5, 8)]
    return model, graph, batches


ALL = {"gram", "moments", "gradients", "taylor", "flow", "images"}


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    values = [(k, id(t), t._version, t.detach().clone(), t.requires_grad, id(t.grad)) for k, t in tensors]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [values, grads, [m.training for m in model.modules()], hooks, torch.get_rng_state()]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def without_versions(values: list[Any]) -> list[Any]:
    return [[(k, i, v, r, g) for k, i, _, v, r, g in values[0]], *values[1:]]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(fails: bool) -> None:
    model, graph, batches = small()
    default_loss(model(batches[0][0]), batches[0][1]).backward()
    model[0].bias.requires_grad_(False)
    model[3].eval()
    wrong = torch.randn(8, 5)
    before = state(model)
    if fails:
        with pytest.raises(InputError, match=r"cannot take batch 1, inputs of shapes \[\(8, 5\)\]"):
            collect_statistics(model, graph, [batches[0], (wrong, batches[1][1])], ALL)
    else:
        collect_statistics(model, graph, batches, ALL).flow({})
    assert same(without_versions(before), without_versions(state(model)))
    assert torch.get_default_dtype() == torch.float32


def test_buffers_that_a_forward_pass_changes_come_back() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Counting()
    moments(model, torch.ones(2, 3), Layer("", "linear", "weight"))
    assert model.calls == 0


def test_evaluation_mode_and_seed_decide_alone() -> None:
    model, graph, batches = small()

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + torch.randn_like(x))

    noisy = Noisy()
    layer = Layer("inner", "linear", "inner.weight")
    first, again = (moments(noisy, batches[0][0], layer, seed=3)["inner.weight"].mean for _ in range(2))
    other = moments(noisy, batches[0][0], layer, seed=4)["inner.weight"].mean
    assert torch.equal(first, again) and not torch.equal(first, other)
    x = torch.cat([b[0] for b in batches])
    with torch.no_grad():
        hidden = F.relu(model.eval()[1](model[0](x)))
    model.train()
    agree(collect_statistics(model, graph, batches, {"gram"}).moments["4.weight"], hidden)


def test_only_what_is_asked_for_is_gathered() -> None:
    model, graph, batches = small()
    nothing = collect_statistics(model, graph, None, ())
    assert (nothing.moments, nothing.gradients, nothing.taylor) == ({}, {}, {})
    assert nothing.flow is None and nothing.images is None and nothing.chain is None
    assert set(nothing.weights) == set(graph.shapes)
    assert not any(w.requires_grad for w in nothing.weights.values())
    means = collect_statistics(model, graph, batches, {"moments"}).moments
    assert {k: m.gram for k, m in means.items()} == {"0.weight": None, "4.weight": None}
    grams = collect_statistics(model, graph, batches, {"gram"}).moments
    assert [k for k, m in grams.items() if m.gram is not None] == ["4.weight"]


def test_images_are_kept_whole() -> None:
    model, graph, batches = small()
    images = collect_statistics(model, graph, batches, {"images"}).images
    assert images is not None
    assert torch.equal(images[0], torch.cat([b[0] for b in batches]))
    assert torch.equal(images[1], torch.cat([b[1] for b in batches]))


def test_the_chain_comes_from_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    graph = trace(model, torch.randn(2, 4))
    chain = collect_statistics(model, graph, None, {"chain"}).chain
    x = torch.randn(5, 4)
    np.testing.assert_allclose(chain.logits(flatten_images(x)), model(x).detach().numpy(), atol=1e-6)


def test_a_chain_needs_evaluation_mode_and_one_input() -> None:
    body = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)]
    model = nn.Sequential(*body).train()
    graph = trace(model, torch.randn(2, 1, 6, 6))
    chain = collect_statistics(model, graph, None, "chain").chain
    x = torch.randn(5, 1, 6, 6)
    assert model.training
    model.eval()
    np.testing.assert_allclose(chain.logits(flatten_images(x)), model(x).detach().numpy(), atol=1e-5)
    pair = PruningGraph((), (), (), graph.shapes, graph.parameters, example_inputs=(x, x))
    with pytest.raises(InputError, match="traced with 2"):
        collect_statistics(model, pair, None, {"chain"})


def test_keyword_inputs_and_model_outputs() -> None:
    class Output(dict):
        @property
        def logits(self) -> Tensor:
            return self["logits"]

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
            return Output(loss=None, logits=self.head(self.embed(input_ids)))

    model = Keyword()
    graph = reading(model, Layer("head", "linear", "head.weight"))
    ids = torch.randint(9, (3, 5))
    mask = torch.zeros(3, 5).masked_fill(ids > 4, -torch.inf)
    batch = ({"input_ids": ids, "attention_mask": mask}, ids)
    found = collect_statistics(model, graph, [batch], {"gradients", "moments"})
    loss = F.cross_entropy(model.head(model.embed(ids)).reshape(-1, 9), ids.reshape(-1))
    expected = torch.autograd.grad(loss, model.head.weight)[0].double()
    torch.testing.assert_close(found.gradients["head.weight"], expected)
    assert found.moments["head.weight"].count == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_agrees_with_float64(dtype: torch.dtype) -> None:
    model, graph, batches = small()
    wide = collect_statistics(model.double(), graph, batches, {"gram", "taylor", "gradients"})
    low = collect_statistics(model.to(dtype), graph, batches, {"gram", "taylor", "gradients"})
    rtol = 1e-4 if dtype is torch.float32 else 0.2
    for a, b in (
        (wide.moments["4.weight"].gram, low.moments["4.weight"].gram),
        (wide.taylor["0"], low.taylor["0"]),
        (wide.gradients["4.weight"], low.gradients["4.weight"]),
    ):
        assert b.dtype == torch.float64 and not b.requires_grad
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(a.abs().max()))


def poison(model: nn.Module, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value


@pytest.mark.parametrize(
    ("data", "needs", "message"),
    [
        (None, {"gram"}, "an iterable of"),
        ([], {"gram"}, "no batches"),
        (torch.ones(3, 4), {"moments"}, "got Tensor"),
        ([torch.ones(3, 4)], {"images"}, "batch 0 has no targets"),
        ([(torch.ones(3, 4), torch.full((3, 3), torch.nan))], {"taylor"}, "targets of batch 0 hold NaN"),
        ([(torch.ones(3, 4), torch.ones(3).long(), 1)], {"gram"}, "length 3"),
        ([("text", None)], {"gram"}, "got str"),
        ([(torch.full((3, 4), torch.nan), None)], {"gram"}, "inputs of batch 0 hold NaN"),
        ([(torch.ones(3, 5), None)], {"gram"}, r"cannot take batch 0, inputs of shapes \[\(3, 5\)\]"),
        ([(torch.ones(3, 4), torch.tensor([0, 1, 3]))], {"gradients"}, "from 0 to 2 for 3 classes; got 3"),
        ([(torch.ones(3, 4), torch.ones(3))], {"gradients"}, "pass loss="),
        ([(torch.ones(3, 4), torch.ones(2).long())], {"gradients"}, "do not belong together"),
        ([], {"grams"}, "no statistic 'grams'; did you mean 'gram'"),
        ([(torch.full((3, 4), 3e38), None)], {"gram"}, "infinite activations reach layer '4'"),
    ],
)
def test_bad_data_is_named(data: Any, needs: set[str], message: str) -> None:
    model, graph, _ = small()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    with pytest.raises(InputError, match=message):
        collect_statistics(model, graph, data, needs)


def test_bad_models_are_named() -> None:
    model, graph, batches = small()
    poison(model, "4.weight", torch.inf)
    with pytest.raises(InputError, match=r"weights of '4.weight'"):
        collect_statistics(model, graph, batches, ())
    model, graph, batches = small()
    model[1].running_mean[0] = torch.nan
    with pytest.raises(InputError, match=r"buffer '1.running_mean'"):
        collect_statistics(model, graph, batches, ())
    with pytest.raises(InputError, match=r"from another model: '0.weight'"):
        collect_statistics(nn.Sequential(nn.Linear(3, 6)), graph, batches, ())
    with pytest.raises(InputError, match=r"no weight with an input '5.weight'"):
        collect_statistics(small()[0], graph, batches, {"gram"}, grams=["5.weight"])


def test_an_overflow_in_the_loss_names_the_layer() -> None:
    model, graph, batches = small()
    poison(model, "0.weight", 3e38)
    batches = [(torch.full((3, 4), 10.0), torch.zeros(3).long())]
    with pytest.raises(InputError, match=r"in batch 0: NaN or infinite activations reach layer '4'"):
        collect_statistics(model, graph, batches, {"gradients"})


def test_a_loss_that_no_unit_changes_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    batches = [(x, torch.zeros(5, dtype=torch.long))]
    with pytest.raises(InputError, match="no unit changes the loss"):
        collect_statistics(model, trace(model, x), batches, {"taylor"}, loss=lambda y, t: y.detach().sum())
