"""Tokens per second: which models, which prompts, and what is left behind."""

from __future__ import annotations

import pytest
import torch
from language_folder import tiny_llama
from torch import nn

from secateur.core import InputError
from secateur.measure.generation import token_rates


def test_models_are_measured_in_turn_and_left_as_they_were() -> None:
    models = {"a": tiny_llama(), "b": tiny_llama(intermediate_size=8).train()}
    rates = token_rates(models, torch.randint(300, (1, 20)), new=3, rounds=2)
    assert list(rates) == ["a", "b"] and models["b"].training
    for rate in rates.values():
        assert rate.prefill > rate.decode > 0 and (rate.prompt, rate.new) == (20, 3)


def test_only_language_models_and_single_prompts() -> None:
    with pytest.raises(InputError, match="Linear is not a causal language model"):
        token_rates({"a": nn.Linear(2, 2)}, torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(InputError, match="one sequence"):
        token_rates({"a": tiny_llama()}, torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(InputError, match=r"a tensor of token numbers.*got str"):
        token_rates({"a": tiny_llama()}, "once upon a time")  # type: ignore[arg-type]
