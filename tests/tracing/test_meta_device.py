"""Tests for the trace of models on the meta device, which take no memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from secateur.tracing.trace import trace

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
}


@pytest.mark.parametrize(
    ("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Gemma3ForCausalLM, Gemma3TextConfig)]
)
def test_a_model_without_values_has_the_graph_of_one_with_values(
    kind: type[PreTrainedModel], config: type
) -> None:
    """Transformers branches on values of masks, which tensors on the meta device do not have."""
    ids = torch.zeros(2, 7, dtype=torch.long)
    expected = trace(kind(config(**SIZES)).eval(), ids)
    with torch.device("meta"):
        model: nn.Module = kind(config(**SIZES)).eval()
    graph = trace(model, ids.to("meta"))
    assert len(graph.groups) > 3
    assert graph.summary() == expected.summary()
    assert graph.layers == expected.layers
    assert list(map(repr, graph.sizes)) == list(map(repr, expected.sizes))
