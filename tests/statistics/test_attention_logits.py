"""What positions of queries and keys add to the logits, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import secateur as sc
from secateur.methods import find_method
from secateur.statistics.collect import collect_statistics

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"num_key_value_heads": 2, "intermediate_size": 24},
    "Qwen3ForCausalLM": {"num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 8},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {"rotary_pct": 1.0, "intermediate_size": 24},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_moments_are_those_of_what_a_unit_adds(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    model = cls(cls.config_class(**SIZES, **FAMILIES[family])).double().eval()
    batches = [{"input_ids": torch.randint(60, (2, n))} for n in (5, 7)]
    graph = sc.trace(model, batches[0], positions=True)
    group = next(g for g in graph.groups if g.kind == "query-key positions")
    found = collect_statistics(model, graph, batches, {"moments", "gram"})

    seen: list[tuple[Tensor, Tensor]] = []
    attend = F.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query, key))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    heads, shared, pairs = 4, FAMILIES[family].get("num_key_value_heads", 4), 4
    assert group.size == shared * pairs
    q, k = (torch.cat([x[i].transpose(1, 2).flatten(0, 1) for x in seen], 0) for i in range(2))
    k = k[:, :: k.shape[1] // shared]  # [tokens, heads, positions]
    added = []  # by unit, of every query head: [queries, keys]
    for unit in range(group.size):
        head, pair = divmod(unit, pairs)
        own = [pair, pair + pairs]
        readers = range(head * heads // shared, (head + 1) * heads // shared)
        added.append([q[:, h, own] @ k[:, head, own].T for h in readers])
    logits = found.logits[group.name]
    each = [torch.stack(x) for x in added]
    torch.testing.assert_close(logits.mean, torch.stack([x.mean((1, 2)).sum() for x in each]))
    torch.testing.assert_close(logits.second, torch.stack([x.square().mean((1, 2)).sum() for x in each]))
    spread = [x.var(2, correction=0).mean(1).sum() for x in each]
    torch.testing.assert_close(logits.variance, torch.stack(spread))
    assert logits.gram is not None
    products = [[(a * b).mean((1, 2)).sum() for b in each[:pairs]] for a in each[:pairs]]
    torch.testing.assert_close(logits.gram[:pairs, :pairs], torch.tensor(products, dtype=torch.float64))
    assert not logits.gram[:pairs, pairs:].any()
    for name, scores in (
        ("activation", logits.second.sqrt()),
        ("wanda", logits.second.sqrt()),
        ("flap", logits.variance),
        ("matroid", logits.second.sqrt() / logits.second.sqrt().max()),
    ):
        torch.testing.assert_close(find_method(name).unit_scores(graph, found)[group.name], scores)  # type: ignore[attr-defined]
