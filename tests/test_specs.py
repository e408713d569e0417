"""What a user names, made into models, batches, methods and budgets."""

from __future__ import annotations

import pytest

from secateur.core import InputError
from secateur.specs import example_of, make_method


@pytest.mark.parametrize("text", ["2,3,4", "2x3x4", " 2, 3,4"])
def test_example_shapes(text: str) -> None:
    assert example_of(text).shape == (2, 3, 4)


def test_method_options() -> None:
    method = make_method("magnitude:p=2,over=both,normalize=False")
    assert (method.p, method.over, method.normalize) == (2, "both", False)
    with pytest.raises(InputError, match="no option of random"):
        make_method("random:p=1")
