"""What each group costs and saves: the numbers, the file that resumes, the page, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur.allocation import graph_cost
from secateur.apply.mask import mask
from secateur.cli.main import app
from secateur.core import InputError, LatencyTable, LayerTimes, NothingToPrune, Plan, StoreError
from secateur.diagnostics import Sensitivities, measure_sensitivity
from secateur.diagnostics.sensitivity import FILE, SHARES
from secateur.repair import loss_curves


def batches(count: int = 5) -> list[torch.Tensor]:
    return list(torch.randn(20 * count, 6, generator=torch.Generator().manual_seed(0)).split(20))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))


@pytest.fixture(scope="module")
def found() -> Sensitivities:
    return measure_sensitivity(network(), torch.ones(2, 6), batches(), progress=False)


def test_counts_and_savings_are_those_of_the_cost_model(found: Sensitivities) -> None:
    graph = sc.trace(network(), torch.ones(2, 6))
    whole = graph_cost(graph)
    assert list(found.groups) == [group.name for group in graph.groups]
    assert found.whole["params"] == whole.params and found.whole["bytes"] == 4 * whole.params
    for group in graph.groups:
        entry = found.groups[group.name]
        assert entry.counts == tuple(round((1 - share) * group.size) for share in SHARES)
        for i, count in enumerate(entry.counts):
            left = graph_cost(graph, {group.name: np.arange(count)})
            assert entry.saved["params"][i] == pytest.approx(1 - left.params / whole.params)
            assert entry.saved["macs"][i] == pytest.approx(1 - left.macs / whole.macs)


def test_losses_are_measured_on_the_batches_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fold, the loss is the divergence of the masked model."""
    monkeypatch.setattr(loss_curves, "fold_masked", lambda *args: None)
    model, data = network(), batches()
    found = measure_sensitivity(model, torch.ones(2, 6), data, method="magnitude", progress=False)
    graph = sc.trace(model, torch.ones(2, 6))
    plan = sc.plan(graph, "magnitude", sc.Units({"0": 0.5}), model=model)
    loss = loss_curves.Divergence(model, data[-1:])(mask(model, Plan(graph, "m", plan.keep)))
    assert found.groups["0"].losses[2] == pytest.approx(loss, rel=1e-5)


def test_a_budget_by_hand(found: Sensitivities) -> None:
    losses = [x for group in found.groups.values() for x in group.losses]
    budget = found.within(max(losses))
    assert budget == sc.Units({name: group.counts[-1] / group.size for name, group in found.groups.items()})
    result = sc.prune(network(), torch.ones(2, 6), budget, batches(), progress=False)
    assert {n: x["kept"] for n, x in result.report.groups.items()} == {
        n: group.counts[-1] for n, group in found.groups.items()
    }
    with pytest.raises(InputError, match="the least is"):
        found.within(min(losses) / 2)
    with pytest.raises(InputError, match="a divergence is a number"):
        found.within("small")  # type: ignore[arg-type]


def test_tables_have_a_row_for_each_group_and_each_trial(found: Sensitivities) -> None:
    table = found.table()
    assert [row["group"] for row in table] == ["0", "2"]
    assert {"-10%", "-25%", "-50%", "-75%", "MACs, -50%", "parameters, -50%"} <= set(table[0])
    assert len(found.rows()) == 8 and found.rows()[0]["kept"] == 18
    assert len(repr(found).splitlines()) <= 15 and "Linear" not in found.method
    one = measure_sensitivity(
        nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 3)),
        torch.ones(2, 6),
        batches(),
        progress=False,
    )
    assert one.groups["0"].counts == (1,) and len(one.table()) == 1


def test_an_interrupted_measurement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, trials = network(), batches(), []

    def interrupt(*args: object) -> None:
        trials.append(args)
        if len(trials) == 6:
            raise KeyboardInterrupt

    whole = measure_sensitivity(model, torch.ones(2, 6), data, progress=False)
    with monkeypatch.context() as patch:
        fold = loss_curves.fold_masked
        patch.setattr(loss_curves, "fold_masked", lambda *args: (interrupt(), fold(*args)))
        with pytest.raises(KeyboardInterrupt):
            measure_sensitivity(model, torch.ones(2, 6), data, folder=tmp_path, progress=False)
        assert list(json.loads((tmp_path / FILE).read_text())["curves"]) == ["0"]
        again = measure_sensitivity(model, torch.ones(2, 6), data, folder=tmp_path, progress=False)
        assert len(trials) == 6 + 4  # the second group only
        assert again.groups == whole.groups
        measure_sensitivity(model, torch.ones(2, 6), data, folder=tmp_path, progress=False)
        assert len(trials) == 10
        with torch.no_grad():
            model[0].weight[0] *= 2
        measure_sensitivity(model, torch.ones(2, 6), data, folder=tmp_path, progress=False)
        assert len(trials) == 18  # another model


def test_a_file_cut_off_is_measured_again(tmp_path: Path, found: Sensitivities) -> None:
    (tmp_path / FILE).write_text('{"key": ')
    again = measure_sensitivity(network(), torch.ones(2, 6), batches(), folder=tmp_path, progress=False)
    assert again.groups == found.groups
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot hold"):
        measure_sensitivity(network(), torch.ones(2, 6), batches(), folder=tmp_path / "file", progress=False)


def test_recurrent_groups_go_together() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.GRU(3, 8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    data = list(torch.randn(40, 5, 3).split(10))
    found = measure_sensitivity(Net(), data[0][:2], data, progress=False)
    assert found.groups["rnn"].together == ("rnn #2",)
    assert found.groups["rnn"].saved["params"][2] > 0.4


def test_other_costs_and_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    where = network(), torch.ones(2, 6), batches()
    more = measure_sensitivity(*where, costs=[sc.Units(1.0)], progress=False)
    assert more.groups["0"].saved["units"][2] == pytest.approx(10 / 32)
    layer = LayerTimes("0.weight", (1, 0), (0, 6), (0, 20), ((0.0, 0.0), (0.0, 3.0)))
    latency = sc.Latency(0.5, table=LatencyTable((layer,), constant=1.0))
    timed = measure_sensitivity(*where, costs=[latency], progress=False)
    assert timed.whole["milliseconds"] == 4 and "ms, -50%" in timed.table()[0]
    assert timed.groups["0"].saved["milliseconds"][2] == pytest.approx(1.5 / 4)
    with pytest.raises(InputError, match="no order of units"):
        measure_sensitivity(*where, method="synflow")
    with pytest.raises(NothingToPrune, match="no group"):
        measure_sensitivity(nn.Linear(6, 2), torch.ones(2, 6), batches())


def test_the_command_writes_a_table_a_file_and_a_page(tmp_path: Path) -> None:
    source = "import torch\ntorch.manual_seed(0)\ndef model():\n"
    source += (
        "    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))\n"
    )
    source += "def data():\n    return [(torch.randn(20, 6), None) for _ in range(5)]\n"
    (tmp_path / "mine.py").write_text(source)
    command = ["inspect", f"{tmp_path}/mine.py:model", "--data", f"{tmp_path}/mine.py:data", "--sensitivity"]
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "-75%" in shown.output and "units=0:0.5" in shown.output
    assert json.loads((out / FILE).read_text())["groups"]["0"]["size"] == 9
    assert "what each group costs" in (out / "sensitivity.html").read_text()
    page = CliRunner().invoke(app, ["report", str(out)])
    assert page.exit_code == 0, page.output
    assert "Sensitivity of Sequential" in (out / "report.html").read_text()
    assert CliRunner().invoke(app, [*command[:2], "--sensitivity", "--example-shape", "2,6"]).exit_code != 0
    refused = CliRunner().invoke(app, [*command[:-1], "--out", str(out)])
    assert refused.exit_code != 0
