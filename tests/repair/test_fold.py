"""The fold against dense least squares, on known answers, and with its guards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Merge, Plan
from secateur.repair.fold import fold, merge
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def data(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=generator) * p[0].numel() ** -0.5)
    return model


def repaired(model: nn.Module, x: Tensor, keep: dict[str, list[int]], **more):
    graph = trace(model, x[:2])
    plan = Plan(graph, "by hand", {name: np.array(units) for name, units in keep.items()})
    statistics = collect_statistics(model, graph, [(part, None) for part in x.split(32)], {"gram"})
    small = shrink(model, plan)
    return small, *fold(model, small, plan, statistics, **more)


def test_a_linear_reader_gets_the_least_squares_weights() -> None:
    model, x = seeded(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))), data(400, 5)
    kept = [0, 2, 3, 7]
    _, result, notes = repaired(model, x, {"0": kept})
    with torch.no_grad():
        h = model[1](model[0](x))
        design = torch.cat([h[:, kept], torch.ones(400, 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(design, model(x)).solution
    # The ridge of 1e-6 of the mean variance moves the solution by about as much.
    torch.testing.assert_close(result[2].weight, best[:-1].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result[2].bias, best[-1], rtol=1e-4, atol=1e-5)
    error = float((design @ best - model(x)).square().sum() / model(x).square().sum())
    output = float(model(x).square().sum())
    total = float((model(x) - model[2].bias).square().sum())
    assert notes["2.weight"]["folded"] * total == pytest.approx(error * output, rel=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_folds_every_tap(bias: bool) -> None:
    model = seeded(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2, bias=bias))
    )
    x = data(60, 2, 8, 8)
    kept = [1, 2, 4, 5]
    small, result, _ = repaired(model, x, {"0": kept})
    with torch.no_grad():
        h = model[1](model[0](x))
        patches = nn.functional.unfold(h[:, kept], 3, stride=2).transpose(1, 2).flatten(0, 1)
        ones = torch.ones(len(patches), int(bias), dtype=torch.float64)
        target = model(x).flatten(2).transpose(1, 2).flatten(0, 1)
        best = torch.linalg.lstsq(torch.cat([patches, ones], 1), target).solution
    torch.testing.assert_close(result[2].weight.flatten(1), best[:36].T, rtol=1e-3, atol=1e-4)
    assert (result(x) - model(x)).norm() < 0.7 * (small(x) - model(x)).norm()


def test_grouped_and_transposed_convolutions_fold() -> None:
    model = seeded(
        nn.Sequential(
            nn.Conv2d(2, 8, 1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Tanh(),
            nn.ConvTranspose2d(8, 3, 2),
        )
    )
    x = data(80, 2, 7, 7)
    graph = trace(model, x[:2])
    rng = np.random.default_rng(0)
    keep = {g.name: np.sort(rng.permutation(g.size)[: g.size - 1]) for g in graph.groups}
    small, result, notes = repaired(model, x, {k: list(v) for k, v in keep.items()})
    assert (result(x) - model(x)).norm() < (small(x) - model(x)).norm()
    assert all(note["folded"] < note["plain"] for note in notes.values())


def test_dead_and_parallel_features_are_exact() -> None:
    model = seeded(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        model[0].weight[6], model[0].bias[6] = 2.5 * model[0].weight[1], 2.5 * model[0].bias[1]
        model[0].weight[7], model[0].bias[7] = 0.0, -1.0
    x = data(300, 5)
    small, result, notes = repaired(model, x, {"0": [0, 1, 2, 3, 4, 5]})
    assert (notes["2.weight"]["dead"], notes["2.weight"]["parallel"]) == (1, 1)
    torch.testing.assert_close(
        result(data(50, 5, seed=9)), model(data(50, 5, seed=9)), rtol=1e-10, atol=1e-10
    )
    assert not torch.allclose(small(x), model(x))


def test_exact_merges_of_a_plan_need_no_data_and_hold_everywhere() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3)))
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = 0.5 * model[0].weight[2], 0.5 * model[0].bias[2]
        model[0].weight[3], model[0].bias[3] = 0.0, 1.5
    x = data(10, 2, 6, 6)
    merged = Merge(np.array([3, 4]), np.array([2]), np.array([[0.0], [0.5]]), np.array([1.5, 0.0]))
    plan = Plan(trace(model, x), "rows", {"0": np.array([0, 1, 2])}, merges={"0": merged})
    result = merge(model, shrink(model, plan), plan)
    torch.testing.assert_close(result(x), model(x), rtol=1e-12, atol=1e-12)


def test_recurrent_and_attention_readers_fold() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 12, batch_first=True)
            self.mha = nn.MultiheadAttention(12, 4, batch_first=True)
            self.out = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.rnn(x)[0]
            return self.out(y + self.mha(y, y, y)[0])

    model, x = seeded(Net()), data(200, 6, 4)
    graph = trace(model, x[:2])
    heads = next(g for g in graph.groups if "mha" in g.name)
    rng = np.random.default_rng(1)
    keep = {g.name: np.sort(rng.permutation(g.size)[: g.size - 1 if g is heads else 9]) for g in graph.groups}
    small, result, notes = repaired(model, x, {k: list(v) for k, v in keep.items()})
    assert {"rnn.weight_hh_l0", "mha.out_proj.weight", "out.weight"} <= set(notes)
    assert (result(x) - model(x)).norm() < (small(x) - model(x)).norm()


def test_held_out_batches_choose_the_ridge() -> None:
    """Fewer samples than features: the fit is perfect on the calibration batch and wrong elsewhere."""
    model, x = seeded(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))), data(12, 6)
    graph, other = trace(model, x[:2]), data(500, 6, seed=5)
    held = collect_statistics(model, graph, [(other, None)], {"gram"})
    small, free, loose = repaired(model, x, {"0": list(range(20))})
    _, result, notes = repaired(model, x, {"0": list(range(20))}, guard=held)
    assert loose["2.weight"]["folded"] < 1e-3 and loose["2.weight"]["ridge"] == 1e-6
    assert notes["2.weight"]["ridge"] > 1e-6 and not notes["2.weight"]["undone"]
    far = [float((m(other) - model(other)).norm()) for m in (result, free, small)]
    assert far[0] < min(far[1:])


def test_a_fold_that_hurts_on_held_out_batches_is_undone() -> None:
    """Two units that are equal on the calibration data, and not on the held-out data."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.ones(1, 2))
    x = data(50, 1).abs().repeat(1, 2)
    apart = x * torch.tensor([1.0, 0.1]).double()
    held = collect_statistics(model, trace(model, x[:2]), [(apart, None)], {"gram"})
    small, result, notes = repaired(model, x, {"0": [0]}, guard=held)
    assert notes["2.weight"]["undone"] and "kept apart" in notes["2.weight"]["why"]
    assert torch.equal(result[2].weight, small[2].weight)


def test_a_judge_takes_back_what_brings_the_model_no_nearer() -> None:
    model, x = seeded(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))), data(400, 5)
    small, result, notes = repaired(model, x, {"0": [0, 2, 3, 7]}, judge=lambda m: float(m[2].weight.norm()))
    refused = float(result[2].weight.norm()) == float(small[2].weight.norm())
    assert refused == notes["2.weight"]["undone"]
    _, _, notes = repaired(model, x, {"0": [0, 2, 3, 7]}, judge=lambda m: -1.0 if m is None else 1.0)
    assert notes["2.weight"]["undone"] and notes["2.weight"]["why"]


def test_inputs_are_left_alone_and_missing_evidence_is_said() -> None:
    model, x = seeded(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))), data(100, 5)
    plan = Plan(trace(model, x[:2]), "by hand", {"0": np.arange(4)})
    small = shrink(model, plan)
    before = copy.deepcopy(small.state_dict())
    statistics = collect_statistics(model, plan.graph, [(x, None)], {"gram"})
    fold(model, small, plan, statistics)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), small.state_dict().values(), strict=True))
    with pytest.raises(InputError, match=r"2\.weight.*collect with 'gram'"):
        fold(model, small, plan, collect_statistics(model, plan.graph, [(x, None)], {"moments"}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_fold_in_float64(dtype) -> None:
    model = seeded(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))).to(dtype)
    x = data(400, 5).to(dtype)
    small, result, _ = repaired(model, x, {"0": [0, 2, 3, 7, 8]})
    assert result[2].weight.dtype == dtype
    assert (result(x) - model(x)).double().norm() < (small(x) - model(x)).double().norm()


class TiedEmbedding(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.narrow(self.wide(x).relu()))


def test_a_head_tied_to_an_embedding_is_skipped_by_name() -> None:
    tokens = torch.arange(20).reshape(4, 5) % 11
    model = seeded(TiedEmbedding())
    plan = Plan(trace(model, tokens), "by hand", {"embed": np.arange(4)})
    statistics = collect_statistics(model, plan.graph, [tokens], {"gram"})
    small = shrink(model, plan)
    result, notes = fold(model, small, plan, statistics)
    assert "tied" in notes["embed.weight"]["skipped"]
    assert torch.equal(result.embed.weight, small.embed.weight)
    assert result.head.weight is result.embed.weight
    assert notes["wide.weight"]["folded"] <= notes["wide.weight"]["plain"]


@pytest.mark.parametrize("rows", [3, 7, 49])
@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
def test_constant_and_dead_features_fold(rows, activation, scale) -> None:
    model = seeded(nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)))
    if scale == 0:
        model.apply(lambda layer: [p.data.zero_() for p in layer.parameters(recurse=False)])
    x = (data(1, 4) * scale).repeat(rows, 1)
    _, result, _ = repaired(model, x, {"0": [0, 2, 3]})
    assert torch.allclose(result(x), model(x), atol=1e-9 * max(1.0, scale))
