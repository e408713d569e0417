"""The dicts of Hugging Face, with and without labels, through statistics, metrics and fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.batches import split_batch
from secateur.core import Units
from secateur.measure.metrics import evaluate
from secateur.methods import METHODS
from secateur.pruning import prune
from secateur.repair.base import Finetune, Fold
from secateur.repair.finetune import finetune
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import default_loss
from secateur.tracing.trace import trace

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "bert":
        config = transformers.BertConfig(**SIZES, vocab_size=50, max_position_embeddings=16, num_labels=3)
        return transformers.BertForSequenceClassification(config).eval()
    if name == "llama":
        config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=50)
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def batch(name: str, labels: bool, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 50, (6, 8), generator=generator)
    mask = torch.ones_like(tokens)
    mask[:3, 6:] = 0
    found = transformers.BatchEncoding({"input_ids": tokens, "attention_mask": mask})
    if labels:
        classes = torch.randint(3, (6,), generator=generator)
        found["labels"] = classes if name == "bert" else tokens.masked_fill(mask == 0, -100)
    return found


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_default_loss_is_the_models_own(name: str) -> None:
    model, given = build(name), batch(name, True)
    args, kwargs, targets = split_batch(given, model)
    with torch.no_grad():
        expected = model(**given).loss
        torch.testing.assert_close(default_loss(model(*args, **kwargs), targets), expected)
    assert ("labels" in kwargs) == (name == "t5")


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_dicts_prune_and_train_with_and_without_labels(name: str, labels: bool) -> None:
    model, data = build(name), [batch(name, labels, seed) for seed in range(4)]
    graph = trace(model, {key: x[:2] for key, x in batch(name, False).items()})
    statistics = collect_statistics(model, graph, data, {"taylor"})
    small = shrink(model, METHODS["taylor"]().plan(graph, statistics, Units(0.5)))
    tuned, history = finetune(small, data, epochs=10, teacher=model, progress=False)
    assert history.losses[-1] < history.losses[0]
    assert 0 <= evaluate(tuned, data, "agreement", original=model) <= 1
    if labels:
        assert 0 <= evaluate(tuned, data, "accuracy") <= 1
        assert len(finetune(small, data, progress=False)[1].losses) == 4


def test_the_perplexity_of_a_causal_model_needs_no_labels() -> None:
    model = build("llama")
    values = [evaluate(model, [batch("llama", labels)], "perplexity") for labels in (False, True)]
    assert math.isclose(*values, rel_tol=1e-6)


@pytest.mark.parametrize("labels", [False, True])
def test_a_whole_pruning_of_a_language_model(labels: bool) -> None:
    model = build("llama")
    data, holdout = ([batch("llama", labels, seed) for seed in seeds] for seeds in (range(5), (9,)))
    example = {key: x[:2] for key, x in batch("llama", False).items()}
    repairs = (Fold(), Finetune(epochs=2))
    result = prune(model, example, Units(0.5), data, repair=repairs, progress=False)
    assert result.report.finetune["steps"] == 10
    measured = result.measure(holdout, metric="perplexity" if labels else "agreement").report
    assert measured.before.metric == 1 or labels
    assert result.model(**example).logits.shape == (2, 8, 50)
