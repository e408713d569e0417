"""Tokens per second of a language model: reading a prompt (prefill), and writing after it (decode).

Decoding uses the model's cache of keys and values, one sequence and one token at a time, which is what a user
waits for.  Several models are measured in alternation, because the speed of a machine drifts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import predicts_next_token
from secateur.core import InputError
from secateur.execution import device_of, evaluating

__all__ = ["TokenRates", "token_rates"]

ROUNDS = 3
LONGEST = 256  # tokens of the prompt
NEW_TOKENS = 16


@dataclass(frozen=True)
class TokenRates:
    """Tokens per second, of one sequence.

    Attributes:
        prefill: Tokens of the prompt per second.
        decode: New tokens per second, with the cache.
        prompt: Tokens of the prompt.
        new: New tokens.
        threads: Threads that torch used within an operation.
    """

    prefill: float
    decode: float
    prompt: int
    new: int
    threads: int


def token_rates(
    models: Mapping[str, nn.Module], prompt: Tensor, new: int = NEW_TOKENS, rounds: int = ROUNDS
) -> dict[str, TokenRates]:
    """Measure causal language models of transformers in alternation.

    Args:
        models: Models by name, on one device.
        prompt: Token numbers [1, length]; the first 256 are used.
        new: Tokens to write after the prompt.
        rounds: How often each model is measured; the shortest time counts, because other processes only add.

    Raises:
        InputError: If a model is not a causal language model of transformers, or the prompt is not one
            sequence.
    """
    if not isinstance(prompt, Tensor):
        raise InputError(
            f"the prompt must be a tensor of token numbers [1, length]; got {type(prompt).__name__}"
        )
    if prompt.ndim != 2 or prompt.shape[0] != 1 or prompt.shape[1] < 1 or new < 1 or rounds < 1:
        raise InputError(f"the prompt must be one sequence [1, length]; got {tuple(prompt.shape)}")
    for model in models.values():
        if not predicts_next_token(model):
            raise InputError(f"{type(model).__name__} is not a causal language model of transformers")
    prompt = prompt[:, :LONGEST]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for model in models.values():
            _time_once(model, prompt.to(device_of(model)), 1)  # the first call with these sizes is slow
        for _ in range(rounds):
            for name, model in models.items():
                seconds[name].append(_time_once(model, prompt.to(device_of(model)), new))
    return {name: _rates(pairs, prompt.shape[1], new) for name, pairs in seconds.items()}


def _rates(pairs: list[tuple[float, float]], length: int, new: int) -> TokenRates:
    prefill, decode = (min(times) for times in zip(*pairs, strict=True))
    return TokenRates(length / prefill, new / decode, length, new, torch.get_num_threads())


def _time_once(model: nn.Module, prompt: Tensor, new: int) -> tuple[float, float]:
    """Return the seconds of reading the prompt, and of writing the new tokens."""
    started = _now(prompt)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = _now(prompt)
    for _ in range(new):
        token = output.logits[:, -1:].argmax(-1)
        output = model(
            input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1
        )
    return read - started, _now(prompt) - read


def _now(tensor: Any) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
