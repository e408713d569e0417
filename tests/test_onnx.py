"""ONNX export: what onnxruntime computes is what the model computes, and failures leave nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from bank import BANK
from oracles import half_plan
from torch import nn

from secateur.core import CaptureError, ExactnessError, InputError, StoreError
from secateur.network import onnx as exporting
from secateur.network.onnx import export_any_batch, export_onnx
from secateur.network.surgery import shrink
from secateur.network.trace import trace

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", ["LeNet-5, view(B, -1)", "LSTM, bidirectional", "Fused qkv (timm)"])
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
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


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
