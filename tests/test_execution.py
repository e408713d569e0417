"""A user's model is run and copied without a trace, whatever its forward pass leaves in it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.core import InputError
from secateur.execution import check_seed, duplicate, evaluating, one_at_a_time


class Remembers(nn.Module):
    """Keeps features and counts calls, as models do that people look into."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.seen: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.first(x).relu()
        self.shape = x.shape
        return self.last(self.seen)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(10) % 3
    return [(torch.randn(10, 6, generator=generator), targets) for _ in range(2)]


@pytest.mark.parametrize("method", ["activation", "taylor", "snip", "synflow"])
def test_what_a_forward_pass_leaves_does_not_stay(method: str) -> None:
    model, data = Remembers(), batches()
    result = sc.prune(model, data[0][0], sc.Units(0.5), data, method=method, repair="fold").measure(
        data, latency=True, batch_sizes=(2,)
    )
    assert model.seen is None and model.calls == 0 and not hasattr(model, "shape")
    assert result.model(data[0][0]).shape == (10, 3)


def test_modes_and_attributes_return_after_an_error() -> None:
    model = Remembers()
    with pytest.raises(RuntimeError, match="multiplied"), evaluating(model):
        model(torch.ones(2, 7))
    assert model.training and model.calls == 0


def test_a_model_that_was_run_can_be_pruned() -> None:
    model, (x, _) = Remembers(), batches()[0]
    model(x)
    kept = model.seen
    small = sc.prune(model, x, sc.Units(0.5), method="magnitude").model
    assert model.seen is kept and kept is not None and kept.grad_fn is not None
    assert small(x).shape == (10, 3) and small.seen.shape == (10, 8)


def test_weights_that_torch_masks_are_followed() -> None:
    x, _ = batches()[0]
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    result = sc.prune(model, x, sc.Units(0.5), method="magnitude")
    assert result.model[0].weight_mask.shape == (8, 6)
    torch.testing.assert_close(result.model(x), sc.mask(model, result.plan)(x))


def test_a_copy_shares_nothing_and_takes_what_stands_in() -> None:
    layer = nn.Linear(2, 2)
    layer.held = [layer(torch.ones(1, 2))]
    other = nn.Parameter(torch.zeros(2))
    copied = duplicate(layer, {id(layer.bias): other})
    assert copied.bias is other and copied.weight is not layer.weight
    assert copied.held[0].grad_fn is None and copied.held[0].equal(layer.held[0])


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "0", None, True, torch.tensor(0)])
def test_invalid_seeds(seed: object) -> None:
    with pytest.raises(InputError, match=r"from 0 to 2\*\*63 - 1; got"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int64(3)])
def test_seeds_that_can_be(seed: int) -> None:
    check_seed(seed)


@pytest.mark.parametrize("batch", [torch.ones(0, 4), torch.ones(8, 4, device="meta")])
def test_batches_without_values_are_named(batch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match=r"batch 1.*leave this batch out"):
        sc.prune(model, torch.ones(2, 4), sc.Units(0.5), [torch.rand(8, 4), batch, batch, batch])


class InPlace(nn.Module):
    """Changes its inputs, and collects what it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.seen = nn.Linear(6, 8), nn.Linear(8, 3), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.b(self.a(x.mul_(0.5).add_(1)).relu_())


def test_models_that_change_their_inputs_change_no_batch() -> None:
    torch.manual_seed(0)
    example, inputs, targets = torch.randn(4, 6), torch.randn(40, 6), torch.randint(0, 3, (40,))
    before, batch = example.clone(), inputs.clone()
    model = InPlace()
    for repair in ("fold", None):
        data = [(inputs, targets)]
        result = sc.prune(model, example, sc.Units(0.5), data, method="activation", repair=repair)
        report = result.measure(data, latency=True, batch_sizes=(1,)).report
        assert example.equal(before) and inputs.equal(batch) and model.seen == []
        for measured, network in ((report.before, model), (report.after, result.model)):
            right = (network(batch.clone()).argmax(-1) == targets).double().mean()
            assert measured.metric == pytest.approx(float(right))
        model.seen.clear()
    sc.finetune(result.model, data, teacher=model)
    assert inputs.equal(batch)


@pytest.mark.parametrize("method", ["activation", "magnitude", "spectral"])
def test_an_embedding_with_a_largest_norm_keeps_its_rows(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8, max_norm=0.5), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    rows, words = model[0].weight.detach().clone(), torch.randint(0, 20, (30, 5))
    result = sc.prune(model, words[:2], sc.Units(0.5), [words], method=method)
    small = result.model[0].weight.detach().clone()  # type: ignore[index,union-attr]
    result.measure([words], latency=True, batch_sizes=(1,))
    assert model[0].weight.equal(rows)
    assert result.model[0].weight.equal(small)  # type: ignore[index,union-attr]


def test_a_model_whose_copy_is_itself_is_refused() -> None:
    class Same(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Same:
            return self

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Same(8, 3))
    with pytest.raises(sc.SecateurError, match=r"a copy of Sequential shares its module '2'"):
        sc.prune(model, torch.randn(2, 6), sc.Units(0.5), method="magnitude")


def test_prunings_in_threads_wait_for_each_other() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).train(), torch.randn(2, 6)
    batches = [(torch.randn(60, 6), torch.randint(0, 3, (60,)))]

    def kept(method: str) -> list[int]:
        result = sc.prune(model, x, sc.Units(0.5), batches, method=method, repair="fold")
        return result.measure(batches).plan.keep["0"].tolist()

    methods = ["taylor", "activation", "random"]
    alone = {method: kept(method) for method in methods}
    found = list[tuple[str, list[int]]]()
    threads = [threading.Thread(target=lambda m=m: found.append((m, kept(m)))) for m in 2 * methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((m, alone[m]) for m in 2 * methods)
    assert torch.get_default_dtype() == torch.float32 and model.training


def test_functions_that_run_one_at_a_time_may_call_each_other() -> None:
    assert one_at_a_time(lambda x: one_at_a_time(abs)(x))(-3) == 3
