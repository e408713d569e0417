"""Runs of Torch-Pruning as its documentation shows them, and of Secateur, on entries of the model bank.

What Torch-Pruning's README and examples ask of a user is done for it: the output layer is ignored, the
number of heads of each projection is declared, the attributes of attention modules are set anew after
pruning as in its BERT, Llama and timm examples, and of its two ways to treat heads (fewer dimensions
in each, its default; fewer heads) the one that does better is reported.
"""

from __future__ import annotations

import copy
from typing import Any

import oracles
import torch_pruning as tp
from bank import Entry
from torch import nn

from secateur.apply.shrink import shrink
from secateur.tracing.trace import trace

QUERIES = ("qkv", "query", "q_proj", "q", "q_lin", "query_key_value", "qkv_proj")
KEYS = ("key", "k_proj", "k", "k_lin")


def secateur_half(entry: Entry, model: nn.Module) -> nn.Module:
    """Shrink a model to half of the units of every group."""
    args, kwargs = entry.example()
    network = trace(model, args, example_kwargs=kwargs)
    return shrink(model, oracles.half_plan(network))


def torch_pruning_half(entry: Entry, model: nn.Module, *, whole_heads: bool = False) -> nn.Module:
    """Prune a copy of a model by Torch-Pruning with `pruning_ratio=0.5`."""
    model = copy.deepcopy(model)
    args, kwargs = entry.example()
    heads = entry.heads(model) if entry.heads else {}
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=kwargs or args,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(name) for name in entry.outputs],
        num_heads=heads,
        prune_num_heads=whole_heads,
        prune_head_dims=not whole_heads,
        head_pruning_ratio=0.5 if whole_heads else 0.0,
    )
    pruner.step()
    set_head_attributes(model, pruner.num_heads)
    return model


def set_head_attributes(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Set the sizes that attention modules hold, as Torch-Pruning's examples do after `step`."""
    for module in model.modules():
        query = next((q for name in QUERIES if (q := getattr(module, name, None)) in heads), None)
        if query is None:
            continue
        key = next((k for name in KEYS if (k := getattr(module, name, None)) in heads), query)
        parts = 1 if key is not query else 3
        width = query.weight.shape[0] // parts
        values: dict[str, Any] = {
            "num_heads": heads[query],
            "num_attention_heads": heads[query],
            "n_heads": heads[query],
            "head_dim": width // heads[query],
            "attention_head_size": width // heads[query],
            "all_head_size": width,
            "hidden_size": width,
            "kv_heads": heads[key],
            "num_key_value_heads": heads[key],
            "num_key_value_groups": heads[query] // heads[key],
        }
        for name, value in values.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)
