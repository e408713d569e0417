"""Folders with a modelling file: layers of unequal counts, and positions within heads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from small_transformers import DECODERS, EVERY, build, check_generation, compared, ids

import secateur as sc
from secateur.core import InputError, Plan
from secateur.formats import transformers as folders
from secateur.formats.modelling_file import import_class


def uneven_plan(model: Any) -> Plan:
    """Keep other counts in each layer of heads and feed-forward units; of experts, multiples of 8."""
    graph = sc.trace(model, {"input_ids": ids()})
    groups = [
        g for g in graph.groups if g.kind not in ("hidden", "vocabulary") and "embeddings" not in g.name
    ]
    order = {g.name: i for i, g in enumerate(groups)}
    order |= {name: order[first] for first, *tied in graph.equal_counts for name in tied if name in order}
    keep = {}
    for g in groups:
        gone = max(1, g.size * (1 + order[g.name] % 4) // 6)
        keep[g.name] = np.arange(g.size - (8 * (order[g.name] < 4) if ".experts" in g.name else gone))
    return Plan(graph, "by hand", keep)


@pytest.mark.parametrize("family", sampled(EVERY, "gemma3_text", "mixtral", "gpt2"))
def test_a_modelling_file_states_uneven_layers(family: str, tmp_path: Path) -> None:
    model = build(family)
    plan = uneven_plan(model)
    small = sc.shrink(model, plan)
    assert folders.save_pretrained(tmp_path / "out", small, plan, uneven="code") <= 1e-5
    cls = import_class(tmp_path / "out", model)
    loaded = cls.from_pretrained(tmp_path / "out").eval()
    assert compared(small, loaded) <= 1e-5
    shapes = {name: tensor.shape for name, tensor in loaded.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in small.named_parameters()}
    if family in DECODERS:
        check_generation(loaded)


def positions_plan(model: Any) -> Plan:
    """Keep other positions in each head, and other counts in each layer of everything else."""
    plan = uneven_plan(model)
    graph = sc.trace(model, {"input_ids": ids()}, positions=True)
    draw = np.random.default_rng(0)
    keep = {
        g.name: np.sort(draw.choice(g.size, g.size - 1 - number, replace=False))
        for number, g in enumerate(g for g in graph.groups if g.padded)
    }
    return Plan(graph, "by hand", {**plan.keep, **keep})


WITH_POSITIONS = ("llama", "qwen2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "opt")


@pytest.mark.parametrize("family", sampled(WITH_POSITIONS, "gpt2"))
def test_positions_within_heads(family: str, tmp_path: Path) -> None:
    model = build(family)
    plan = positions_plan(model)
    small = sc.shrink(model, plan)
    with pytest.raises(InputError, match=r"positions within heads have gone.*uneven='pad'"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    with pytest.warns(UserWarning, match="padded with zeros"):
        assert folders.save_pretrained(tmp_path / "zeros", small, plan, uneven="pad") <= 1e-5
    assert compared(small, type(model).from_pretrained(tmp_path / "zeros").eval()) <= 1e-5
    assert folders.save_pretrained(tmp_path / "code", small, plan, uneven="code") <= 1e-5
    loaded = import_class(tmp_path / "code", model).from_pretrained(tmp_path / "code").eval()
    assert compared(small, loaded) <= 1e-5
    assert sum(x.numel() for x in loaded.parameters()) == sum(x.numel() for x in small.parameters())
    check_generation(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("make_plan", [uneven_plan, positions_plan])
def test_a_modelling_file_needs_no_secateur(make_plan: Any, tmp_path: Path) -> None:
    model = build("llama")
    plan = make_plan(model)
    small = sc.shrink(model, plan)
    folders.save_pretrained(tmp_path / "out", small, plan, uneven="code")
    torch.save((ids(), small(ids()).logits), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["secateur"] = None
import torch
from transformers import AutoModelForCausalLM
ids, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
assert (model(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
model.save_pretrained({str(tmp_path / "again")!r})
again = AutoModelForCausalLM.from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
assert again(ids).logits.equal(model(ids).logits)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
