"""The cells of the study: each trains or loads what it speaks of and returns rows, which say their "part"."""

from __future__ import annotations

from typing import Any

from secateur.data import load_dataset
from secateur.measure.metrics import accuracy
from secateur_studies.lattice import phonemes
from secateur_studies.lattice.effect import effects
from secateur_studies.lattice.literal import VARIANTS, Schedule, train_literal
from secateur_studies.lattice.rigorous import Size, compare, prepare

__all__ = ["g2p", "literal", "rigorous"]

Row = dict[str, Any]


def literal(data: str, folder: str | None, how: dict[str, Any], variant: str, seed: int) -> list[Row]:
    """Train one variant of Algorithms 2 and 3."""
    images = load_dataset(data, folder, seed)
    chosen = next(v for v in VARIANTS if v.name == variant)
    model, zeros = train_literal(images, chosen, Schedule(**how), seed)
    score = accuracy(model, images.batches("test", 1000))
    row = {"part": "literal", "data": data, "variant": variant, "seed": seed}
    return [{**row, "zeros": zeros, "accuracy": score}]


def rigorous(data: str, folder: str | None, size: dict[str, Any], seed: int) -> list[Row]:
    """Compare criteria on an LSTM of one seed, and say what the loss of half of its units changes."""
    case = prepare(load_dataset(data, folder, seed), Size(**size), seed)
    return [*compare(case), *effects(case)]


def g2p(words: dict[str, Any], reach: str, removed: float, seed: int, weights: str | None) -> list[Row]:
    """Compare criteria on the grapheme-to-phoneme network."""
    return list(phonemes.compare(phonemes.Words(**words), reach, removed, seed, weights))
