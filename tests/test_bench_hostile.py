"""The bench against what users give it: names of two meanings, code that hangs or leaves, edited files."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.bench.cells import Cell
from secateur.bench.grid import run_grid
from secateur.bench.harness import Bench, make_grid
from secateur.bench.subject import method_hash, model_hash, subject, takes_seed
from secateur.core import InputError
from secateur.named import make_data, make_method, make_model

USER = """
import sys
import time

import torch
from torch import nn

from secateur.methods import Magnitude


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(seed, count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [(x, (x[:, 0] > 0).long())]


def fit():
    return batches(1, 50)


def held():
    return batches(2, 50)


def mk():
    return Magnitude(p=2)


def hangs():
    time.sleep(600)


def leaves(seed=0):
    sys.exit(0)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with user.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "user.py").write_text(USER)
    return tmp_path


def bench(**more) -> Bench:
    given = {"model": "user.py:make", "data": "user.py:fit", "holdout": "user.py:held", "seeds": [0],
             "methods": ["magnitude"], "ratios": [0.5], "repairs": ["none"], "draws": 1,
             "latency": False}  # fmt: skip
    return Bench(**{**given, **more})


class Scaled(nn.Linear):
    """Multiplies by a buffer that its state does not hold."""

    def __init__(self, scale: float) -> None:
        torch.manual_seed(0)
        super().__init__(2, 2)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)


def test_buffers_that_no_state_holds_tell_models_apart() -> None:
    assert model_hash(Scaled(1.0)) == model_hash(Scaled(1.0)) != model_hash(Scaled(2.0))


def test_an_edited_function_that_makes_a_method_of_ours_tells_methods_apart(place: Path) -> None:
    before = method_hash("user.py:mk")
    assert before not in (None, method_hash("secateur.methods:Magnitude"))
    (place / "user.py").write_text(USER.replace("p=2", "p=1"))
    assert method_hash("user.py:mk") != before
    assert method_hash("magnitude:p=2") is None


def test_folders_called_like_a_method_or_data_change_nothing(place: Path) -> None:
    one = bench(methods=["magnitude", "magnitude:p=1", "user.py:mk"], data="digits", holdout=None,
                model="secateur.zoo:lenet5", shape="2,1,8,8")  # fmt: skip
    before = make_grid(bench(), inline=True)
    for name in ("random", "magnitude", "digits", "p=1", "magnitude:p=1", "secateur.zoo"):
        (place / name).mkdir()
    assert [cell.key for cell in make_grid(bench(), inline=True).cells] == [c.key for c in before.cells]
    from secateur.bench.harness import _Absolute

    found = _Absolute(one)
    assert (found.paths["model"], found.paths["data"]) == ("secateur.zoo:lenet5", "digits")
    assert [method.at for method in found.methods] == [
        "magnitude", "magnitude:p=1", f"{place}/user.py:mk", "random",
    ]  # fmt: skip


def test_known_data_keep_their_folder_and_models_theirs(place: Path) -> None:
    from secateur.bench.harness import _Absolute

    (place / "saved").mkdir()
    found = _Absolute(bench(data="mnist:files", model="saved"))
    assert (found.paths["data"], found.paths["model"]) == (f"mnist:{place}/files", f"{place}/saved")
    assert _Absolute(bench(data="digits:", model="")).paths["data"] == "digits:"
    assert _Absolute(bench(model="")).paths["model"] == "" and not takes_seed("", "w")
    with pytest.raises(InputError, match="wrong form"):
        make_model("")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"lr": math.nan}, "positive and finite.*got nan"),
        ({"lr": math.inf}, "got inf"),
        ({"lr": 0.0}, "got 0.0"),
        ({"lr": -1e-3}, "got -0.001"),
        ({"seeds": [3, 2**63]}, f"at most .*got {2**63}"),
        ({"seeds": [2**63 - 1]}, f"below 2.*63; got {2**63 - 1}"),
        ({"seeds": [-1]}, "not negative .*got -1"),
        ({"draws": 0}, "draws must be positive.*got 0"),
        ({"epochs": -2}, "epochs must be positive.*got -2"),
        ({"count": 0}, "count must be positive.*got 0"),
    ],
)
def test_numbers_that_cannot_be_are_named(more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench(**more)


@pytest.mark.parametrize("limit", [math.nan, math.inf, -1.0])
def test_limits_are_numbers_of_seconds(place: Path, limit: float) -> None:
    with pytest.raises(InputError, match="positive and finite"):
        run_grid([Cell("secateur.bench.checks:draw", {"seed": 0})], place / "cells.jsonl", limit=limit)


def test_a_model_that_hangs_is_stopped_at_the_first_look() -> None:
    with pytest.raises(InputError, match=r"user\.py:hangs.* longer than 0.5 s.*raise the limit"):
        make_grid(bench(model="user.py:hangs"), limit=0.5)


def test_code_that_leaves_the_program_is_a_failure(place: Path) -> None:
    (place / "gone.py").write_text("raise SystemExit(3)")
    for call in (
        lambda: make_model("user.py:leaves"),
        lambda: make_data("user.py:leaves"),
        lambda: make_method("user.py:leaves"),
        lambda: make_model("gone.py:make"),
        lambda: subject("user.py:leaves", None, 0),
        lambda: make_grid(bench(model="user.py:leaves"), inline=True),
    ):
        with pytest.raises(InputError, match=r"(user|gone)\.py.* failed: SystemExit: [03] \("):
            call()
