"""Budgets of milliseconds: plans meet a known cost, are corrected by measurements, and refuse what fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur import depth, latency_budget, latency_correction
from secateur.allocation import allocate, counted_terms, predicted_latency
from secateur.cli import main as cli
from secateur.core import InputError, LatencyTable, LayerTimes, PruningGraph
from secateur.latency_budget import RelativeTime
from secateur.measure import layer_table, time_cache
from secateur.measure.layer_shapes import LayerShape
from secateur.result import load_report

X = torch.ones(2, 3, 16, 16)


def network(width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU()]  # depthwise
    layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(2 * width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Machine:
    """A machine whose times are known: widths are computed 16 at once, and layers cost more in a network."""

    def __init__(self, multiple: int = 16, context: float = 1.3, fixed: float = 0.02) -> None:
        self.multiple, self.context, self.fixed = multiple, context, fixed
        self.spread, self.asked, self.compared = 0.0, 0, 0

    def time_shapes(self, shapes: Sequence[LayerShape], *_: Any) -> dict[LayerShape, float]:
        self.asked += len(shapes)
        return {shape: self.layer(shape) for shape in shapes}

    def layer(self, shape: LayerShape) -> float:
        """Return the milliseconds of one layer: overhead, and whole blocks of widths."""
        options = dict(shape.options)
        widths, m = (shape.inputs, shape.outputs), self.multiple
        blocks = [-(-n // m) * m if n > 3 else n for n in widths]
        kernel = int(np.prod(options.get("kernel", (1,))))
        positions = np.prod(shape.sizes) / int(np.prod(options.get("stride", (1,))))
        return 1e-3 + 1e-8 * float(np.prod(blocks)) * kernel * float(positions)

    def network(self, model: nn.Module, x: torch.Tensor) -> float:
        """Return the milliseconds of a network: its layers in context, their outputs, a fixed part."""
        total = self.fixed

        def add(module: Any, args: Any, output: Any) -> None:
            nonlocal total
            at = args[0]
            if isinstance(module, nn.Linear):
                shape = LayerShape("linear", module.in_features, module.out_features, (len(at),))
            else:
                options = (("kernel", module.kernel_size), ("stride", module.stride))
                inputs = module.in_channels // module.groups
                shape = LayerShape("conv", inputs, module.out_channels, (len(at), *at.shape[2:]), options)
            total += self.context * self.layer(shape) + 1e-8 * output.numel()

        hooks = [
            m.register_forward_hook(add) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
        ]
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
        return total

    def time_models(self, original: nn.Module, pruned: nn.Module, _: Any, budget: sc.Latency) -> RelativeTime:
        self.compared += 1
        x = X[:1].repeat(budget.batch, 1, 1, 1)
        before, after = (self.network(m, x) for m in (original, pruned))
        return RelativeTime(before, after / before, self.spread)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = Machine()
    monkeypatch.setattr(layer_table, "time_shapes", lambda *a: known.time_shapes(*a))
    replace_measurement(monkeypatch, known.time_models)
    return known


def replace_measurement(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., RelativeTime]) -> None:
    """Measure like this when a table is fitted, and when the plan is corrected."""
    for module in (latency_budget, latency_correction):
        monkeypatch.setattr(module, "time_models", measure)


def prune(model: nn.Module, budget: Any, **options: Any) -> Any:
    return sc.prune(model, X, budget, method="magnitude", check=False, **options)


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize(("keep", "batch"), [(0.7, 1), (0.5, 32)])
def test_the_measured_network_keeps_the_budget(machine: Machine, scope: Any, keep: float, batch: int) -> None:
    """The machine differs from the sum of its layers, so the first plan is wrong and gets corrected."""
    model = network()
    result = prune(model, sc.Latency(keep, scope, batch=batch))
    x = X[:1].repeat(batch, 1, 1, 1)
    share = machine.network(result.model, x) / machine.network(model, x)
    (note,) = result.report.notes["latency"]
    assert note["holds"] and share <= 1.05 * keep and share >= 0.85 * keep
    assert note["measured"] == pytest.approx(machine.network(result.model, x))
    assert note["original"] == pytest.approx(machine.network(model, x))
    assert note["target"] == pytest.approx(keep * note["original"])
    assert note["step"] == 16
    kept = [counts["kept"] for counts in result.report.groups.values()]
    assert all(count % 16 == 0 for count in kept)


def test_milliseconds_are_a_share_of_the_original(machine: Machine) -> None:
    model = network()
    whole = machine.network(model, X[:1])
    result = prune(model, sc.Latency(milliseconds=0.6 * whole))
    assert machine.network(result.model, X[:1]) <= 0.63 * whole
    assert result.report.budget == f"Latency(milliseconds={0.6 * whole!r})"
    assert result.plan.notes["latency"][0]["target"] == pytest.approx(0.6 * whole)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(self.inner(x).relu())


@pytest.mark.parametrize("blocks", sampled([1, "auto", ["2.1"]], "auto"))
def test_blocks_go_before_units_do(machine: Machine, monkeypatch: pytest.MonkeyPatch, blocks: Any) -> None:
    """What is asked for, and what the report says, is the time of the model that has its blocks."""
    monkeypatch.setattr(depth, "time_models", lambda *a: machine.time_models(*a))
    stack = nn.Sequential(*(Residual() for _ in range(4)))
    with torch.no_grad():
        stack[1].outer.weight.mul_(1e-5)
        stack[1].outer.bias.zero_()
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), stack, nn.AdaptiveAvgPool2d(1))
    batches = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    whole = machine.network(model, X[:1])
    for budget in (sc.Latency(0.6), sc.Latency(milliseconds=0.6 * whole)):
        result = prune(model, budget, data=batches, blocks=blocks)
        left = machine.network(result.model, X[:1])
        (note,) = result.report.notes["latency"]
        assert result.plan.blocks == ("2.1",) and 0.5 * whole <= left <= 0.63 * whole
        assert note["holds"] and note["original"] == pytest.approx(whole)
        assert note["measured"] == pytest.approx(left) and note["target"] == pytest.approx(0.6 * whole)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.top_k = nn.Linear(32, 4, bias=False), 2
        experts = (nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 32)) for _ in range(4))
        self.experts = nn.ModuleList(experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, index = self.gate(x).softmax(-1).topk(self.top_k, -1)
        weights = torch.zeros(len(x), len(self.experts)).scatter(-1, index, value)
        return x + (torch.stack([expert(x) for expert in self.experts], -1) * weights[:, None]).sum(-1)


def test_experts_go_before_units_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for, and what the report says, is the time of the model that has its experts."""
    monkeypatch.setattr(depth, "time_models", lambda *a: machine.time_models(*a))
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 32), Mixing(), nn.Linear(32, 9)
    )
    batches = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    x = X[:1].repeat(64, 1, 1, 1)
    whole = machine.network(model, x)
    result = prune(model, sc.Latency(0.6, batch=64), data=batches, experts=3, repair=None)
    left = machine.network(result.model, x)
    (note,) = result.report.notes["latency"]
    assert len(result.plan.experts["3"]) == 3 and result.plan.keep and 0.5 * whole <= left <= 0.63 * whole
    assert note["holds"] and note["original"] == pytest.approx(whole)
    assert note["measured"] == pytest.approx(left) and note["target"] == pytest.approx(0.6 * whole)


@pytest.mark.parametrize("scope", ["auto", "program"])
def test_losses_decide_under_a_latency(machine: Machine, scope: Any) -> None:
    batches = [torch.randn(8, 3, 16, 16) for _ in range(3)]
    model = network(32)
    result = sc.prune(model, X, sc.Latency(0.75, scope), batches, repair=None, check=False, progress=False)
    assert machine.network(result.model, X[:1]) <= 0.79 * machine.network(model, X[:1])
    assert "predicted loss" in result.plan.notes


def test_several_budgets_at_once(machine: Machine) -> None:
    model = network()
    budgets = [sc.Latency(0.8), sc.Latency(0.7, batch=32), sc.Params(0.3)]
    result = prune(model, budgets)
    assert result.plan.notes["reached"]["params"] <= 0.3
    assert [note["batch"] for note in result.report.notes["latency"]] == [1, 32]
    assert all(note["holds"] for note in result.report.notes["latency"])


def test_steps_measure_the_last_plan_only(machine: Machine) -> None:
    model = network()
    result = prune(model, sc.Latency(0.5), schedule=sc.Steps(3))
    assert machine.compared <= 1 + 5
    assert machine.network(result.model, X[:1]) <= 0.525 * machine.network(model, X[:1])


def test_a_plan_alone_has_a_prediction(machine: Machine) -> None:
    model = network()
    plan = sc.plan(sc.trace(model, X), "magnitude", sc.Latency(0.5))
    (note,) = plan.notes["latency"]
    assert note["predicted"] <= note["target"] * (1 + 1e-9)
    assert note["original"] == pytest.approx(machine.network(model, X[:1]))
    with pytest.raises(InputError, match="needs measured layers"):
        allocate(sc.trace(model, X), sc.Latency(0.5))


def test_the_table_is_right_about_the_original_and_the_smallest_network(machine: Machine) -> None:
    model = network()
    graph = sc.trace(model, X)
    budget = latency_budget.with_tables(sc.Latency(0.5), model, graph)
    amount = predicted_latency(graph, budget)  # type: ignore[arg-type]
    assert amount({}) == pytest.approx(machine.network(model, X[:1]))
    least = {group.name: np.arange(16) for group in graph.groups}
    small = sc.shrink(model, sc.core.Plan(graph, "", least), check=False)
    assert amount(least) == pytest.approx(machine.network(small, X[:1]), rel=1e-6)


def test_a_budget_that_no_plan_meets_names_the_smallest(machine: Machine) -> None:
    machine.fixed = 1.0
    with pytest.raises(InputError, match=r"Latency\(0.05.*at least .* milliseconds stay, a share of 0\.\d+"):
        prune(network(), sc.Latency(0.05))


def test_a_network_that_pruning_does_not_make_faster(machine: Machine) -> None:
    machine.fixed = 1e3
    with pytest.raises(InputError, match=r"does not make this network faster at batch 1.*1e\+03 ms"):
        prune(network(), sc.Latency(0.5))


def test_a_plan_that_would_be_slower_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([RelativeTime(2.0, 0.1, 0.0), RelativeTime(2.0, 1.2, 0.0)])
    replace_measurement(monkeypatch, lambda *_: next(times))
    with pytest.raises(InputError, match=r"slower: 2 ms before, 2.4 ms after.*spent in 0.weight"):
        prune(network(), sc.Latency(0.8))


def test_a_budget_that_cannot_be_met_says_what_stands_in_the_way(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([0.1, *[0.9] * 9])
    replace_measurement(monkeypatch, lambda *_: RelativeTime(2.0, next(ratios), 0.0))
    result = prune(network(), sc.Latency(0.5))
    (note,) = result.report.notes["latency"]
    assert not note["holds"] and note["measured"] == pytest.approx(1.8)
    assert len(note["in the way"]) >= 3 and "ms" in note["in the way"][0]
    assert "not held" in repr(result.report)


def test_a_noisy_machine_is_named_and_does_not_correct(machine: Machine) -> None:
    machine.spread = 0.4
    with pytest.warns(UserWarning, match=r"too noisy to measure: the quartiles .* lie 40% apart"):
        result = prune(network(), sc.Latency(0.5))
    assert result.report.notes["latency"][0]["plans"] == 1
    assert result.report.notes["latency"][0]["spread"] == 0.4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda:7"}, "cannot be measured on 'cuda:7'.*such as 'cpu'"),
        ({"device": "nonsense"}, "cannot be measured on 'nonsense'"),
        ({"device": 3.5}, "device must be a name.*got 3.5"),
        ({"device": "meta"}, "meta device"),
        ({"batch_axis": 5}, "batch axis 5"),
    ],
)
def test_devices_and_axes_that_are_not_there(machine: Machine, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prune(network(8), sc.Latency(0.5, **options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either a share or milliseconds"),
        ({"keep": 0.5, "milliseconds": 3}, "either a share or milliseconds"),
        ({"milliseconds": 0}, "positive number; got 0"),
        ({"keep": 0.5, "batch": 0}, "Latency.batch must be an integer of at least 1; got 0"),
        ({"keep": 0.5, "threads": 1.5}, "Latency.threads must be an integer of at least 1"),
        ({"keep": 0.5, "round_to": -1}, "round_to must be integers"),
    ],
)
def test_arguments_that_are_wrong(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sc.Latency(**options)
    assert repr(sc.Latency(0.5, batch=4)) == "Latency(0.5, batch=4)"


def test_the_command_line_takes_several_budgets(machine: Machine, tmp_path: Path) -> None:
    model = str(Path(__file__)) + ":network"
    budgets = ("--budget", "latency=0.7,batch=4", "--budget", "bytes=0.9")
    shape = ("--example-shape", "2,3,16,16", "--method", "magnitude", "--out", str(tmp_path / "out"))
    done = CliRunner().invoke(cli.app, ["prune", model, *budgets, *shape])
    assert done.exit_code == 0, done.output
    assert "at batch 4:" in done.output and "predicted" in done.output
    report = load_report(tmp_path / "out")
    assert report.budget == "[Latency(0.7, batch=4), Bytes(0.9)]"
    assert report.notes["latency"][0]["holds"] and report.notes["reached"]["bytes"] <= 0.9
    assert "at batch 4: " in report.to_markdown()
    wrong = CliRunner().invoke(cli.app, ["prune", model, "--budget", "latency=0.7,batches=4"])
    assert wrong.exit_code == 2 and "batches" in wrong.stderr and "'batch'" in wrong.stderr


def test_times_are_stored_and_stale_ones_measured_again(machine: Machine, tmp_path: Path) -> None:
    model = network()
    prune(model, sc.Latency(0.5))
    first = machine.asked
    prune(model, sc.Latency(0.5))
    assert machine.asked - first <= 2 * layer_table.CHECKED  # only a few are looked at again
    (file,) = tmp_path.rglob("*.json")
    document = json.loads(file.read_text())
    assert document["environment"]["torch"] == torch.__version__
    document["milliseconds"] = {key: 9 * ms for key, ms in document["milliseconds"].items()}
    file.write_text(json.dumps(document))
    result = prune(model, sc.Latency(0.5))
    assert result.report.notes["latency"][0]["holds"]
    assert machine.asked - first > first / 2
    again = json.loads(file.read_text())["milliseconds"]
    assert max(again.values()) < max(document["milliseconds"].values()) / 5
    file.write_text("{")  # what another program left
    assert prune(model, sc.Latency(0.5)).report.notes["latency"][0]["holds"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = time_cache.TimeCache(tmp_path / "file" / "times.json", {})
    with pytest.warns(UserWarning, match="cannot be stored"):
        cache.write({"a": 1.0})
    assert cache.read() == {}


def test_interpolation_is_exact_for_what_is_bilinear() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = rng.uniform(0, 1, 4)
    knots = (8, 16, 40), (4, 24)
    values = tuple(tuple(a + b * i + c * o + d * i * o for o in knots[1]) for i in knots[0])
    layer = LayerTimes("w", (1, 0), *knots, values)
    other = LayerTimes("v", (1, 0), (0, 3), (0, 5, 9, 12), ((0.0,) * 4, (0.0, 1.0, 2.0, 2.5)))
    table = LatencyTable((layer, other), constant=2.0, scale=3.0)
    for i, o in [(8, 4), (11, 23), (40, 24), (2, 20)]:
        expected = a + b * i + c * o + d * i * o
        assert float(layer(i, o)) == pytest.approx(expected)
        assert table.total(np.array([i, 3.0]), np.array([o, 7.0])) == pytest.approx(2 + 3 * (expected + 1.5))
    i, o = np.ix_([8.0, 9.0], [4.0, 5.0, 6.0])
    assert layer(i, o) == pytest.approx(a + b * i + c * o + d * i * o)


def test_a_table_is_terms_of_the_counts(machine: Machine) -> None:
    """What `length_terms` makes of a table is what the search over counts sees."""
    model = network()
    graph: PruningGraph = sc.trace(model, X)
    (part,) = latency_budget.with_tables(sc.Latency(0.5), model, graph).parts
    table = part.table  # type: ignore[attr-defined]
    terms = counted_terms(graph, part)
    rng = np.random.default_rng(0)
    amount = predicted_latency(graph, part)  # type: ignore[arg-type]
    for _ in range(5):
        counts = {g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups}
        assert terms(counts) == pytest.approx(amount({n: np.arange(c) for n, c in counts.items()}))
    assert len(table.layers) == 5


@pytest.mark.slow
def test_a_real_network_gets_faster() -> None:
    """Real times: on any machine, half of the time is at least a third less."""
    model = network(256)
    x = torch.ones(2, 3, 48, 48)
    result = sc.prune(model, x, sc.Latency(0.5, batch=8), method="magnitude")
    (note,) = result.report.notes["latency"]
    assert note["measured"] < note["original"] * (0.66 + note["spread"])
