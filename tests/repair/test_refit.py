"""Readers solved anew from what reaches them in the shrunk network."""

from __future__ import annotations

import tempfile
from pathlib import Path

import oracles
import pytest
import torch
from bank import BANK
from torch import Tensor, nn
from torch.nn import functional

from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, Units
from secateur.measure.metrics import distance_from
from secateur.pruning import prune
from secateur.repair.fold import fold
from secateur.repair.refit import refit
from secateur.repair.spill import Spill
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace

MODELS = (
    "MLP",
    "LeNet-5, Flatten",
    "ResNet-20, padded shortcut",
    "LSTM, MLP at each step",
    "GRU feeding LSTM",
    "nn.TransformerEncoder, norm first",
    "Tied autoencoder",
    "Siamese",
    "MobileNetV2 (depthwise)",
)


def data(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half(model: nn.Module, x: Tensor) -> tuple[Plan, nn.Module]:
    plan = oracles.half_plan(trace(model, x[:2]))
    return plan, shrink(model, plan)


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_reader_gets_the_least_squares_weights(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 4, bias=bias)).double()
    x = data(200, 5)
    plan, small = half(model, x)
    better, notes = refit(model, small, plan, [(x[:120], None), (x[120:], None)])
    z, target = small[:2](x), model(x)
    design = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) if bias else z
    best = torch.linalg.lstsq(design, target).solution
    error = float((design @ best - target).detach().square().sum() / target.detach().square().sum())
    reached = float((better(x) - target).detach().square().sum() / target.detach().square().sum())
    assert error <= reached <= error * (1 + 1e-6)
    assert notes["2.weight"]["ridge"] == 1e-6
    assert set(notes) == {"2.weight"}  # the same reaches the first layer


def test_a_convolution_gets_the_least_squares_kernel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 3, 3, stride=2, padding=1), nn.Flatten()
    ).double()
    x = data(12, 2, 9, 9)
    plan, small = half(model, x)
    better, _ = refit(model, small, plan, [(x, None)])
    z = functional.unfold(small[:2](x), 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    target = model[:3](x).permute(0, 2, 3, 1).flatten(0, 2)
    design = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    best = design @ torch.linalg.lstsq(design, target).solution
    error, reached = (best - target).detach().square().sum(), (better(x) - model(x)).detach().square().sum()
    assert float(error) <= float(reached) <= float(error) * (1 + 1e-5)


def test_later_readers_make_up_for_earlier_ones() -> None:
    """On a deep network the refit comes nearer than the fold, which sees the original's activations only."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, 5)).double()
    x, held = data(2000, 16), data(500, 16, seed=1)
    graph = trace(model, x[:2])
    plan = oracles.half_plan(graph)
    folded, _ = fold(
        model, shrink(model, plan), plan, collect_statistics(model, graph, [(x, None)], {"gram"})
    )
    far = distance_from(model, [(held, None)])
    better, notes = refit(model, folded, plan, [(x, None)], [(held, None)])
    assert far(better) < 0.9 * far(folded) < far(shrink(model, plan))
    assert all(note["after"] <= note["before"] for note in notes.values())


@pytest.mark.filterwarnings("ignore:.*more features than there are rows")
@pytest.mark.parametrize("name", MODELS)
def test_no_step_takes_the_network_further_away(name: str) -> None:
    entry = BANK[name]
    model = oracles.perturb(entry.build())
    args, kwargs = entry.example(batch=40)
    plan = oracles.half_plan(trace(model, args, example_kwargs=kwargs))
    small = shrink(model, plan)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    batch = (kwargs or args, None)
    far = distance_from(model, [batch])
    better, notes = refit(model, small, plan, [batch])
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())
    assert {k: v.shape for k, v in better.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert far(better) <= far(small)
    assert any(not note.get("undone", True) for note in notes.values()) == (far(better) < far(small))


def test_grouped_layers_are_solved_and_tied_ones_named() -> None:
    tied, grouped = (
        BANK["Tied autoencoder"],
        nn.Sequential(
            nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8, 2)
        ).double(),
    )
    x = data(40, 2, 3, 3)
    plan, small = half(grouped, x)
    _, notes = refit(grouped, small, plan, [(x, None)])
    assert {"2.weight", "4.weight"} <= {name for name, note in notes.items() if "ridge" in note}
    model = tied.build()
    args, _ = tied.example()
    plan = oracles.half_plan(trace(model, args))
    _, notes = refit(model, shrink(model, plan), plan, [(args, None)])
    assert any("tied" in note.get("skipped", "") for note in notes.values())


def test_a_model_of_another_plan_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    plan, _ = half(model, data(2, 4))
    with pytest.raises(InputError, match=r"no '0\.weight'"):
        refit(model, nn.Linear(4, 3).double(), plan, [(data(9, 4), None)])


def test_pruning_with_a_refit_is_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    x = data(600, 6).float()
    batches = [(part, part[:, 0].gt(0).long()) for part in x.split(100)]
    reports = {
        repair: prune(model, x[:2], Units(0.5), batches, method="magnitude", repair=repair)
        .measure(batches)
        .report
        for repair in ("fold", "refit")
    }
    assert reports["refit"].repair == "refit"
    assert reports["refit"].agreement.relative < reports["fold"].agreement.relative
    assert {"before", "after", "ridge", "undone"} <= set(reports["refit"].folds["4.weight"]["refit"])


def test_a_refit_needs_data() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="refit"):
        prune(model, torch.ones(2, 4), Units(0.5), method="magnitude", repair="refit")


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *layers, nn.Linear(8, 3))


def test_one_walk_costs_one_forward_pass_of_each_network() -> None:
    model, x = deep().double(), data(60, 4)
    plan, small = half(model, x)
    calls = {"original": 0, "pruned": 0}
    for name, net in (("original", model), ("pruned", small)):

        def count(module: nn.Module, args: object, name: str = name) -> None:
            calls[name] += 1

        net[0].register_forward_pre_hook(count)
    refit(model, small, plan, [(part, None) for part in x.split(10)])
    # The outline runs one batch twice; the judge runs the original once, the pruned network before and after.
    assert calls == {"original": 6 + 2 + 6, "pruned": 6 + 12}


@pytest.mark.parametrize("name", ["ResNet-20, padded shortcut", "GRU feeding LSTM", "Siamese"])
def test_spilling_to_disk_changes_nothing(name: str) -> None:
    entry = BANK[name]
    model = oracles.perturb(entry.build())
    batches = [(entry.example(batch=20, seed=seed)[0], None) for seed in range(3)]
    plan = oracles.half_plan(trace(model, batches[0][0]))
    small = shrink(model, plan)
    first, notes = refit(model, small, plan, batches)
    second, again = refit(model, small, plan, batches, memory=0)
    assert notes == again
    other = second.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_other_types_are_repaired_in_their_type(dtype: torch.dtype) -> None:
    model, x = deep().to(dtype), data(800, 4)
    plan, small = half(model, x.to(dtype))
    batches = [(part.to(dtype), None) for part in x.split(200)]
    better, _ = refit(model, small, plan, batches[:3], batches[3:])
    assert {p.dtype for p in better.parameters()} == {dtype}
    far = distance_from(model, [(data(200, 4, seed=1).to(dtype), None)])
    assert far(better) < 0.7 * far(small)


def test_nan_in_the_activations_names_layer_and_batch() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Linear(4, 8), Root(), nn.Linear(8, 3)).double()
    x = data(20, 4)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(0.1)
    plan, small = half(model, x.abs())
    good, bad = (x.abs(), None), (-x.abs() - 1, None)
    with pytest.raises(InputError, match=r"layer '2' of the original model in batch 1: leave"):
        refit(model, small, plan, [good, bad, good])
    with pytest.raises(InputError, match=r"layer '2' .* in batch 0 kept apart"):
        refit(model, small, plan, [good], [bad])


def test_an_interrupt_leaves_both_models_as_they_were() -> None:
    model, x = nn.Sequential(*deep(), nn.Dropout()).double(), data(60, 4)
    model.train()
    model[3].eval()
    plan, small = half(model, x)
    states = [({k: v.clone() for k, v in net.state_dict().items()}, net) for net in (model, small)]
    modes = [[m.training for m in net.modules()] for net in (model, small)]
    runs = []

    def interrupt(module: nn.Module, args: object) -> None:
        runs.append(1)
        if len(runs) == 5:  # two runs of the outline, then the third pass of the walk
            raise KeyboardInterrupt

    model[4].register_forward_pre_hook(interrupt)
    small[4].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        refit(model, small, plan, [(part, None) for part in x.split(20)])
    assert all(torch.equal(v, net.state_dict()[k]) for state, net in states for k, v in state.items())
    assert modes == [[m.training for m in net.modules()] for net in (model, small)]
    assert torch._C._len_torch_function_stack() == 0


def test_a_full_disk_leaves_the_models_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, x = deep().double(), data(60, 4)
    plan, small = half(model, x)
    state = {k: v.clone() for k, v in small.state_dict().items()}

    def full(self: Spill, number: int) -> Path:
        if number:
            raise OSError(28, "No space left on device")
        return real(self, number)

    real = Spill._file
    monkeypatch.setattr(Spill, "_file", full)
    with pytest.raises(OSError, match="No space left"):
        refit(model, small, plan, [(part, None) for part in x.split(20)], memory=0)
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in state.items())
    assert not list(tmp_path.iterdir())


def test_too_few_rows_are_warned_of_once() -> None:
    model, x = deep().double(), data(3, 4)
    plan, small = half(model, x)
    with pytest.warns(UserWarning, match=r"layers read more features than there are rows .* 3 rows") as found:
        refit(model, small, plan, [(x, None)])
    assert len([w for w in found if "rows" in str(w.message)]) == 1
