"""Views: they share everything with a model, return only what counts, and leave the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import secateur as sc
from secateur.core import Interface
from secateur.views import view, without_view


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"logits": self.first(x), "other": self.second(x)}


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
LOGITS = Interface(("logits",))


def test_a_view_is_another_module_with_the_same_tensors() -> None:
    model = TwoHeads()
    model.register_forward_hook(lambda *_: seen.append(1))
    seen: list[int] = []
    before = {name: copy.copy(value) for name, value in vars(model).items()}
    shown = view(model, LOGITS)
    assert isinstance(shown, TwoHeads) and shown is not model
    assert [(n, id(p)) for n, p in shown.named_parameters()] == [
        (n, id(p)) for n, p in model.named_parameters()
    ]
    output = shown(X)
    assert output["other"] is None and torch.equal(output["logits"], model.first(X))
    assert seen == [1] and model.calls == 0
    assert {name: vars(model)[name] for name in before} == before
    assert model(X)["other"] is not None


def test_without_outputs_the_view_is_the_model() -> None:
    model = TwoHeads()
    assert view(model, Interface()) is model


def test_copies_and_functional_calls_see_the_same_and_the_view_comes_off() -> None:
    shown = view(TwoHeads(), LOGITS)
    copied = copy.deepcopy(shown)
    assert copied(X)["other"] is None
    doubled = {name: 2 * p for name, p in shown.named_parameters()}
    output: Any = functional_call(shown, doubled, (X,))
    assert output["other"] is None and torch.allclose(output["logits"], 2 * shown(X)["logits"])
    again = view(copied, Interface(("other",)))
    assert again(X)["logits"] is None, "a view of a view is one view"
    assert without_view(copied) is copied and copied(X)["other"] is not None
    assert not copied._forward_hooks and not copied._forward_hooks_with_kwargs


def test_copies_of_a_model_of_torch_fx_are_views() -> None:
    """They copy themselves, without hooks."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.first(x).relu()
            return h, self.second(h)

    traced = torch.fx.symbolic_trace(Pair())
    copied = copy.deepcopy(copy.deepcopy(view(traced, Interface(("1",)))))
    assert copied(X)[0] is None and torch.equal(copied(X)[1], traced(X)[1])
    assert copied.first.weight is not traced.first.weight
    assert without_view(copied)(X)[0] is not None
    result = sc.prune(traced, X, sc.Units(0.5), [X], outputs=1, repair="fold+finetune", progress=False)
    assert result.model(X)[0].shape == (5, 2)
