"""Trained weights that several cells of a study use: trained once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from secateur.bench.models import hash_values
from secateur.bench.trial import key_versions
from secateur.data import Dataset

__all__ = ["remembered", "weights_file"]


def weights_file(folder: str | Path, stem: str, data: Dataset, said: Sequence[Any]) -> Path:
    """Return the file of a trained network: its name says what it was trained on, how, and with what.

    Args:
        folder: Where it lies.
        stem: Beginning of its name.
        data: Of which the training part counts, to the last bit.
        said: All else that the training depends on, as JSON can hold it.
    """
    whole = json.dumps([*said, hash_values([data.parts["train"]]), key_versions()], sort_keys=True)
    return Path(folder) / f"{stem}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}.safetensors"


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
