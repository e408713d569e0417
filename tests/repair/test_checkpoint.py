"""Checkpoints: a resumed training ends as an uninterrupted one, to the bit; another training is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.core import InputError, StoreError
from secateur.repair import checkpoint as checkpoint_module
from secateur.repair.finetune import adam, finetune


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def frozen_norm() -> nn.Sequential:
    model = net(0)
    model[1].eval()
    return model


def examples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


class Augmented(torch.utils.data.Dataset):
    """Examples with noise from torch's generator, drawn as they are read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = examples()[index]
        return x + 0.1 * torch.randn(6), y


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(DataLoader(examples(), 8)),
    "shuffled": lambda: DataLoader(examples(), 8, shuffle=True),
    "own generator": lambda: DataLoader(
        examples(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "augmented": lambda: DataLoader(Augmented(), 8, shuffle=True),
}


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


def stop_at(step: int) -> Callable[[int, float, nn.Module], None]:
    def hook(now: int, loss: float, model: nn.Module) -> None:
        if now == step:
            raise Stop

    return hook


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("stop", [1, 6, 12])
def test_a_resumed_training_ends_as_an_uninterrupted_one(name: str, stop: int, tmp_path: Path) -> None:
    model, teacher = net(0), net(1)
    before = copy.deepcopy(model.state_dict())
    options: dict[str, Any] = {"epochs": 3, "teacher": teacher, "features": ["0"], "progress": False}
    whole, history = finetune(model, LOADERS[name](), **options)
    options |= {"checkpoint": tmp_path / "training.pt", "checkpoint_steps": 2}
    data = LOADERS[name]()
    state = torch.get_rng_state()
    with pytest.raises(Stop):
        finetune(model, data, after_step=stop_at(stop), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert model.training and teacher.training and not teacher[0]._forward_hooks
    seen: list[int] = []
    resumed, again = finetune(
        model, LOADERS[name](), after_step=lambda step, *_: seen.append(step), **options
    )
    assert seen == list(range((stop - 1) // 2 * 2 + 1, 16))
    assert same(resumed, whole) and again.losses == history.losses
    finished, _ = finetune(model, LOADERS[name](), after_step=stop_at(1), **options)
    assert same(finished, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_optimisers_masks_and_dtypes_resume(dtype: torch.dtype, tmp_path: Path) -> None:
    model = net().to(dtype)
    data = [(x.to(dtype), y) for x, y in LOADERS["list"]()]
    masks = {"0.weight": np.arange(96).reshape(16, 6) % 2 == 0}
    options: dict[str, Any] = {"steps": 12, "masks": masks, "optimizer": adam, "lr": 0.01, "progress": False}
    whole, _ = finetune(model, data, **options)
    options |= {"checkpoint": str(tmp_path / "training.pt"), "checkpoint_steps": 5}
    with pytest.raises(Stop):
        finetune(model, data, after_step=stop_at(8), **options)
    resumed, _ = finetune(model, data, **options)
    assert same(resumed, whole) and resumed[0].weight.dtype == dtype
    assert torch.count_nonzero(resumed[0].weight[~torch.as_tensor(masks["0.weight"])]) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": net(5)}, "model"),
        ({"teacher": net(5)}, "teacher"),
        ({"lr": 0.5}, "lr"),
        ({"seed": 1}, "seed"),
        ({"steps": 5}, "limits"),
        ({"minutes": 1.0}, "limits"),
        ({"features": ["0"]}, "features"),
        ({"optimizer": adam}, "optimizer"),
        ({"teacher": None, "loss": nn.functional.cross_entropy}, "teacher"),
        ({"masks": {"0.weight": np.ones((16, 6), bool)}}, "masks"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    file = tmp_path / "training.pt"
    options: dict[str, Any] = {"model": net(0), "batches": LOADERS["list"](), "steps": 4, "teacher": net(1)}
    options |= {"checkpoint": file, "progress": False}
    finetune(**options)
    content = file.read_bytes()
    with pytest.raises(InputError, match=rf"another training: {named} was .*, now it is"):
        finetune(**{**options, **change})
    assert file.read_bytes() == content


def test_a_checkpoint_knows_the_modes_of_a_model_that_trains_with_labels(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "training.pt", "progress": False}
    finetune(net(0), LOADERS["list"](), **options)
    with pytest.raises(InputError, match="another training: model was"):
        finetune(frozen_norm(), LOADERS["list"](), **options)


def test_a_checkpoint_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "training.pt"
    options: dict[str, Any] = {
        "model": net(0),
        "batches": LOADERS["list"](),
        "teacher": net(1),
        "progress": False,
    }
    for content in (b"", b"text", b"PK\x03\x04 half a zip"):
        file.write_bytes(content)
        with pytest.raises(StoreError, match="not a checkpoint of finetune"):
            finetune(**options, checkpoint=file)
        assert file.read_bytes() == content
    torch.save(net(0).state_dict(), file)
    with pytest.raises(StoreError, match="not a checkpoint of finetune"):
        finetune(**options, checkpoint=file)
    with pytest.raises(StoreError, match="cannot be written"):
        finetune(**options, checkpoint=tmp_path / "nowhere" / "training.pt")
    with pytest.raises(StoreError, match="is a folder"):
        finetune(**options, checkpoint=tmp_path)

    def full(content: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    whole, _ = finetune(**options, steps=4)
    file.unlink()
    with pytest.raises(Stop):
        finetune(**options, steps=4, checkpoint=file, checkpoint_steps=1, after_step=stop_at(3))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
        patch.setattr(checkpoint_module.torch, "save", full)
        finetune(**options, steps=4, checkpoint=file, checkpoint_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    assert same(finetune(**options, steps=4, checkpoint=file)[0], whole)


def test_what_a_checkpoint_does_not_hold_is_refused(tmp_path: Path) -> None:
    def cycle(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        rule = torch.optim.SGD(parameters, lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(rule, lr, total_steps=9)
        rule.register_step_post_hook(lambda *_: schedule.step())
        return rule

    options: dict[str, Any] = {"model": net(0), "batches": LOADERS["list"](), "progress": False}
    for extra, message in (
        ({"optimizer": cycle}, "scheduler of your own"),
        ({"after_epoch": lambda epoch, model: None}, "after_epoch"),
        ({"checkpoint_steps": 0}, "positive integer"),
        ({"checkpoint_steps": True}, "positive integer"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(**options, **extra, checkpoint=tmp_path / "training.pt")
    with pytest.raises(InputError, match="give checkpoint="):
        finetune(**options, checkpoint_steps=3)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_follow_the_clock_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = checkpoint_module.Checkpoint.save

    def count(self: Any, state: Any) -> None:
        saved.append(len(state.losses))
        save(self, state)

    monkeypatch.setattr(checkpoint_module.Checkpoint, "save", count)
    options: dict[str, Any] = {"model": net(0), "batches": LOADERS["list"](), "progress": False}
    finetune(**options, checkpoint=tmp_path / "a.pt")
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0.0)
    finetune(**options, checkpoint=tmp_path / "b.pt")
    assert saved == [0, 5, 0, 1, 2, 3, 4, 5, 5]
