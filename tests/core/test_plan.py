"""A plan checks what it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core import Plan, PlanError

WHOLE = np.ones((6, 4), bool)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"keep": [0]}, "keep must map group names to unit numbers; got a list"),
        ({"masks": "abc"}, "masks must map weight names to masks; got a str"),
        ({"merges": 1}, "merges must map group names to merges; got a int"),
        ({"factors": np.ones(2)}, "factors must map weight names to factors; got a ndarray"),
        ({"notes": None}, "notes must map names to reasons; got a NoneType"),
        ({"masks": {"0.weigh": WHOLE}}, "did you mean '0.weight'"),
        ({"masks": {"0.weight": 1}}, r"boolean numpy array of shape \(6, 4\).*got int"),
        ({"masks": {"0.weight": WHOLE.T}}, r"got bool of shape \(4, 6\)"),
        ({"masks": {"0.weight": 1.0 * WHOLE}}, r"got float64 of shape \(6, 4\)"),
        ({"factors": {"0.weight": 1.0 * WHOLE}}, "must have the shape of its mask"),
        ({"masks": {"0.weight": WHOLE}, "factors": {"0.weight": 2.0}}, "must have the shape of its mask"),
        ({"masks": {"0.weight": WHOLE}, "factors": {"0.weight": 0.0 * WHOLE}}, "finite and not 0"),
        ({"blocks": 3}, "blocks must be names of blocks; got 3"),
        ({"blocks": "layers.0"}, "blocks must be names of blocks"),
        ({"experts": [0]}, "experts must map names of mixtures to numbers of experts; got a list"),
        ({"experts": {"mlp": [2, 1]}}, r"keep\['mlp'\] has unit 1 at index 1"),
    ],
)
def test_parts_of_a_wrong_kind(parts: dict[str, Any], words: str) -> None:
    graph = sc.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4))
    with pytest.raises(PlanError, match=words):
        Plan(graph, "by hand", **parts)
