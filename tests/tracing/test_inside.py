"""`inside=`: submodules of a model that cannot be exported are pruned; the rest stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.apply.exactness import verify
from secateur.core import CaptureError, InputError, NothingToPrune
from secateur.formats.certificate import verify_folder
from secateur.formats.plan_json import plan_from_json, plan_to_json


class Features(nn.Module):
    """A part that can be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        return x if scale is None else x * scale


class Detector(nn.Module):
    """Its path depends on values of the data, so no graph can hold it; it calls its features twice."""

    threshold = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.mixer = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x) + self.features(x.flip(1), scale=0.5)
        x = self.mixer(x.movedim(1, -1)).flatten(1, 2)
        found = x.amax((0, 2)) > self.threshold
        return self.head(x[:, found] if found.any() else x[:, :0])


class Blind(Detector):
    """It never finds anything: its output has no rows, whatever the input."""

    threshold = 1e9


class Tied(Detector):
    """What follows reads a weight of its features."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.reader.weight.sum() if hasattr(self, "reader") else y

    def tie(self) -> Tied:
        self.reader = nn.Conv2d(3, 8, 3)
        self.reader.weight = self.features.first.weight
        return self


class Peeking(Detector):
    """It calls a part of its features by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.features.first(x).mean()


def perturbed(kind: type[Detector]) -> Any:
    torch.manual_seed(0)
    return oracles.perturb(kind()).eval()


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
BOTH = ("features", "mixer")


def test_the_model_is_refused_as_a_whole_and_its_submodules_lose_units() -> None:
    model = perturbed(Detector)
    with pytest.raises(CaptureError, match="inside='auto'"):
        sc.trace(model, IMAGES)
    graph = sc.trace(model, IMAGES, inside=BOTH)
    assert graph.inside == BOTH
    assert [(group.name, group.size) for group in graph.groups] == [("features.first", 8), ("mixer.0", 12)]
    assert set(graph.shapes) == set(model.state_dict())
    assert "traced inside features, mixer" in graph.summary()


def test_both_calls_of_a_submodule_count_as_uses_of_its_weights() -> None:
    graph = sc.trace(perturbed(Detector), IMAGES, inside="features")
    assert graph.layer("features.first.weight").positions == 2 * 6 * 6


@pytest.mark.parametrize("inside", ["features", BOTH, "auto"])
def test_the_shrunk_model_is_the_masked_one_on_other_inputs(inside: Any) -> None:
    model = perturbed(Detector).double()
    graph = sc.trace(model, IMAGES.double(), inside=inside)
    plan = oracles.half_plan(graph)
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)
    assert type(small) is Detector and small.features.first.out_channels == 4
    generator = torch.Generator().manual_seed(2)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 6, 6, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            expected = masked(x)
            assert expected.numel()
            torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-12)


def test_what_leaves_a_submodule_keeps_its_size() -> None:
    graph = sc.trace(perturbed(Detector), IMAGES, inside="features")
    reasons = {f"{x.tensor}[{x.axis}]": x.reason for x in graph.frozen}
    assert reasons["features.second.weight[0]"] == "an output of the model"
    assert "not used" in reasons["head.weight[0]"]


def test_auto_takes_the_largest_submodules_and_a_whole_model_where_it_can() -> None:
    assert sc.trace(perturbed(Detector), IMAGES, inside="auto").inside == BOTH
    whole = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert sc.trace(whole, torch.ones(2, 4), inside="auto").inside == ()
    branch: nn.Module = nn.Sequential(nn.Linear(4, 4))
    branch.register_forward_hook(lambda _, args, output: output if output.sum() > 0 else -output)
    with pytest.raises(CaptureError, match="No submodule with two layers"):
        sc.trace(branch, torch.ones(2, 4), inside="auto")


def test_outputs_that_nothing_changes_do_not_empty_the_check() -> None:
    model = perturbed(Blind)
    graph = sc.trace(model, IMAGES, inside=BOTH)
    plan = oracles.half_plan(graph)
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)
    assert small(IMAGES).numel() == 0 and verify(masked, small, plan).reacts
    with torch.no_grad():
        small.features.first.bias[0] += 1
    with pytest.raises(sc.core.ExactnessError, match=r"features\.first\.bias"):
        verify(masked, small, plan)


def test_a_tensor_that_is_used_outside_too_stays_whole() -> None:
    graph = sc.trace(perturbed(Tied).tie(), IMAGES, inside=BOTH)
    assert [group.name for group in graph.groups] == ["mixer.0"]
    assert any("also used outside of features, mixer" in x.reason for x in graph.frozen)


def test_ignored_layers_take_the_names_of_the_whole_model() -> None:
    graph = sc.trace(perturbed(Detector), IMAGES, inside=BOTH, ignored_layers=["mixer.*"])
    assert [group.name for group in graph.groups] == ["features.first"]


def test_a_submodule_that_cannot_be_exported_is_named() -> None:
    model = nn.Sequential(perturbed(Detector), nn.Flatten())
    with pytest.raises(CaptureError, match=r"^inside 0: a submodule cannot be captured by torch.export at "):
        sc.trace(model, IMAGES, inside="0")


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("feature", "no submodule 'feature'; did you mean 'features'"),
        (["features", "features.first"], "'features.first' lies within 'features'"),
        ([], r"inside is a name of a submodule, a list of names, or 'auto'; got \[\]"),
        (3, "got 3"),
        ([0], "a list of names"),
        ("spare", "does not call 'spare'"),
    ],
)
def test_wrong_names_are_refused(inside: Any, message: str) -> None:
    model = perturbed(Detector)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(InputError, match=message):
        sc.trace(model, IMAGES, inside=inside)


def test_a_part_that_is_called_from_outside_is_refused() -> None:
    with pytest.raises(InputError, match=r"also calls 'features.first' from outside of 'features'"):
        sc.trace(perturbed(Peeking), IMAGES, inside="features")


def test_outputs_and_states_are_for_whole_models() -> None:
    with pytest.raises(InputError, match="outputs= and states= are for models that are traced as a whole"):
        sc.trace(perturbed(Detector), IMAGES, inside="features", outputs=0)


def test_a_submodule_without_units_says_what_is_frozen() -> None:
    with pytest.raises(NothingToPrune, match="an output of the model"):
        sc.prune(perturbed(Detector), IMAGES, sc.Units(0.5), method="magnitude", inside="head")


def test_pruning_with_data_repair_saving_and_certificate(tmp_path: Path) -> None:
    model = perturbed(Detector)
    batches = [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    result = sc.prune(model, IMAGES, sc.Params(0.6), batches, repair="fold", inside="auto", progress=False)
    assert result.plan.removes and result.graph.inside == BOTH
    again = plan_from_json(plan_to_json(result.plan))
    assert again.graph.inside == BOTH
    result.save(tmp_path / "saved")
    loaded = sc.load(tmp_path / "saved", lambda: Detector().eval())
    torch.testing.assert_close(loaded(IMAGES), result.model(IMAGES), rtol=0, atol=0)
    assert verify_folder(tmp_path / "saved", model)


def test_steps_go_on_inside() -> None:
    result = sc.prune(
        perturbed(Detector),
        IMAGES,
        sc.Units(0.25),
        method="magnitude",
        schedule=sc.Steps(2),
        inside=BOTH,
        progress=False,
    )
    assert [len(kept) for kept in result.plan.keep.values()] == [2, 3]
    assert np.prod(result.model.mixer[0].weight.shape) == 3 * 6


class Counting(Detector):
    """It returns scores of classes, and on faint images it looks twice."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x).sum(1)
        return scores if x.abs().amax() > 0.1 else scores + self.features(x).mean()


def draws(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 4) for _ in range(count)]


def called_apart(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model.features(x).flatten(), model.mixer(x.flatten(1)[:, :6]).flatten()])


@pytest.mark.parametrize("kind", [Counting, Blind])
@pytest.mark.parametrize("repair", ["fold", "refit"])
def test_repairs_are_judged_by_the_calls_of_the_submodules(repair: str, kind: type[Detector]) -> None:
    model = perturbed(kind)
    plain, repaired = (
        sc.prune(
            model, IMAGES, sc.Units(0.5), draws(), method="magnitude", repair=x, inside=BOTH, progress=False
        )
        for x in (None, repair)
    )
    assert type(repaired.model) is kind and set(repaired.model.state_dict()) == set(model.state_dict())
    x = draws(7)[-1][0]
    with torch.no_grad():
        wanted, worse, better = (called_apart(m, x) for m in (model, plain.model, repaired.model))
    assert (better - wanted).square().sum() < 0.8 * (worse - wanted).square().sum()
    assert not any(note.get("undone") for note in repaired.report.folds.values())


def test_a_budget_by_measured_losses_measures_the_calls() -> None:
    model = perturbed(Blind)
    result = sc.prune(model, IMAGES, sc.Params(0.7), draws(), repair="fold", inside=BOTH, progress=False)
    assert result.report.after.cost.parameters <= 0.7 * result.report.before.cost.parameters


def test_batches_with_other_calls_are_refused() -> None:
    faint = [(x * 1e-3, y) for x, y in draws(1)]
    with pytest.raises(InputError, match=r"batch 1 the model calls features, features, mixer, features"):
        sc.refit(
            model := perturbed(Counting),
            sc.shrink(model, plan := oracles.half_plan(sc.trace(model, IMAGES, inside=BOTH))),
            plan,
            [*draws(1), *faint],
        )


def test_the_integer_program_needs_the_whole_network() -> None:
    model = perturbed(Counting)
    with pytest.raises(InputError, match="the integer program needs the whole network"):
        sc.prune(model, IMAGES, sc.Units(0.5), draws(), method="mip", inside=BOTH, progress=False)


class Layer(nn.Module):
    """Attention that no graph can hold, beside a feed-forward part that is called layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.act, self.down = (
            nn.Linear(6, 6),
            nn.Linear(6, 16),
            nn.GELU(),
            nn.Linear(16, 6),
        )
        self.peek = False

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x)
        x = x + (mixed if mixed.sum() > 0 else -mixed)
        hidden = nn.functional.dropout(self.act(self.up(x)), 0.1, self.training)
        return x + self.down(hidden) + (hidden.mean() if self.peek else 0)


def layers(**peek: bool) -> Any:
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": Layer(), "second": Layer()})
    both = nn.Sequential(model["first"], model["second"])
    for name, value in peek.items():
        model[name].peek = value
    return oracles.perturb(both).eval()


ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))


def test_what_submodules_pass_on_to_each_other_loses_units() -> None:
    model = layers()
    graph = sc.trace(model, ROWS, inside="auto")
    assert graph.inside == ("0.up", "0.act", "0.down", "1.up", "1.act", "1.down")
    assert [(group.name, group.size) for group in graph.groups] == [("0.up", 16), ("1.up", 16)]
    plan = oracles.half_plan(graph)
    small, masked = sc.shrink(model, plan), sc.mask(model, plan)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-5)
        small[1].down.bias[0] += 1
    with pytest.raises(sc.core.ExactnessError, match="deviates"):
        verify(masked, small, plan)


def test_what_is_also_read_elsewhere_keeps_its_size() -> None:
    graph = sc.trace(layers(second=True), ROWS, inside="auto")
    assert graph.inside == ("0.up", "0.act", "0.down", "1.up", "1.act")
    assert [(group.name, group.size) for group in graph.groups] == [("0.up", 16)]


@pytest.mark.parametrize("repair", ["fold", "refit"])
def test_repairs_follow_what_is_passed_on(repair: str) -> None:
    model = layers()
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(5))
    plain, repaired = (
        sc.prune(model, ROWS, sc.Units(0.5), [x], method="magnitude", repair=how, inside="auto")
        for how in (None, repair)
    )
    with torch.no_grad():
        lost = [float((y.model(x) - model(x)).square().sum()) for y in (plain, repaired)]
    assert lost[1] < 0.9 * lost[0]
