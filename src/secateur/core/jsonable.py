"""Values in the types of strict JSON, and the versions that produced a result."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["plain", "versions"]


def plain(value: Any) -> Any:
    """Return a value in the types of strict JSON: lists, string keys, no arrays; NaN and infinities as text.

    Example:
        >>> plain({"a": np.arange(2), 3: (np.float64(1.5), float("inf"))})
        {'a': [0, 1], '3': [1.5, 'Infinity']}
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def versions() -> dict[str, str]:
    """Return the versions of secateur and of what it computes with."""
    names = ("secateur", "torch", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
