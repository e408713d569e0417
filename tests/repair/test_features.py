"""Fine-tuning towards the features of a teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_batches import batches

from secateur.core import InputError
from secateur.repair.finetune import finetune
from secateur.statistics.loss import distillation_loss, relative_square


def test_features_follow_those_of_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    small = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [x for x, _ in batches(8, 32)]
    options: dict = {"epochs": 10, "lr": 0.02, "teacher": teacher, "progress": False}

    @torch.no_grad()
    def distance(model: nn.Module) -> float:
        return float(sum(relative_square(model[:3](x), teacher[:3](x)) for x in data))

    plain, none = finetune(small, data, **options)
    named, history = finetune(small, data, **options, features=["2"])
    every, used = finetune(small, data, **options, features=["*"])
    assert (none.features, history.features, used.features) == ((), ("2",), ("2", "3", "4"))
    assert distance(named) < 0.2 * distance(plain) and distance(every) < 0.5 * distance(plain)
    assert not any(m._forward_hooks for model in (small, teacher, named) for m in model)
    with pytest.raises(
        InputError, match=r"'0' have shapes \[\(32, 10\)\], .*\[\(32, 16\)\].*keeps its width"
    ):
        finetune(small, data, **options, features=["0"])
    with pytest.raises(InputError, match="no module keeps the shape"):
        finetune(small, data, **options, features=["[01]"])


def test_features_of_modules_with_several_calls_and_outputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            states, _ = self.rnn(x)
            return {"logits": self.head(self.head(states))}

    torch.manual_seed(0)
    teacher, model = Net(), Net()
    data = [{"x": torch.randn(4, length, 6)} for length in (3, 7, 5)]
    _, history = finetune(
        model, data, teacher=teacher, features=["rnn", "head"], epochs=30, lr=0.02, progress=False
    )
    assert history.features == ("rnn", "head") and history.losses[-1] < 0.3 * history.losses[0]


def test_a_constant_output_of_the_teacher_has_a_finite_loss() -> None:
    wanted = torch.full((4, 1), 3.0)
    for values, expected in ((wanted, 0.0), (wanted + 3, 1.0)):
        assert float(relative_square(values, wanted)) == pytest.approx(expected)
    assert float(relative_square(torch.full((4, 1), 2.0), torch.zeros(4, 1))) == 4
    loss = distillation_loss(torch.ones(1, 1), torch.full((1, 1), 2.0))
    assert float(loss) == pytest.approx(0.25)


def test_features_of_a_module_that_some_batches_skip() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.deep = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide(x) if len(x) > 4 else self.deep(x)

    data = [torch.randn(size, 6) for size in (8, 4, 8)]
    _, history = finetune(Net(), data, teacher=Net(), features=(name for name in ("wide",)), progress=False)
    assert history.features == ("wide",) and len(history.losses) == 3
    with pytest.raises(InputError, match="'deep' returned no floating tensor for the first batch"):
        finetune(Net(), data, teacher=Net(), features=["deep"], progress=False)
