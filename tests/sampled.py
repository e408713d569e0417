"""Parameters of tests of which the fast suite takes a sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], *fast: Any) -> list[Any]:
    """List values as test parameters; all but those that follow are marked slow."""
    values = list(values)
    if wrong := [value for value in fast if value not in values]:
        raise ValueError(f"{wrong} is not among the parameters {values}")
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
