"""Rarely used vocabulary: a language model with the tokens of some texts only, and a tokenizer that fits.

The embedding of a small model holds most of its parameters (of Gemma 3 270M, 168 of 268 million), and most
of its tokens are of languages that a user's texts never have.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.deviation import deviation
from secateur.apply.float64 import run_float64
from secateur.core import ExactnessError, InputError
from secateur.execution import duplicate
from secateur.formats.tokenizer_json import needed_tokens, with_tokens
from secateur.pretrained import load_tokenizer

__all__ = ["CutVocabulary", "cut_vocabulary"]

FILE = "tokenizer.json"
TOKEN_NUMBERS = re.compile(r"(_token_ids?|_token_index|suppress_tokens)$")
TOKENS = 32  # of the sequence on which both models are compared
CLOSE = 1e-10


@dataclass(frozen=True, eq=False)
class CutVocabulary:
    """A language model with fewer tokens.

    Attributes:
        model: The model; token i is token `kept[i]` of the original.
        tokenizer: A tokenizer of transformers that gives these tokens.
        kept: Numbers of the tokens that stay, ascending.
    """

    model: nn.Module
    tokenizer: Any
    kept: Tensor


def cut_vocabulary(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> CutVocabulary:
    """Return a copy of a model, and of its tokenizer, with the tokens of some texts only.

    Special and added tokens, those of bytes, and the parts that tokens are joined from stay, too: any other
    text is still split, into more tokens.  The texts are split as before, and the logits of the tokens that
    stay are the same.

    Args:
        model: A model of transformers.
        tokenizer: Its tokenizer, a fast one.
        texts: What the model shall read and write.

    Raises:
        InputError: If the model or the tokenizer is of another kind, or all tokens are needed.
        ExactnessError: If the logits differ.
    """
    config, table = getattr(model, "config", None), _embedding(model)
    if config is None or table is None or not hasattr(model, "resize_token_embeddings"):
        raise InputError(f"{type(model).__name__} has no embedding of tokens that transformers can cut")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} has no tokenizer.json, which a cut needs")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    split = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    named = {number for part in _configs(model) for number in _named_tokens(part)}
    seen = {number for numbers in split for number in numbers} | named
    # A tokenizer may have tokens without a row in the table, as of images.
    kept = [number for number in needed_tokens(content, seen) if number < len(table)]
    if len(kept) >= len(table):
        raise InputError(f"the texts and the special tokens need all {len(table):,} tokens: nothing to cut")
    cut = CutVocabulary(
        _cut_model(model, table, kept), _cut_tokenizer(tokenizer, content, kept), torch.tensor(kept)
    )
    _check(model, cut, texts, split)
    return cut


def _embedding(model: nn.Module) -> Tensor | None:
    found = getattr(model, "get_input_embeddings", lambda: None)()
    return getattr(found, "weight", None)


def _configs(model: Any) -> list[Any]:
    """Return the configs of a model that may name tokens."""
    inner = [getattr(model.config, name, None) for name in getattr(model.config, "sub_configs", ())]
    return [x for x in (model.config, *inner, getattr(model, "generation_config", None)) if x is not None]


def _named_tokens(config: Any) -> list[int]:
    """Return the numbers of tokens in a config, such as those of the end."""
    values = [value for name, value in vars(config).items() if TOKEN_NUMBERS.search(name)]
    return [
        x
        for value in values
        for x in (value if isinstance(value, (list, tuple)) else [value])
        if _is_number(x)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _cut_model(model: nn.Module, table: Tensor, kept: Sequence[int]) -> nn.Module:
    """Return a copy with these rows of all tensors that have one for each token."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    known = {id(table), id(getattr(output, "weight", None)), id(getattr(output, "bias", None))}
    cut: Any = duplicate(model)
    index = torch.tensor(kept, device=table.device)
    new = {old: number for number, old in enumerate(kept)}
    for name, parameter in model.named_parameters():
        if len(table) not in parameter.shape:
            continue
        if id(parameter) in known or parameter.ndim == 1:
            # Transformers cuts off the last rows of all of them.
            cut.get_parameter(name).data[: len(kept)] = parameter.detach()[index]
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            raise InputError(f"{name!r} has a row for each token, too, and cannot be cut")
    cut.resize_token_embeddings(len(kept), pad_to_multiple_of=1, mean_resizing=False)
    embedding = cut.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = new.get(model.get_input_embeddings().padding_idx)  # type: ignore[operator]
    for config in _configs(cut):
        _renumber(config, new)
    return cut


def _renumber(config: Any, new: dict[int, int]) -> None:
    """Change the numbers of tokens in a config; one that the vocabulary does not have stays."""
    for name, value in list(vars(config).items()):
        if not TOKEN_NUMBERS.search(name):
            continue
        if isinstance(value, (list, tuple)):
            setattr(config, name, [new.get(x, x) if _is_number(x) else x for x in value])
        elif _is_number(value):
            setattr(config, name, new.get(value, value))


def _cut_tokenizer(tokenizer: Any, content: dict[str, Any], kept: Sequence[int]) -> Any:
    """Return a tokenizer of the same class and settings."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():  # vocab.json, merges.txt, tokenizer.model: of all tokens
            if file.name != FILE and "config" not in file.name and "template" not in file.name:
                file.unlink()
        (folder / FILE).write_text(json.dumps(with_tokens(content, kept)), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            new = {str(old): str(number) for number, old in enumerate(kept)}
            added = config["added_tokens_decoder"].items()
            config["added_tokens_decoder"] = {new[old]: token for old, token in added if old in new}
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_tokenizer(folder)


def _check(
    model: nn.Module, cut: CutVocabulary, texts: Sequence[str], split: Sequence[Sequence[int]]
) -> None:
    """Raise an error if a text is split differently than before, or the logits differ."""
    for text, before in zip(texts, split, strict=True):
        after = cut.kept[torch.tensor(cut.tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)]
        if after.tolist() != list(before):
            raise InputError(
                f"with fewer tokens a text is split differently: {type(cut.tokenizer).__name__} cannot be cut"
            )
    few = [number for numbers in split for number in numbers][:TOKENS] or cut.kept[:TOKENS].tolist()
    old = torch.tensor([few])
    new = torch.searchsorted(cut.kept, old)
    twice = getattr(model.config, "is_encoder_decoder", False)
    names = ["input_ids", *(["decoder_input_ids"] if twice else [])]
    device = next(model.parameters()).device
    whole, less = (
        run_float64(network, (), {name: ids.to(device) for name in names})
        for network, ids in ((model, old), (cut.model, new))
    )
    expected = [
        x if x.shape == y.shape else x[..., cut.kept.to(x.device)] for x, y in zip(whole, less, strict=True)
    ]
    if (far := deviation(expected, less)) > CLOSE:
        raise ExactnessError(f"with fewer tokens the outputs deviate by {far:.1e} (relative)")
