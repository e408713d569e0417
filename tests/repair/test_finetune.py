"""Fine-tuning: masks persist, nothing of the user's changes, the same seed gives the same weights."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from secateur.core import InputError, PlanError
from secateur.repair.finetune import finetune
from secateur.statistics.loss import distillation_loss


def batches(count: int = 4, rows: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(count, rows, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long()) for x in xs]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def half(weight: torch.Tensor) -> np.ndarray:
    return (np.arange(weight.numel()) % 2 == 0).reshape(weight.shape)


OPTIMIZERS = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masked_weights_stay_exactly_zero_and_the_others_move(name: str, dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    masks = {"0.weight": half(model[0].weight), "4.weight": torch.as_tensor(half(model[4].weight))}
    seen: list[float] = []

    def watch(module: nn.Module, _: object) -> None:
        seen.append(float(module.weight.detach()[~torch.as_tensor(masks["0.weight"])].abs().max()))

    model[0].register_forward_pre_hook(watch)
    tuned, _ = finetune(
        model, batches(), epochs=3, lr=0.05, masks=masks, optimizer=OPTIMIZERS[name], progress=False
    )
    for index in (0, 4):
        stays = torch.as_tensor(masks[f"{index}.weight"])
        assert torch.count_nonzero(tuned[index].weight[~stays]) == 0
        assert not torch.equal(tuned[index].weight[stays], model[index].weight[stays])
    assert len(seen) == 12
    assert max(seen) == 0


def test_an_optimiser_with_a_past_cannot_revive_a_weight() -> None:
    """Momentum gathered before the mask would move masked weights; they are set back each step."""
    model = nn.Linear(6, 2)

    def primed(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        rule = torch.optim.SGD(parameters, lr, momentum=0.9)
        for p in parameters:
            rule.state[p]["momentum_buffer"] = torch.ones_like(p)
        return rule

    mask = half(model.weight)
    tuned, _ = finetune(model, batches(), steps=3, masks={"weight": mask}, optimizer=primed, progress=False)
    assert torch.count_nonzero(tuned.weight[~torch.as_tensor(mask)]) == 0


def test_the_users_model_and_generators_are_left_alone() -> None:
    model = mlp().eval()
    model[4].bias.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tuned, _ = finetune(model, batches(), epochs=1, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None for m in (model, tuned) for p in m.parameters())
    assert not tuned.training
    assert not any(m.training for m in tuned.modules())
    assert not tuned[4].bias.requires_grad
    assert torch.equal(tuned[4].bias, model[4].bias)
    assert not torch.equal(tuned[1].running_mean, model[1].running_mean)


def test_a_model_in_training_mode_keeps_modules_that_are_held_fixed() -> None:
    model = mlp().train()
    model[1].eval()
    tuned, _ = finetune(model, batches(), epochs=1, progress=False)
    assert torch.equal(tuned[1].running_mean, model[1].running_mean)
    assert tuned.training
    assert not tuned[1].training


def test_it_learns_and_repeats_itself() -> None:
    model = mlp()
    first, history = finetune(model, batches(8, 32), epochs=15, lr=0.01, seed=3, progress=False)
    again, same = finetune(model, batches(8, 32), epochs=15, lr=0.01, seed=3, progress=False)
    other, _ = finetune(model, batches(8, 32), epochs=15, lr=0.01, seed=4, progress=False)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert history.losses == same.losses
    assert len(history.losses) == 120
    assert sum(history.losses[-8:]) < 0.5 * sum(history.losses[:8])


def test_steps_count_over_epochs_and_iterators_are_kept() -> None:
    tuned, history = finetune(mlp(), iter(batches(3)), steps=7, progress=False)
    assert len(history.losses) == 7
    assert isinstance(tuned, nn.Sequential)


def test_tied_weights_stay_tied_and_masked() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    mask = half(model[0].weight)
    tuned, _ = finetune(model, batches(), epochs=2, masks={"2.weight": mask}, progress=False)
    assert tuned[2].weight is tuned[0].weight
    assert torch.count_nonzero(tuned[0].weight[~torch.as_tensor(mask)]) == 0


def test_a_loss_of_ones_own_needs_no_targets() -> None:
    model = mlp()
    quiet, history = finetune(
        model,
        [(x, None) for x, _ in batches()],
        epochs=20,
        lr=0.01,
        loss=lambda out, _: out.pow(2).mean(),
        progress=False,
    )
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert quiet is not model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [False, True])
def test_a_teacher_takes_the_place_of_labels(labels: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    small = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    data = [(x.to(dtype), y if labels else None) for x, y in batches(8, 32)]
    before = copy.deepcopy(model.state_dict())
    tuned, history = finetune(small, data, epochs=20, lr=0.01, teacher=model, progress=False)
    assert history.losses[-1] < 0.2 * history.losses[0]
    assert {p.dtype for p in tuned.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_divergence_is_for_classes_and_relative_for_the_rest() -> None:
    torch.manual_seed(0)
    scores, wanted = torch.randn(5, 4), torch.randn(5, 4)
    logs = [torch.log_softmax(x, -1) for x in (scores, wanted)]
    each = (logs[1].exp() * (logs[1] - logs[0])).sum(-1)
    for given, targets in (({"logits": wanted}, None), (wanted, torch.zeros(5, dtype=torch.long))):
        output = {"logits": scores} if isinstance(given, dict) else scores
        torch.testing.assert_close(distillation_loss(output, given, targets), each.mean())
    ignored = torch.tensor([0, -100, 0, 0, -100])
    torch.testing.assert_close(distillation_loss(scores, wanted, ignored), each[[0, 2, 3]].mean())
    relative = (scores - wanted).square().mean() / wanted.var(unbiased=False)
    torch.testing.assert_close(distillation_loss((scores, 3 * scores), (wanted, 3 * wanted)), 2 * relative)
    torch.testing.assert_close(distillation_loss(scores, wanted), each.mean() + relative)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": 1, "steps": 1}, InputError, "not both"),
        ({"epochs": 0}, InputError, "positive"),
        ({"lr": 0}, InputError, "positive"),
        ({"lr": math.inf}, InputError, "positive"),
        ({"epochs": 1.5}, InputError, "integer; got 1.5"),
        ({"steps": math.nan}, InputError, "integer; got nan"),
        ({"seed": -1}, InputError, "seed"),
        ({"loss": lambda output, targets: output}, InputError, "one number"),
        ({"loss": lambda output, targets: 1.0}, InputError, "one number"),
        ({"loss": lambda output, targets: output.sum() * math.nan}, InputError, "nan at step 1"),
        ({"teacher": "original"}, InputError, "teacher must be a"),
        ({"teacher": nn.Linear(6, 2), "loss": max}, InputError, "not both"),
        ({"teacher": nn.Linear(6, 3)}, InputError, "its teacher"),
        ({"batches": []}, InputError, "no batches"),
        ({"batches": [torch.zeros(2, 6)]}, InputError, "batch 0 has no targets.*teacher="),
        (
            {"batches": [(torch.full((2, 6), math.nan), torch.zeros(2).long())]},
            InputError,
            "inputs of batch 0 hold NaN",
        ),
        ({"batches": [(torch.zeros(2, 6), torch.zeros(2))]}, InputError, "pass loss="),
        ({"masks": {"0.wieght": np.ones((16, 6), bool)}}, PlanError, "did you mean '0.weight'"),
        ({"masks": {"0.weight": np.ones((16, 5), bool)}}, PlanError, r"shape \(16, 6\)"),
        ({"masks": {"0.weight": np.ones((16, 6))}}, PlanError, "boolean"),
    ],
)
def test_bad_input(change: dict, error: type, words: str) -> None:
    arguments = {"model": mlp(), "batches": batches(), "progress": False, **change}
    with pytest.raises(error, match=words):
        finetune(**arguments)


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="nothing to train"):
        finetune(mlp().requires_grad_(False), batches(), progress=False)


def test_a_hook_sees_each_epoch_and_its_masks_are_held_from_then_on() -> None:
    model, seen = mlp(), []
    masks = {"0.weight": half(model[0].weight)}
    gone = ~torch.as_tensor(masks["0.weight"])

    def hook(epoch: int, trained: nn.Module) -> dict[str, np.ndarray] | None:
        seen.append((epoch, float(trained[0].weight.detach()[gone].abs().max())))
        return {2: masks, 4: {}}.get(epoch)

    tuned, history = finetune(model, batches(), epochs=5, lr=0.05, after_epoch=hook, progress=False)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5] and len(history.losses) == 20
    assert [largest == 0 for _, largest in seen] == [False, False, True, True, False]
    assert tuned[0].weight[gone].all()
    bad = {"nine.weight": masks["0.weight"]}
    with pytest.raises(PlanError, match=r"no parameter 'nine\.weight'"):
        finetune(model, batches(), after_epoch=lambda epoch, trained: bad, progress=False)


def test_an_error_of_the_loss_names_the_batch() -> None:
    with pytest.raises(InputError, match=r"the loss cannot take batch 0.*ZeroDivisionError"):
        finetune(nn.Linear(3, 3), [(torch.eye(3), torch.arange(3))], loss=lambda a, b: 1 / 0, progress=False)
