"""Measured milliseconds on disk, by what was timed and on which machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["TimeCache", "cache_folder", "describe_environment"]

FORMAT = 1


def cache_folder() -> Path:
    """Return the folder for measured times: ``secateur`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "secateur" / "latency"


def describe_environment(device: torch.device, dtype: torch.dtype, threads: int) -> dict[str, Any]:
    """Return what measured times depend on besides the layer."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "format": FORMAT,
        "machine": platform.node(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "device": device.type,
        "chip": chip,
        "torch": torch.__version__,
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
    }


@dataclass(frozen=True)
class TimeCache:
    """A JSON file of measured times for one machine, version of torch, type and number of threads.

    Writers replace the file as a whole, so readers never see a part of it.  Of two writers at once, the
    measurements of one may be lost and are taken again.

    Attributes:
        path: The file.
        environment: See `describe_environment`.
    """

    path: Path
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> TimeCache:
        """Return the file in the user's cache for an environment."""
        text = json.dumps(dict(environment), sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(cache_folder() / f"{name}.json", environment)

    def read(self) -> dict[str, float]:
        """Return milliseconds by key; nothing if there is no file, or if another program wrote it."""
        try:
            document = json.loads(self.path.read_text())
            if document["environment"] != dict(self.environment):
                return {}
            return {str(key): float(ms) for key, ms in document["milliseconds"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def write(self, milliseconds: Mapping[str, float]) -> None:
        """Write milliseconds by key in place of what there was; warn if the folder cannot be written."""
        document = {"environment": dict(self.environment), "milliseconds": dict(milliseconds)}
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            with os.fdopen(number, "w") as file:
                json.dump(document, file)
            Path(temporary).replace(self.path)
        except OSError as error:
            warnings.warn(
                f"measured times cannot be stored in {self.path.parent} ({error.strerror or error}) and will "
                f"be measured again; XDG_CACHE_HOME names another folder",
                stacklevel=2,
            )
            if temporary is not None:
                with suppress(OSError):
                    Path(temporary).unlink()
