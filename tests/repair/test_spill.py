"""Tensors of paused passes on disk: they come back to the bit, and nothing else is touched."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.core import InputError
from secateur.repair.spill import Spill


def stored(x: torch.Tensor) -> int:
    return x.untyped_storage().nbytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_to_the_bit_with_their_views(dtype: torch.dtype) -> None:
    spill, x, weight = Spill(0), torch.randn(3, 4).to(dtype), torch.randn(4).to(dtype)
    with spill.resident(0):
        spill.start(0, [x])
        y = x.clone()
        spill.track(0, [x], y)
        view = y.T
        spill.track(0, [y], view)
        other = weight.clone()
        spill.track(0, [weight], other)
    assert stored(y) == 0 and stored(view) == 0
    assert stored(x) and stored(other)  # an input, and what does not come from one
    with spill.resident(0):
        assert torch.equal(y, x) and torch.equal(view, x.T)
        y.zero_()
    with spill.resident(0):
        assert not view.any()
    spill.close()


def test_what_was_only_read_is_not_written_again() -> None:
    spill, x = Spill(0), torch.ones(100)
    with spill.resident(0):
        spill.start(0, x)
        y = x + 1
        spill.track(0, x, y)
    written = spill.written
    with spill.resident(0, changes=False):
        assert float(y.sum()) == 200
    assert spill.written == written == 400 and stored(y) == 0
    spill.close()


def test_the_limit_counts_all_passes_and_dead_tensors_do_not_count() -> None:
    spill, kept = Spill(limit=900), []
    for number in range(3):
        x = torch.ones(100)
        with spill.resident(number):
            spill.start(number, x)
            y, dead = x + number, x + 5
            spill.track(number, x, (y, dead))
            del dead
        kept.append((x, y))
    assert [stored(y) for _, y in kept] == [400, 400, 0]
    spill.close()


def test_empty_tensors_are_left_alone() -> None:
    spill, x = Spill(-1), torch.ones(0, 3)
    for _ in range(2):
        with spill.resident(0):
            spill.start(0, torch.ones(1))
            spill.track(0, x, x + 1)
    assert spill.written == 0


def test_a_full_disk_is_explained_and_the_folder_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spill, x = Spill(0), torch.ones(4)
    with spill.resident(0):
        spill.start(0, x)
        y = x + 1
        spill.track(0, x, y)
    assert len(list(tmp_path.iterdir())) == 1

    class Full(np.ndarray):
        def tofile(self, *args: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.zeros(1).view(Full))
    with (
        pytest.raises(InputError, match=r"cannot write 16 bytes .* No space left .* set TMPDIR"),
        spill.resident(0),
    ):
        pass
    spill.close()
    assert not list(tmp_path.iterdir())
