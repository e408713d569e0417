"""Trained weights that several cells of a study use: trained once, kept in a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

__all__ = ["remembered"]


def remembered(path: Path, model: nn.Module, train: Callable[[], nn.Module]) -> nn.Module:
    """Return a trained model in evaluation mode: from the file, or trained now and written there.

    Other processes see the whole file or none; one that was cut short is written anew.

    Args:
        path: Safetensors file; its name says all that the training depends on.
        model: An untrained model, filled from the file if there is one.
        train: Returns the trained model.
    """
    with suppress(FileNotFoundError, SafetensorError):
        load_model(model, path)
        return model.eval()
    trained = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_model(trained, str(part))
    part.replace(path)
    return trained.eval()
