"""The user's batches: what they may be, and which parts of one are inputs and which are targets.

A batch is a tensor, a mapping of keyword arguments (a dict of Hugging Face, a `BatchEncoding`), or a pair
(inputs, targets), where inputs are a tensor, a sequence of positional or a mapping of keyword arguments.  A
mapping with a single sequence of `input_ids`, as a row of `datasets`, is a batch of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import InputError

__all__ = [
    "IGNORED",
    "as_batches",
    "few_tokens",
    "next_tokens",
    "own_tokens",
    "predicts_next_token",
    "split_batch",
    "split_off_guard",
]

IGNORED = -100  # a target that does not count, as in torch's cross_entropy
LABELS = ("labels", "label")
ONE_BATCH = "data is a list, a DataLoader or another iterable of batches"


def split_batch(batch: Any, model: nn.Module | None = None) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Split a batch into positional inputs, keyword inputs and targets (None if it has none).

    The ``labels`` (or ``label``) of a mapping are its targets.  They stay among the inputs, too, if the model
    cannot run without them.  For a causal language model of Hugging Face, whose labels are the tokens
    themselves, the targets are shifted: ``targets[b, t]`` is the token after position t.

    Args:
        batch: A tensor, a mapping, or (inputs, targets) with the inputs a tensor, a sequence of positional or
            a mapping of keyword arguments.
        model: The model that the batch is for.

    Raises:
        InputError: If the batch has another form.

    Example:
        >>> split_batch({"input_ids": 1, "labels": 2})
        ((), {'input_ids': 1}, 2)
        >>> split_batch(((1, 2), 3))
        ((1, 2), {}, 3)
    """
    if isinstance(batch, Mapping):
        return (), *_split_labels(batch, model)
    inputs, targets = batch, None
    if isinstance(batch, (tuple, list)):
        if len(batch) not in (1, 2):
            raise InputError(
                f"a batch is (inputs, targets), with several inputs in a tuple: ((a, b), targets); got a "
                f"{type(batch).__name__} of length {len(batch)}"
            )
        inputs, targets = batch[0], batch[1] if len(batch) == 2 else None
        if isinstance(inputs, Mapping):
            return ((), *_split_labels(inputs, model)) if len(batch) == 1 else ((), dict(inputs), targets)
    if not isinstance(inputs, (Tensor, tuple, list)):
        raise InputError(
            f"a batch is a tensor, a mapping of keyword arguments, or (inputs, targets); for its inputs "
            f"got {type(inputs).__name__}"
        )
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, targets


def _split_labels(batch: Mapping[str, Any], model: nn.Module | None) -> tuple[dict[str, Any], Any]:
    inputs = _with_batch_axis(dict(batch))
    lists = [name for name, value in inputs.items() if isinstance(value, (list, tuple))]
    if lists and not any(isinstance(x, Tensor) for x in tree_leaves(inputs)):
        raise InputError(
            f"a batch has no tensor: {lists[0]!r} is a {type(inputs[lists[0]]).__name__}; tokenize with "
            "return_tensors='pt', or collate with a torch.utils.data.DataLoader"
        )
    name = next((name for name in LABELS if name in inputs), None)
    if name is None:
        return inputs, None
    labels = inputs[name] if _needs(model, name) else inputs.pop(name)
    if isinstance(labels, Tensor) and labels.ndim > 1 and predicts_next_token(model):
        labels = next_tokens(labels)
    return inputs, labels


def _with_batch_axis(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a single tokenised example, as a row of `datasets` is, as a batch of one; others as they are."""
    tokens: Any = batch.get("input_ids")
    flat = tokens.ndim == 1 if isinstance(tokens, Tensor) else isinstance(tokens, (list, tuple))
    if not flat or not all(isinstance(x, (int, Tensor)) for x in tokens):
        return batch
    length = len(tokens)

    def as_row(x: Any) -> Any:
        fits = isinstance(x, (list, tuple, Tensor)) and len(x) == length
        return torch.as_tensor(x)[None] if fits else x

    return {name: as_row(x) for name, x in batch.items()}


def _needs(model: nn.Module | None, name: str) -> bool:
    """Return whether a model cannot run without its labels.

    Encoder-decoders of Hugging Face make the decoder's inputs from them.
    """
    if model is None:
        return False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return name in inspect.signature(model.forward).parameters
    parameter = inspect.signature(model.forward).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def predicts_next_token(model: nn.Module | None) -> bool:
    """Return whether a model is a causal language model of Hugging Face, whose labels are its tokens."""
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    return "ForCausalLM" in name or "LMHeadModel" in name or "ForConditionalGeneration" in name


def next_tokens(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the token after each position [batch, time]; -100 at the end and where the mask is 0.

    Example:
        >>> next_tokens(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
    """
    shifted = tokens if mask is None else tokens.masked_fill(mask == 0, IGNORED)
    return torch.nn.functional.pad(shifted, (0, 1), value=IGNORED)[..., 1:]


def own_tokens(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the next tokens of a batch of tokens, or None if it is something else."""
    tokens = args[0] if len(args) == 1 else None
    if not args and predicts_next_token(model):
        tokens = kwargs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2:
        return None
    return next_tokens(tokens, kwargs.get("attention_mask"))


def as_batches(data: Iterable[Any]) -> Sequence[Any]:
    """Return data as batches that can be counted and iterated again and again.

    A list stays itself.  So does a DataLoader, which is not copied.  An iterator becomes a list.

    Raises:
        InputError: If the data is empty, a single batch, or not iterable.

    Example:
        >>> as_batches(iter([1, 2]))
        [1, 2]
    """
    if isinstance(data, (Tensor, np.ndarray, Mapping)) or _is_pair(data):
        raise InputError(f"{ONE_BATCH}; got one batch, a {type(data).__name__}: put it into a list, [batch]")
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        hint = "; wrap it in torch.utils.data.DataLoader" if hasattr(data, "__getitem__") else ""
        raise InputError(f"{ONE_BATCH}; got a {type(data).__name__}{hint}")
    if isinstance(data, (tuple, Iterator)) or _length(data) is None:
        data = list(data)
    if not _length(data):
        raise InputError("data has no batches: it is empty, or an iterator that was used up (pass a list)")
    return cast("Sequence[Any]", data)  # a DataLoader is no Sequence; its length and its batches suffice


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over a stream
        return None


def _is_pair(data: Any) -> bool:
    """Return whether a tuple is (inputs, targets) rather than two batches."""
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)
    return pair and (data[0].dtype != data[1].dtype or data[0].shape[1:] != data[1].shape[1:])


def split_off_guard(batches: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any] | None]:
    """Split batches into those to fit on and, the last fifth, those to judge on.

    Of a single batch, the last fifth of its rows judges; with fewer than five rows nothing does.  A loader
    that shuffles gives both parts in an order that is drawn once.

    Returns:
        The batches to fit on, and the batches to judge on or None.
    """
    if len(batches) > 1:
        count = len(batches) - max(1, len(batches) // 5)
        if isinstance(batches, (list, tuple)):
            return batches[:count], _NumberedBatches(batches[count:], count)
        state = torch.get_rng_state()
        fitting, judging = (
            _LoaderPart(batches, *ends, state) for ends in ((0, count), (count, len(batches)))
        )
        return cast("Sequence[Any]", fitting), _NumberedBatches(judging, count)
    (batch,) = batches
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    rows = {x.shape[0] if x.ndim else 0 for x in tree_leaves(batch) if isinstance(x, Tensor)}
    if len(rows) != 1 or min(rows) < 5:
        return batches, None
    cut = min(rows) - min(rows) // 5

    def select(rows: slice) -> list[Any]:
        return [tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, batch)]

    return select(slice(cut)), select(slice(cut, None))


def few_tokens(batches: Sequence[Any], limit: int = 512) -> Sequence[Any]:
    """Return the first sequences of batches of tokens, as many as have `limit` tokens; at least one.

    One look at a whole language model needs no more.  Other batches are returned as they are.

    Example:
        >>> few_tokens([torch.zeros(8, 256, dtype=torch.int64)] * 2)[0].shape
        torch.Size([2, 256])
    """
    few = _NumberedBatches((), getattr(batches, "first_number", 0))
    for batch in batches:
        tokens = _tokens_of(batch)
        if tokens is None:
            return batches
        if few and limit < tokens.shape[1]:
            break
        rows = max(1, min(len(tokens), limit // tokens.shape[1]))
        limit -= rows * tokens.shape[1]
        few.append(_first_rows(batch, rows, len(tokens)))
    return few


def _tokens_of(batch: Any) -> Tensor | None:
    """Return the token numbers [batch, time] of a batch, or None if it has other inputs."""
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex():
        return None
    return tokens if tokens.ndim == 2 and tokens.numel() else None


def _first_rows(batch: Any, rows: int, of: int) -> Any:
    def first(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: first(value) for name, value in x.items()}
        if isinstance(x, (tuple, list)):
            return type(x)(map(first, x))
        return x[:rows] if isinstance(x, Tensor) and x.ndim and len(x) == of else x

    return batch if rows == of else first(batch)


class _NumberedBatches(list[Any]):
    """A part of some batches, with the number of its first one for messages."""

    def __init__(self, batches: Iterable[Any], first_number: int) -> None:
        super().__init__(batches)
        self.first_number = first_number


class _LoaderPart:
    """Some of the batches of a loader, the same ones in the same order at every pass."""

    def __init__(self, loader: Iterable[Any], start: int, stop: int, state: Tensor) -> None:
        self._loader, self._start, self._stop, self._state = loader, start, stop, state
        self._generator: torch.Generator | None = getattr(loader, "generator", None)
        self._generator_state = None if self._generator is None else self._generator.get_state()

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[Any]:
        if self._generator is not None and self._generator_state is not None:
            self._generator.set_state(self._generator_state)
        state, batches = self._state, None
        for number in range(self._stop):
            # The loader draws its order from torch's generator: give it the same one at every pass, and leave
            # the one that is used between the batches alone.
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batches = iter(self._loader) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            if batch is None:
                return
            if number >= self._start:
                yield batch
