"""Derivatives by a gate on each unit at each token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import Statistics
from secateur.statistics.collect import collect_statistics
from secateur.statistics.token_gates import takes_token_gates

transformers = pytest.importorskip("transformers")


@pytest.fixture
def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config).double().eval()


def gated_squares(model: nn.Module, layer: nn.Module, tokens: Tensor, units: int) -> Tensor:
    """Multiply the input of a layer by gates of one, and return the sum of their squared derivatives."""
    total = torch.zeros(units, dtype=torch.float64)
    for row in tokens.split(1):
        gates = torch.ones(1, row.shape[1], units, dtype=torch.float64, requires_grad=True)

        def gate(module: nn.Module, args: tuple[Tensor], gates: Tensor = gates) -> Tensor:
            return args[0] * gates.repeat_interleave(args[0].shape[-1] // units, dim=-1)

        hook = layer.register_forward_pre_hook(gate)
        scores = model(input_ids=row).logits[:, :-1]
        hook.remove()
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), row[:, 1:].flatten())
        (derivative,) = torch.autograd.grad(loss, gates)
        total += derivative.square().sum((0, 1))
    return total


@pytest.mark.parametrize("labels", [True, False])
def test_each_token_has_a_gate_of_its_own(llama: nn.Module, labels: bool) -> None:
    tokens = torch.randint(50, (3, 7))
    graph = sc.trace(llama, {"input_ids": tokens[:1]})
    batch = {"input_ids": tokens, **({"labels": tokens} if labels else {})}
    found = collect_statistics(llama, graph, [batch, batch], {"taylor"}).taylor
    for number, group in enumerate(group for group in graph.groups if group.kind == "ffn"):
        down = llama.get_submodule(f"model.layers.{number}.mlp.down_proj")
        torch.testing.assert_close(found[group.name], 2 * gated_squares(llama, down, tokens, group.size))
    assert all(not x.requires_grad or x.grad is None for x in llama.parameters())


def test_what_several_weights_read_at_a_token_adds_up(llama: nn.Module) -> None:
    tokens = torch.randint(50, (2, 5))
    graph = sc.trace(llama, {"input_ids": tokens[:1]})
    (hidden,) = (group for group in graph.groups if group.kind == "hidden")
    found = collect_statistics(llama, graph, [{"input_ids": tokens}], {"taylor"}).taylor[hidden.name]
    assert found.shape == (8,) and bool((found > 0).all())


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_passes_give_the_moments(llama: Any, tied: bool) -> None:
    """The derivatives and the moments of one collection are those of two, with fewer passes."""
    if tied:
        llama.lm_head.weight = llama.model.embed_tokens.weight
    tokens = torch.randint(50, (3, 7))
    graph = sc.trace(llama, {"input_ids": tokens[:1]})
    passes: list[int] = []
    llama.register_forward_hook(lambda *_: passes.append(1))

    def collect(*needs: str) -> Statistics:
        passes.clear()
        return collect_statistics(llama, graph, [{"input_ids": tokens}] * 2, needs)

    both = collect("gram", "taylor")
    assert len(passes) == 6  # a sequence each
    moments, scores = collect("gram").moments, collect("taylor").taylor
    assert both.moments.keys() == moments.keys() and both.taylor.keys() == scores.keys()
    for name, x in moments.items():
        torch.testing.assert_close(both.moments[name].second, x.second)
        assert (x.gram is None) == (both.moments[name].gram is None)
        if x.gram is not None:
            torch.testing.assert_close(both.moments[name].gram, x.gram)
    for name, score in scores.items():
        torch.testing.assert_close(both.taylor[name], score)


def test_which_models_have_tokens_for_examples(llama: nn.Module) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes))
    assert takes_token_gates(llama) and not takes_token_gates(bert) and not takes_token_gates(nn.Linear(2, 2))
    llama.register_parameter("experts", nn.Parameter(torch.ones(2, 3, 4)))
    assert not takes_token_gates(llama)
