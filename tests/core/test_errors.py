"""Values in messages stay short, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest

import secateur as sc
from secateur.core import InputError, brief


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


LONG = [
    list(range(10**5)),
    {str(i): [i] * 50 for i in range(1000)},
    "x" * 10**5,
    10**5000,
    [[[[1] * 9] * 9] * 9] * 9,
    Broken(),
]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_long_and_broken_values_are_short_in_messages(value: Any) -> None:
    assert len(brief(value)) <= 210
    with pytest.raises(InputError) as caught:
        sc.Params(value)
    assert len(str(caught.value)) < 300


def test_short_values_are_shown_as_they_are() -> None:
    for value in (None, 0.5, "linear", [1, 2], {"a": (1, "b")}):
        assert brief(value) == repr(value)
