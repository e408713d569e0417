"""Values in their principal axes: the same function, and the best approximation of lower rank."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import Plan
from secateur.repair.principal_values import turn_values

transformers = pytest.importorskip("transformers")


def llama(keys: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=keys, **options)
    return transformers.LlamaForCausalLM(config).double().eval()


def batches() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(60, (4, 9), generator=draw)} for _ in range(3)]


def read_by_output(model: nn.Module) -> Tensor:
    """Return the inputs of the output layer on the batches [tokens, features]."""
    seen: list[Tensor] = []
    layer = model.get_submodule("model.layers.0.self_attn.o_proj")
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_the_function_stays(keys: int, bias: bool) -> None:
    model = llama(keys, attention_bias=bias)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    graph = sc.trace(model, {"input_ids": batches()[0]["input_ids"][:2]}, positions=True)
    turned = turn_values(model, graph, batches())
    for batch in batches():
        torch.testing.assert_close(turned(**batch).logits, model(**batch).logits, rtol=1e-9, atol=1e-10)
    changed = {name for name, x in turned.state_dict().items() if not x.equal(before[name])}
    assert {name.rpartition("self_attn.")[2].split(".")[0] for name in changed} == {"v_proj", "o_proj"}
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "BloomForCausalLM"])
def test_the_function_stays_where_one_layer_makes_all(family: str) -> None:
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = cls(cls.config_class(**sizes)).double().eval()
    graph = sc.trace(model, {"input_ids": batches()[0]["input_ids"][:2]}, positions=True)
    turned = turn_values(model, graph, batches())
    for batch in batches():
        torch.testing.assert_close(turned(**batch).logits, model(**batch).logits, rtol=1e-9, atol=1e-10)
    changed = [n for n, x in turned.state_dict().items() if not x.equal(model.state_dict()[n])]
    assert len([name for name in changed if name.endswith("weight")]) == 2


def test_no_choice_of_positions_is_as_good_as_the_first_axes() -> None:
    """One query head for each key: the error is that of the best matrix of lower rank (Eckart, Young)."""
    model = llama(4)
    graph = sc.trace(model, {"input_ids": batches()[0]["input_ids"][:2]}, positions=True)
    turned = turn_values(model, graph, batches())
    x, z = read_by_output(model), read_by_output(turned)
    W, V = (m.get_parameter("model.layers.0.self_attn.o_proj.weight").detach() for m in (model, turned))
    for head, kept in itertools.product(range(4), range(1, 4)):
        columns = slice(4 * head, 4 * head + 4)
        product = x[:, columns] @ W[:, columns].T
        best = torch.linalg.svdvals(product)[kept:].square().sum()
        rest = z[:, 4 * head + kept : 4 * head + 4] @ V[:, 4 * head + kept : 4 * head + 4].T
        torch.testing.assert_close(rest.square().sum(), best, rtol=1e-6, atol=1e-9)
        for chosen in itertools.combinations(range(4), kept):  # with least squares for those that went
            some = x[:, columns][:, list(chosen)]
            error = (product - some @ torch.linalg.lstsq(some, product).solution).square().sum()
            assert error >= best - 1e-9


def test_without_positions_or_batches_nothing_is_copied() -> None:
    model = llama(2)
    example = {"input_ids": batches()[0]["input_ids"][:2]}
    assert turn_values(model, sc.trace(model, example), batches()) is model
    assert turn_values(model, sc.trace(model, example, positions=True), None) is model


def test_a_repair_turns_them_first() -> None:
    """At equal counts the outputs come out nearer to the original than with the positions as they are."""
    model = llama(2)
    example = {"input_ids": batches()[0]["input_ids"][:2]}
    graph = sc.trace(model, example, positions=True)
    (values,) = (g for g in graph.groups if g.kind == "value positions")
    plain = Plan(graph, "by hand", {values.name: np.sort(np.r_[0:2, 4:6])})
    ignored = [g.name for g in graph.groups if g is not values]
    result = sc.prune(
        model,
        example,
        sc.Units(0.5),
        batches(),
        method="taylor",
        repair="fold",
        positions=True,
        ignored_layers=ignored,
        progress=False,
    )
    assert len(result.plan.keep[values.name]) == 4
    with torch.no_grad():
        whole = torch.cat([model(**batch).logits for batch in batches()])
        errors = [
            (torch.cat([m(**batch).logits for batch in batches()]) - whole).square().sum()
            for m in (result.model, sc.shrink(model, plain))
        ]
    assert errors[0] < 0.5 * errors[1]
