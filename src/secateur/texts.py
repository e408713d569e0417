"""Texts as batches of token sequences: read, split, tokenise, pack.

The first half of a calibration text is for methods and repairs; its second half judges.  Another text shows
whether the model still works on other texts.  Sequences are excerpts of one length, spread evenly over a
text, each with the special tokens that the tokenizer puts around a text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import predicts_next_token
from secateur.core import InputError

__all__ = [
    "JUDGING",
    "LENGTH",
    "SAMPLES",
    "TextBatches",
    "as_token_batches",
    "pack_text",
    "read_text",
    "read_texts",
    "sequence_limit",
]

LENGTH = 512  # tokens of a sequence
SAMPLES = 16  # calibration sequences
JUDGING = 8  # sequences of each text that judges
CHARACTERS = 16  # that give a token or more, in any text
LOGITS = 2**25  # numbers in the outputs of one batch
SECOND_HALF = ", second half"


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Batches of token sequences.

    Attributes:
        fit: Batches that methods and repairs look at, alternating between the texts.
        judged: By name of a text, batches that are only used to measure.
        foreign: Whether at least one of these texts is not among the calibration texts.
    """

    fit: Sequence[Mapping[str, Tensor]]
    judged: Mapping[str, Sequence[Mapping[str, Tensor]]]
    foreign: bool


def read_texts(
    texts: Sequence[str | Path],
    holdout: Sequence[str | Path],
    tokenizer: Any,
    model: nn.Module,
    *,
    length: int | None = None,
    samples: int = SAMPLES,
    judging: int = JUDGING,
) -> TextBatches:
    """Return calibration batches and judging batches of text files.

    Args:
        texts: Calibration texts.  They give equally many sequences, from their first halves.
        holdout: Other texts, which only judge.
        tokenizer: A tokenizer of transformers.
        model: A model of transformers.  Its config gives the vocabulary and the longest sequence.
        length: Tokens in a sequence; by default 512, or as many as the model takes.
        samples: Calibration sequences of all texts together.
        judging: Sequences of each text that judges.

    Raises:
        InputError: If a file cannot be read or is too short, the length is more than the model takes, or the
            tokenizer is not that of the model.
    """
    config = getattr(model, "config", None)
    length = _checked_length(length, config)
    for name, count in (("samples", samples), ("holdout samples", judging)):
        if count < 1:
            raise InputError(f"the number of {name} must be 1 or more; got {count}")
    calibration: list[Tensor] = []
    judged: dict[str, Tensor] = {}
    share = -(-samples // max(1, len(texts)))
    for path in texts:
        first, second = _halves(read_text(path))
        calibration.append(_tokens(tokenizer, first, length, share, config, f"the first half of {path}"))
        name = _unused(f"{Path(path).name}{SECOND_HALF}", judged)
        judged[name] = _tokens(tokenizer, second, length, judging, config, f"the second half of {path}")
    for path in holdout:
        judged[_unused(Path(path).name, judged)] = _tokens(
            tokenizer, read_text(path), length, judging, config, str(path)
        )
    size = max(1, LOGITS // (length * (_vocabulary(config) or 1)))
    fit = _in_turn(calibration)[:samples]
    if len(fit) < samples and texts:
        warnings.warn(
            f"the calibration texts give {len(fit)} sequences of {length} tokens, not {samples}: longer "
            "texts or shorter sequences would give more",
            stacklevel=2,
        )
    labels = predicts_next_token(model)
    batches = {name: as_token_batches(rows, size, labels) for name, rows in judged.items()}
    return TextBatches(as_token_batches(fit, size, labels), batches, bool(holdout))


def as_token_batches(rows: Tensor, size: int, labels: bool) -> list[dict[str, Tensor]]:
    """Return sequences [n, length] as batches of at most `size`, with themselves as labels if asked for.

    Example:
        >>> as_token_batches(torch.tensor([[1, 2], [3, 4]]), 2, labels=False)
        [{'input_ids': tensor([[1, 2],
                [3, 4]])}]
    """
    return [{"input_ids": part, **({"labels": part.clone()} if labels else {})} for part in rows.split(size)]


def pack_text(tokenizer: Any, text: str, length: int, count: int) -> Tensor:
    """Return token numbers [n, length], n at most `count`: excerpts spread evenly over a text.

    Args:
        tokenizer: A tokenizer of transformers.
        text: The text.
        length: Tokens in a sequence, with the special ones.
        count: Sequences wanted; a short text gives fewer.
    """
    before, after = _special_tokens(tokenizer)
    room = length - len(before) - len(after)
    if room < 1:
        raise InputError(
            f"a sequence of {length} tokens has no room for text: {len(before) + len(after)} are special ones"
        )
    # A long text is not tokenised as a whole.
    span = CHARACTERS * room
    excerpts = [text]
    if len(text) > count * span:
        starts = (text.find(" ", i * (len(text) - span) // count) + 1 for i in range(count))
        excerpts = [text[start : start + span] for start in starts]
    rows = []
    for excerpt in excerpts:
        ids = tokenizer(excerpt, add_special_tokens=False, verbose=False)["input_ids"]
        pieces = [ids[i : i + room] for i in range(0, len(ids) - room + 1, room)]
        rows += pieces[: 1 if len(excerpts) > 1 else None]
    chosen = [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows
    return torch.tensor([[*before, *row, *after] for row in chosen], dtype=torch.long).reshape(-1, length)


def sequence_limit(config: Any) -> int | None:
    """Return the longest sequence that a model takes, or None if its config does not say."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length")
    return next((int(n) for name in names if (n := getattr(config, name, None))), None)


def _checked_length(length: int | None, config: Any) -> int:
    limit = sequence_limit(config)
    if length is None:
        return LENGTH if limit is None else min(LENGTH, limit)
    if length < 2:
        raise InputError(f"a sequence must have 2 tokens or more; got {length}")
    if limit is not None and length > limit:
        raise InputError(f"sequences of {length} tokens are longer than the {limit} that the model takes")
    return length


def read_text(path: str | Path) -> str:
    """Return the content of a file, or raise `InputError` if it is not text or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: {error}") from error
    if not text.strip():
        raise InputError(f"{path} is empty: give a text of some thousand words")
    return text


def _halves(text: str) -> tuple[str, str]:
    """Split a text in its middle, between two words."""
    middle = text.find(" ", len(text) // 2)
    middle = len(text) // 2 if middle < 0 else middle + 1
    return text[:middle], text[middle:]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def _tokens(tokenizer: Any, text: str, length: int, count: int, config: Any, where: str) -> Tensor:
    rows = pack_text(tokenizer, text, length, count)
    if not len(rows):
        raise InputError(
            f"{where} has fewer than {length} tokens, one sequence: give a longer text or shorter sequences, "
            f"--sequence-length {max(2, length // 4)}"
        )
    vocabulary = _vocabulary(config)
    if vocabulary is not None and int(rows.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer does not fit the model: it gives token {int(rows.max())}, and the model knows "
            f"{vocabulary} tokens; name the tokenizer of this model with --tokenizer"
        )
    return rows


def _vocabulary(config: Any) -> int | None:
    return getattr(config, "vocab_size", None)


def _in_turn(texts: Iterable[Tensor]) -> Tensor:
    """Return the sequences of several texts, alternating between the texts."""
    rows = [list(text) for text in texts]
    longest = max(map(len, rows), default=0)
    mixed = [text[i] for i in range(longest) for text in rows if i < len(text)]
    return torch.stack(mixed) if mixed else torch.empty(0, 0, dtype=torch.long)


def _unused(name: str, names: Iterable[str]) -> str:
    """Return a name that no other text of the same name has."""
    known, number = set(names), 2
    wanted = name
    while wanted in known:
        wanted, number = f"{name} ({number})", number + 1
    return wanted
