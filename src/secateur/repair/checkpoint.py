"""Checkpoints of a training, which then resumes as if it had never stopped."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import InputError, StoreError, brief
from secateur.core.paths import to_path
from secateur.execution import tensors_of
from secateur.repair.training import Limits, TrainingState

__all__ = ["Checkpoint", "check_checkpoint", "fingerprint", "hash_tensors", "training_settings"]

SECONDS = 60.0  # from one checkpoint to the next, by default
Settings = Mapping[str, str | int | float | None]


@dataclass(eq=False)
class Checkpoint:
    """A file that holds the state of a training.

    Attributes:
        path: The file.  It is replaced as a whole, so an interrupt leaves the one before.
        steps: Steps from one checkpoint to the next; None for a minute.
        settings: What decides the result.  A training with other settings does not resume from this file.
    """

    path: Path
    steps: int | None
    settings: Settings

    def resume(self, state: TrainingState) -> None:
        """Continue from the file if it exists; else write the first one, which shows that it can be written.

        Raises:
            InputError: If the file is of another training.
            StoreError: If the file is not a checkpoint, or cannot be written.
        """
        if self.path.is_dir():
            raise StoreError(f"the checkpoint {self.path} is a folder; give the name of a file")
        if not self.path.exists():
            state.epoch_start = state._generators()
            self.save(state)
            return
        saved = self._read()
        for name, value in self.settings.items():
            if saved["settings"].get(name) != value:
                raise InputError(
                    f"{self.path} is the checkpoint of another training: {name} was "
                    f"{saved['settings'].get(name)}, now it is {value}; name another file, or remove this one"
                )
        state.load_state_dict(saved["state"])
        self._saved = time.perf_counter()

    def _read(self) -> dict[str, Any]:
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            if saved["kind"] != "secateur training":
                raise KeyError("kind")
        except Exception as error:
            raise StoreError(
                f"{self.path} is not a checkpoint of finetune, or it is damaged ({type(error).__name__}); "
                "name another file, or remove this one"
            ) from error
        return dict(saved)

    def save_if_due(self, state: TrainingState) -> None:
        """Save the state, if enough steps or seconds have passed."""
        if self.steps is None:
            due = time.perf_counter() - self._saved > SECONDS
        else:
            due = len(state.losses) % self.steps == 0
        if due:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Save the state to a draft, which then replaces the file.

        Raises:
            StoreError: If it cannot be written.
        """
        content = {"kind": "secateur training", "settings": dict(self.settings), "state": state.state_dict()}
        draft = None
        try:
            with tempfile.NamedTemporaryFile(
                dir=self.path.parent, prefix=f".{self.path.name}.", delete=False
            ) as file:
                draft = Path(file.name)
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except (OSError, RuntimeError) as error:
            raise StoreError(f"the checkpoint {self.path} cannot be written: {error}") from error
        finally:
            if draft is not None:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
        self._saved = time.perf_counter()


def check_checkpoint(path: Any, steps: Any, after_epoch: Any) -> None:
    """Raise `InputError` if the arguments of `finetune` for a checkpoint are invalid."""
    if not isinstance(path, (str, os.PathLike, NoneType)):
        raise InputError(f"checkpoint must be the path of a file; got {type(path).__name__}")
    if path is not None:
        to_path(Path(path))
    if path is None and steps is not None:
        raise InputError("checkpoint_steps= is for a checkpoint: give checkpoint=, too")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise InputError(f"checkpoint_steps must be a positive integer; got {brief(steps)}")
    if path is not None and after_epoch is not None:
        raise InputError("a checkpoint does not hold what after_epoch= remembers: give one of them")


def training_settings(
    state: TrainingState,
    limits: Limits,
    lr: float,
    seed: int,
    loss: Any,
    teacher: nn.Module | None,
    features: Sequence[str],
) -> dict[str, str]:
    """Return what decides the result of a training, by name.

    Raises:
        InputError: If the user's optimiser has a scheduler.
    """
    groups = state.optimizer.param_groups
    if state.scheduler is None and any("initial_lr" in group for group in groups):
        raise InputError("a checkpoint does not hold the scheduler of your own optimizer: give one of them")
    rules = [{key: x for key, x in group.items() if key != "params"} for group in groups]
    return {
        "teacher": "None" if teacher is None else fingerprint(teacher),
        "model": fingerprint(state.model),
        "loss": getattr(loss, "__qualname__", type(loss).__name__),
        "masks": hash_tensors({str(number): gone for number, (_, gone) in enumerate(state.masked)}),
        "features": ", ".join(features),
        "limits": f"{limits}, {limits.total(state.batches)} steps",
        "lr": str(lr),
        "seed": str(seed),
        "optimizer": f"{type(state.optimizer).__name__} {rules}",
    }


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names.

    Example:
        >>> a, b = {"x": torch.ones(2)}, {"x": torch.ones(2, dtype=torch.bfloat16)}
        >>> hash_tensors(a) == hash_tensors(a), hash_tensors(a) == hash_tensors(b)
        (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Return a model's class and a hash of its tensors, modules, modes, and trained parameters.

    Example:
        >>> fingerprint(nn.Linear(1, 1)).split()[0]
        'Linear'
    """
    modes = [module.training for module in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]
    digest = hashlib.sha256(f"{hash_tensors(tensors_of(model))} {model!r} {modes} {trained}".encode())
    return f"{type(model).__name__} {digest.hexdigest()[:12]}"
