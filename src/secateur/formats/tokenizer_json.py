"""tokenizer.json of the package `tokenizers`, with fewer tokens: BPE, Unigram, WordPiece, WordLevel.

Fewer tokens must not change how a text is split whose tokens all stay.

- BPE joins the pair of the best rank, again and again.  If every pair that a text joins stays, the best of
  fewer pairs is the same one in each step.  So the tokens from which a kept one is joined stay, too.
- Unigram takes the split of the highest score; among fewer splits it is still the highest.  An unknown
  character scores less than the lowest piece, so that piece stays.
- WordPiece takes the longest piece that fits; among fewer pieces it is still the longest.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from secateur.core import InputError

__all__ = ["needed_tokens", "with_tokens"]

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def needed_tokens(tokenizer: Mapping[str, Any], seen: Iterable[int]) -> list[int]:
    """Return the tokens without which a tokenizer does not give those that were seen, or cannot split a text.

    These are all added tokens, the unknown one, those of bytes and of single characters without which
    another text would have unknown ones, and for BPE the parts that tokens are joined from.

    Args:
        tokenizer: The content of a tokenizer.json.
        seen: Numbers of tokens.

    Returns:
        Numbers of tokens, ascending, those that were seen among them.

    Raises:
        InputError: If it is a tokenizer of another kind.
    """
    model = tokenizer["model"]
    prefixed = model.get("type") == "BPE" and model.get("continuing_subword_prefix")
    if model.get("type") not in KINDS or prefixed:
        raise InputError(
            f"a tokenizer of type {model.get('type')!r} cannot lose tokens: {', '.join(KINDS)} can"
        )
    numbers = _numbers(model)
    keep = {token["id"] for token in tokenizer.get("added_tokens", ())} | set(seen)
    keep |= {numbers[token] for token in _basic(tokenizer, numbers)}
    if model["type"] == "BPE":
        by_number = {number: token for token, number in numbers.items()}
        ranks = {tuple(pair): rank for rank, pair in enumerate(_pairs(model))}
        suffix = model.get("end_of_word_suffix") or ""
        for number in sorted(keep & by_number.keys()):
            parts = _joined(by_number[number], ranks, suffix)
            keep |= {numbers[part] for part in parts if part in numbers}
    return sorted(keep)


def with_tokens(tokenizer: Mapping[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with these tokens only, which get the numbers 0, 1, 2, ...

    Args:
        tokenizer: The content of a tokenizer.json.
        keep: What `needed_tokens` returned.
    """
    new = {old: number for number, old in enumerate(keep)}
    result = copy.deepcopy(dict(tokenizer))
    model = result["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
        model["unk_id"] = new.get(model.get("unk_id"))
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        kept = model["vocab"]
        model["merges"] = [[a, b] for a, b in _pairs(model) if {a, b, a + b} <= kept.keys()]
    added = result.get("added_tokens", ())
    result["added_tokens"] = [{**x, "id": new[x["id"]]} for x in added if x["id"] in new]
    if padding := result.get("padding"):
        padding["pad_id"] = new.get(padding["pad_id"], 0)
    _renumber(result.get("post_processor"), new)
    return result


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of each token of the model."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _basic(tokenizer: Mapping[str, Any], numbers: Mapping[str, int]) -> Iterator[str]:
    """Yield the tokens that any text may need."""
    model = tokenizer["model"]
    byte_level = "ByteLevel" in {x.get("type") for x in _steps(tokenizer)}
    prefix, suffix = (model.get(x) or "" for x in ("continuing_subword_prefix", "end_of_word_suffix"))
    bytes_stand_in = bool(model.get("byte_fallback"))
    if model["type"] == "Unigram":
        yield min(model["vocab"], key=lambda piece: piece[1])[0]
        if model.get("unk_id") is not None:
            yield model["vocab"][model["unk_id"]][0]
    elif model.get("unk_token") in numbers:
        yield model["unk_token"]
    for token in numbers:
        single = len(token.removeprefix(prefix).removesuffix(suffix)) == 1
        if BYTE.fullmatch(token) or (single and (byte_level or not bytes_stand_in)):
            yield token


def _steps(tokenizer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what happens to a text before it is split into tokens, sequences as their parts."""
    for name in ("normalizer", "pre_tokenizer"):
        step = tokenizer.get(name) or {}
        yield from step.get("pretokenizers") or step.get("normalizers") or [step]


def _pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that BPE joins, best first; older files have them as "a b"."""
    for pair in model["merges"]:
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        yield first, second


def _joined(token: str, ranks: Mapping[tuple[str, ...], int], suffix: str) -> set[str]:
    """Return what BPE makes on the way from the characters of a token to the token."""
    parts = list(token.removesuffix(suffix)) if suffix else list(token)
    if suffix and token.endswith(suffix) and parts:
        parts[-1] += suffix
    made = set(parts)
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(parts)))
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.add(parts[at])
    return made


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Change the numbers of special tokens in a post-processor, in place."""
    for part in (processor or {}).get("processors", ()):
        _renumber(part, new)
    for special in ((processor or {}).get("special_tokens") or {}).values():
        special["ids"] = [new[number] for number in special["ids"]]
    for name in ("sep", "cls"):
        if processor and name in processor:
            processor[name] = [processor[name][0], new[processor[name][1]]]
