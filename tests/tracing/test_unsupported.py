"""Models in a form that cannot be pruned, inputs and names that cannot be: what the errors say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.apply.shrink import shrink
from secateur.core import CaptureError, InputError, Plan
from secateur.core.errors import unknown
from secateur.methods import Magnitude
from secateur.tracing.trace import trace

X = torch.ones(4, 6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def compiled() -> nn.Module:
    model = mlp()
    model[0].compile()
    return model


FORMS = {
    "parallel": (lambda: nn.DataParallel(mlp()), "pass its .module"),
    "compiled": (lambda: torch.compile(mlp()), "before torch.compile"),
    "a compiled layer": (compiled, "module '0' is compiled"),
    "scripted": (lambda: torch.jit.script(mlp()), "TorchScript"),
    "exported": (lambda: torch.export.export(mlp(), (X,)).module(), "exported program"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3)), "call the model once"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_forms_that_cannot_be_pruned(form: str) -> None:
    make, words = FORMS[form]
    with pytest.raises(CaptureError, match=words):
        trace(make(), X)


def test_an_attribute_that_cannot_be_copied() -> None:
    model = mlp()
    model.source = (n for n in range(3))
    with pytest.raises(CaptureError, match=r"cannot pickle 'generator'.*remove the attribute"):
        trace(model, X)


def test_the_line_of_a_failure_is_in_a_layer_or_the_user_s_code() -> None:
    with pytest.raises(CaptureError, match=r"modules/linear\.py:\d+: return F\.linear"):
        trace(mlp(), torch.ones(4, 7))

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(7, 2)

    with pytest.raises(CaptureError, match=r"test_unsupported\.py:\d+: return x @ torch\.ones"):
        trace(Wrong(), X)


@pytest.mark.parametrize(
    ("ignored", "words"),
    [
        ("0", "a list of modules and names; got str"),
        (None, "got NoneType"),
        (nn.Linear(1, 1), "got Linear"),
        (["1"], r"'1' \(ReLU\) makes no units"),
        (["0.weigth"], "did you mean '0.weight'"),
        ([nn.Linear(1, 1)], "no layer 'Linear'"),
    ],
)
def test_layers_that_cannot_be_ignored(ignored: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        trace(mlp(), X, ignored)


def test_a_shared_layer_can_be_ignored_by_either_name() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), shared)
    assert [g.name for g in trace(model, X, ["2", "4"]).groups] == []
    with pytest.raises(InputError, match="example_kwargs"):
        trace(model, X, example_kwargs=[1])


@pytest.mark.parametrize(
    ("inputs", "device", "words"),
    [
        (torch.ones(4, 6, dtype=torch.long), None, "does not run in float64 or float32"),
        (X, "nowhere", "check_device 'nowhere' cannot be used"),
        (X, "meta", "got 'meta'"),
    ],
)
def test_checks_that_cannot_be_made(inputs: Tensor, device: str | None, words: str) -> None:
    model = mlp()
    graph = trace(model, inputs)
    plan = Plan(graph, "", keep={"0": torch.arange(4).numpy()})
    with pytest.raises(InputError, match=words):
        shrink(model, plan, check_device=device)


def test_a_model_without_values_is_shrunk_unchecked() -> None:
    model = mlp().to("meta")
    graph = trace(model, X.to("meta"))
    plan = Plan(graph, "", keep={"0": torch.arange(4).numpy()})
    with pytest.raises(InputError, match="check=False"):
        shrink(model, plan)
    assert shrink(model, plan, check=False)[0].weight.shape == (4, 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repair": ["folt"]}, "a repair is a name"),
        ({"callback": 3}, "callback must be a callable; got int"),
        ({"loss": "mse"}, "loss must be a callable; got str"),
        ({"data": 5}, "iterable of batches"),
        ({"seed": 2**64}, "a seed is an integer"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_decided(
    options: dict[str, Any], words: str
) -> None:
    class Never(Magnitude):
        def plan(self, *_: Any) -> Plan:
            raise AssertionError("too late")

    with pytest.raises(InputError, match=words):
        sc.prune(mlp(), X, sc.Units(0.5), method=Never(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_sizes": 3}, "batch_sizes are positive integers"),
        ({"batch_sizes": (1.5,)}, "batch_sizes are positive integers"),
        ({"batch_axis": -1}, "batch_axis is the number of an axis"),
        ({"batch_axis": 1, "batch_sizes": (2,)}, "2 examples along axis 1: Sequential cannot take"),
        ({"holdout": [(X, torch.full((4,), 3))]}, "targets go from 0 to 2 for 3 classes; got 3"),
        ({"holdout": [(X, None)], "metric": lambda model, batches: None}, "must return one number; got None"),
    ],
)
def test_measurements_check_their_options(options: dict[str, Any], words: str) -> None:
    result = sc.prune(mlp(), X, sc.Units(0.5), method="magnitude")
    with pytest.raises(InputError, match=words):
        result.measure(latency="holdout" not in options, **options)


def test_whatever_a_model_raises_is_told_with_the_shapes() -> None:
    class Four(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 4, "only four"
            return super().forward(x)

    with pytest.raises(InputError, match=r"with 1 examples along axis 0: Four .* \(1, 6\): .*only four"):
        sc.prune(Four(*mlp()), X, sc.Units(0.5), method="magnitude").measure(latency=True)
    with pytest.raises(InputError, match=r"batch 0, .*\(2, 6\)\]: AssertionError: only four"):
        sc.prune(Four(*mlp()), X, sc.Units(0.5), [(X[:2], None)], method="activation")


def test_a_plan_is_of_a_network_and_a_model_with_values() -> None:
    model = mlp().to("meta")
    graph = trace(model, X.to("meta"))
    for arguments, words in (((model,), "what trace"), ((graph,), "meta device")):
        with pytest.raises(InputError, match=words):
            sc.plan(*arguments, "magnitude", sc.Units(0.5))
    with pytest.raises(InputError, match="must be a torch"):
        sc.plan(graph, "magnitude", sc.Units(0.5), model=3)


@pytest.mark.parametrize("options", [{"floor": 1.5}, {"floor": "2"}, {"round_to": np.nan}, {"keep": True}])
def test_budgets_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"integers of at least 1|in \(0, 1\]; got True"):
        sc.Units(**{"keep": 0.5, **options})
    with pytest.raises(InputError, match="a number, 0 or more; got 'a'"):
        sc.Tolerance("a", [])
    assert repr(sc.Units(np.float32(0.5))) == repr(sc.Units(0.5))


def test_of_many_known_names_some_are_listed() -> None:
    said = unknown("layer", "x", [f"layer{i:03}" for i in range(500)])
    assert "'layer000'" in said and "and 480 more" in said and "layer300" not in said
