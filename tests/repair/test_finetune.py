"""Fine-tuning: masks persist, nothing of the user's changes, the same seed gives the same weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from training_batches import batches, mlp

import secateur as sc
from secateur.core import InputError, PlanError
from secateur.repair import finetune as finetune_module
from secateur.repair import training
from secateur.repair.finetune import adam, finetune
from secateur.statistics import loss
from secateur.statistics.loss import distillation_loss


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
        ({"minutes": 0}, InputError, "minutes must be a positive number"),
        ({"minutes": math.nan}, InputError, "minutes must be a positive number"),
        ({"lr": 1e38}, InputError, "AdamW fails at step 1.*smaller lr"),
        ({"lr": 1e38, "optimizer": adam}, InputError, "Adam fails at step 1.*smaller lr"),
        ({"loss": lambda output, targets: output.sum() * 1j}, InputError, "real number; got torch.complex64"),
        (
            {"loss": lambda output, targets: (output * 0).sqrt().sum()},
            InputError,
            "the gradient is .* at step 1",
        ),
        ({"features": ["0"]}, InputError, "pass teacher="),
        ({"features": None, "teacher": mlp()}, InputError, "list of names"),
        ({"optimizer": "adam"}, InputError, "optimizer must be a callable; got str"),
        ({"optimizer": lambda parameters, lr: None}, InputError, "torch.optim.Optimizer.*got NoneType"),
        (
            {"optimizer": lambda parameters, lr: torch.optim.LBFGS(parameters)},
            InputError,
            "no closure.*LBFGS",
        ),
        ({"after_step": 3}, InputError, "after_step must be a callable; got int"),
        ({"checkpoint": 3}, InputError, "path of a file; got int"),
        ({"features": "0", "teacher": mlp()}, InputError, "list of names"),
        ({"features": ["9.*"], "teacher": mlp()}, InputError, "no module of the model and its teacher '9"),
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


def test_the_default_learning_rate_rises_and_falls_and_gradients_are_clipped() -> None:
    moved: list[float] = []
    model = nn.Linear(6, 2, bias=False)
    weights = [model.weight.detach().clone()]

    def watch(step: int, loss: float, trained: nn.Module) -> None:
        weights.append(trained.weight.detach().clone())
        moved.append(float((weights[-1] - weights[-2]).abs().max()))

    # A constant direction: Adam moves by the learning rate, whatever the size of the gradient.
    data = [torch.ones(1, 6)] * 100
    finetune(model, data, loss=lambda out, _: 1e6 * out.sum(), lr=0.01, after_step=watch, progress=False)
    rates = [0.01 * (0.1 + 0.9 * (k + 0.5) / 5) for k in range(5)]
    rates += [0.005 * (1 + math.cos(math.pi * ((k + 0.5) / 100 - 0.05) / 0.95)) for k in range(5, 100)]
    assert moved == pytest.approx(rates, rel=0.05, abs=2e-6)
    assert max(moved) == pytest.approx(0.01, rel=0.01) and moved[-1] < 1e-5


def test_time_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: 0.1 * next(clock))
    _, history = finetune(mlp(), batches(), minutes=0.5, progress=False)
    assert 20 < len(history.losses) < 200 and 30 <= history.seconds < 31
    assert len(finetune(mlp(), batches(), minutes=0.5, steps=3, progress=False)[1].losses) == 3
    assert len(finetune(mlp(), batches(), minutes=0.5, epochs=2, progress=False)[1].losses) == 8
    assert len(finetune(mlp(), batches(), minutes=1e-9, progress=False)[1].losses) == 1


def test_batches_without_a_length_need_steps_or_minutes() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for x, y in batches():
                yield from zip(x, y, strict=True)

    loader = DataLoader(Stream(), 8)
    with pytest.raises(InputError, match=r"no length.*steps= or minutes="):
        finetune(mlp(), loader, progress=False)
    assert len(finetune(mlp(), loader, steps=6, progress=False)[1].losses) == 6
    assert len(finetune(mlp(), loader, optimizer=adam, progress=False)[1].losses) == 4


def test_an_interrupt_leaves_the_model_and_its_teacher_as_they_were() -> None:
    model, teacher = mlp(), mlp()
    before = copy.deepcopy((model.state_dict(), teacher.state_dict()))

    def stop(step: int, loss: float, trained: nn.Module) -> None:
        assert math.isfinite(loss) and trained is not model
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model, batches(), teacher=teacher, features=["0"], after_step=stop, progress=False)
    for state, whole in zip(before, (model, teacher), strict=True):
        assert all(torch.equal(x, whole.state_dict()[name]) for name, x in state.items())
        assert all(m.training and not m._forward_hooks for m in whole.modules())


def test_an_optimiser_of_ones_own_is_used_as_it_is() -> None:
    """Adam with a constant rate and without clipping, as torch alone does it."""
    model, data = mlp().eval(), batches()
    tuned, _ = finetune(model, data, epochs=2, lr=0.03, optimizer=adam, seed=4, progress=False)
    by_hand = copy.deepcopy(model).train()
    rule = torch.optim.Adam(by_hand.parameters(), 0.03)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for x, y in data * 2:
            rule.zero_grad()
            nn.functional.cross_entropy(by_hand(x), y).backward()
            rule.step()
    pairs = zip(tuned.state_dict().values(), by_hand.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("training", [False, True])
def test_with_a_teacher_the_copy_trains_in_evaluation_mode(training: bool) -> None:
    """Like the teacher: BatchNorm keeps its statistics, dropout is off, and the modes come back."""
    model, teacher = mlp().train(training), mlp().train()
    modes: list[bool] = []

    def watch(step: int, loss: float, trained: nn.Module) -> None:
        modes.extend(m.training for m in trained.modules())

    small, history = finetune(model, batches(), teacher=teacher, after_step=watch, lr=0.01, progress=False)
    assert not any(modes) and len(modes) == 6 * 4
    assert torch.equal(small[1].running_mean, model[1].running_mean)
    assert not torch.equal(small[1].weight, model[1].weight)
    assert all(m.training == training for m in small.modules())
    assert all(m.training for m in teacher.modules())
    same, again = finetune(model, batches(), teacher=teacher, seed=1, lr=0.01, progress=False)
    assert history.losses == again.losses and torch.equal(same[0].weight, small[0].weight)


def test_a_pruning_reaches_the_options() -> None:
    torch.manual_seed(0)
    model, data = mlp().eval(), batches()
    repair = (sc.Fold(), sc.Finetune(teacher=True, steps=30, minutes=5, lr=0.01, features=["4"]))
    result = sc.prune(
        model, data[0][0], sc.Units(0.5), data, method="magnitude", repair=repair, progress=False
    )
    tuning = result.report.finetune
    known = {"teacher": True, "steps": 30, "minutes": 5, "lr": 0.01, "features": ["4"]}
    assert {name: tuning[name] for name in known} == known and tuning["last loss"] < tuning["first loss"]
    # Features need the teacher, so it is there although the batches have labels.
    repair = (sc.Finetune(features=["*"]),)
    result = sc.prune(
        model, data[0][0], sc.Units(0.5), data, method="magnitude", repair=repair, progress=False
    )
    assert result.report.finetune["teacher"] is True and result.report.finetune["features"] == ["4"]
    assert "teacher" in result.report.to_json()


def test_sparse_gradients_need_an_optimiser_of_ones_own() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    data = [(torch.randint(10, (4, 2)), torch.zeros(4).long())]
    with pytest.raises(InputError, match="AdamW takes no sparse gradients"):
        finetune(model, data, progress=False)
    mask = half(model[0].weight)
    tuned, _ = finetune(
        model,
        data,
        lr=0.1,
        masks={"0.weight": mask},
        optimizer=lambda p, lr: torch.optim.SGD(p, lr),
        progress=False,
    )
    assert torch.count_nonzero(tuned[0].weight[~torch.as_tensor(mask)]) == 0
    assert not torch.equal(tuned[0].weight[torch.as_tensor(mask)], model[0].weight[torch.as_tensor(mask)])


@pytest.mark.parametrize("labels", [False, True])
def test_layers_may_compute_in_bfloat16(labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on CUDA, on the CPU: weights, losses and optimiser stay in float32."""
    seen: list[torch.dtype] = []

    def autocast(model: nn.Module, mixed: bool) -> torch.autocast:
        assert mixed
        return torch.autocast("cpu", torch.bfloat16)

    monkeypatch.setattr(finetune_module, "_autocast", autocast)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    small = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    small[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    options: dict = {} if labels else {"teacher": teacher, "features": ["2"]}
    tuned, history = finetune(small, batches(8, 32), epochs=20, lr=0.01, **options, progress=False)
    assert set(seen) == {torch.bfloat16} and {p.dtype for p in tuned.parameters()} == {torch.float32}
    assert sum(history.losses[-8:]) < 0.6 * sum(history.losses[:8])


def test_the_divergence_of_many_positions_is_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scores, wanted = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    whole = distillation_loss({"logits": scores}, {"logits": wanted})
    (gradient,) = torch.autograd.grad(whole, scores)
    monkeypatch.setattr(loss, "BLOCK", 12)
    blocks = distillation_loss({"logits": scores}, {"logits": wanted})
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks, scores)[0], gradient)
