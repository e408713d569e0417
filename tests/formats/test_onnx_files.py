"""ONNX export: what onnxruntime computes is what the model computes, and failures leave nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bank import BANK
from oracles import half_plan
from sampled import sampled
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import CaptureError, ExactnessError, InputError, StoreError
from secateur.formats import onnx as exporting
from secateur.formats.onnx import export_any_batch, export_onnx
from secateur.tracing.trace import trace

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    "name",
    sampled(["LeNet-5, view(B, -1)", "LSTM, bidirectional", "Fused qkv (timm)"], "LSTM, bidirectional"),
)
def test_a_shrunk_model_runs_in_onnxruntime(tmp_path: Path, name: str) -> None:
    entry = BANK[name]
    model = entry.build().float()
    (x,), _ = entry.example()
    small = shrink(model, half_plan(trace(model, x.float())), check=False).train()
    path = tmp_path / "deep" / "model.onnx"
    assert export_onnx(small, x.float(), path) < 1e-5
    assert small.training
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    other = entry.example(seed=9)[0][0].float()
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        wanted = small.eval()(other).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


def test_the_batch_may_vary(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    shapes = ({0: torch.export.Dim("batch")},)
    export_onnx(model, torch.randn(3, 4), tmp_path / "m.onnx", dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: np.ones((7, 4), np.float32)})
    assert np.allclose(found, model(torch.ones(7, 4)).detach().numpy(), atol=1e-6)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_failures_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    x = torch.randn(3, 4)
    with pytest.raises(CaptureError, match="cannot export Branching"):
        export_onnx(Branching(), x, path)
    with pytest.raises(InputError, match="bfloat16"):
        export_onnx(nn.Linear(4, 2).bfloat16(), x.bfloat16(), path)
    with monkeypatch.context() as patch, pytest.raises(ExactnessError, match=r"1.0e\+00.*was not written"):
        patch.setattr(exporting, "_run", lambda path, given: [np.zeros((3, 2), np.float32)])
        export_onnx(nn.Linear(4, 2), x, path)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"onnxscript.*secateur\[onnx\]"):
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
        export_onnx(nn.Linear(4, 2), x, path)
    assert path.read_text() == "old"
    with pytest.raises(StoreError, match="cannot write"):
        export_onnx(nn.Linear(4, 2), x, path / "inside.onnx")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for taken in (tmp_path / "folder", tmp_path / "pipe"):
        with pytest.raises(StoreError, match="not a file"):
            export_onnx(nn.Linear(4, 2), x, taken)
        with pytest.raises(StoreError, match="not a file"):
            export_any_batch(nn.Linear(4, 2), x, taken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "m.onnx", "pipe"]


def test_any_batch_where_it_can_be(tmp_path: Path) -> None:
    class Fixed(nn.Linear):  # runs with every even batch, and so with two and with twice two
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).reshape(2, -1)

    path = tmp_path / "model.onnx"
    for model, free in ((nn.Linear(4, 3), True), (Fixed(4, 3), False)):
        assert export_any_batch(model, torch.randn(2, 4), path) is free
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        x = np.zeros((7 if free else 2, 4), np.float32)
        assert len(session.run(None, {session.get_inputs()[0].name: x})[0]) == len(x)


def test_an_axis_that_was_to_vary_and_does_not_is_named(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, first: torch.Tensor, *, more: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.a(first) + self.b(more["x"])

    batch, feature = torch.export.Dim("batch"), torch.export.Dim("feature")
    x, kwargs = torch.randn(2, 4), {"more": {"x": torch.randn(2, 3)}}
    with pytest.raises(CaptureError, match=r"feature cannot vary.*Leave it out"):
        export_onnx(
            Two(),
            x,
            tmp_path / "m.onnx",
            kwargs,
            dynamic_shapes={"first": {0: batch}, "more": {"x": {0: batch, 1: feature}}},
        )
    assert list(tmp_path.iterdir()) == []
    export_onnx(
        Two(),
        x,
        tmp_path / "m.onnx",
        kwargs,
        dynamic_shapes={"first": {0: batch, 1: None}, "more": {"x": (batch, None)}},
    )
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [i.shape for i in session.get_inputs()] == [["batch", 4], ["batch", 3]]


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x + 1, 3


def test_errors_of_the_exporter_are_short_and_without_colours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as seen:
        export_onnx(Branching(), torch.randn(3, 4), tmp_path / "m.onnx")
    words = str(seen.value)
    assert "return x if x.sum() > 0 else -x" in words
    assert "Could not guard on data-dependent expression" in words
    assert "\x1b" not in words
    assert "\n" not in words
    assert len(words) < 600
    assert capfd.readouterr() == ("", "")
    with pytest.raises(CaptureError, match=r"translating node return .*\(AttributeError: 'int' .*\)$"):
        export_onnx(Number(), torch.randn(3, 4), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="got int"):
        export_onnx(5, torch.randn(3, 4), tmp_path / "m.onnx")  # type: ignore[arg-type]
    for path in (None, "a\0b"):
        with pytest.raises(InputError, match="path"):
            export_onnx(nn.Linear(4, 2), torch.randn(3, 4), path)  # type: ignore[arg-type]


class Given(nn.Module):
    """Returns its inputs."""

    def forward(self, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return xs


def off(monkeypatch: pytest.MonkeyPatch, wanted: list[list[float]], found: list[list[float]]) -> float:
    monkeypatch.setattr(exporting, "_run", lambda path, given: [np.array(x, np.float32) for x in found])
    return exporting._difference(Given(), tuple(map(torch.tensor, wanted)), {}, Path("none"))


def test_each_output_is_compared_alone_and_where_it_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    nan, inf = float("nan"), float("inf")
    cases = [
        ([[1.0, 2.0], [3.0]], [[1.0, 2.0], [nan]], inf),
        ([[nan, 2.0], [3.0]], [[nan, 2.0], [3.0]], 0),
        ([[nan, 2.0]], [[2.0, nan]], inf),
        ([[2.0], [nan]], [[2.0], [4.0]], inf),
        ([[1.0, 2.0], [-inf, 1.0]], [[101.0, 2.0], [-inf, 1.0]], 50),
        ([[-inf, 1.0]], [[inf, 1.0]], inf),
        ([[-inf, 2.0]], [[-inf, 1.0]], 0.5),
        ([[1000.0], [0.001]], [[1000.0], [0.002]], 1),
        ([[0.0, 0.0]], [[0.0, 0.25]], 0.25),
        ([[1.0], [2.0]], [[1.0]], inf),
        ([[1.0, 2.0]], [[1.0]], inf),
    ]
    for wanted, found, difference in cases:
        assert off(monkeypatch, wanted, found) == pytest.approx(difference, rel=1e-5), (wanted, found)
