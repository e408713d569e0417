"""The jobs of the lattice study. Each trains or loads its network and returns rows."""

from __future__ import annotations

from typing import Any

from secateur.data import load_dataset
from secateur.measure.metrics import accuracy
from secateur_studies.lattice import phonemes
from secateur_studies.lattice.effects import measure_effects
from secateur_studies.lattice.literal import VARIANTS, Schedule, train_literal
from secateur_studies.lattice.rigorous import Size, compare_criteria, prepare_case

__all__ = ["g2p", "literal", "rigorous"]

Row = dict[str, Any]
LITERAL = "literal"


def literal(data: str, folder: str | None, schedule: dict[str, Any], variant: str, seed: int) -> list[Row]:
    """Train one variant of Algorithms 2 and 3."""
    images = load_dataset(data, folder, seed)
    chosen = next(v for v in VARIANTS if v.name == variant)
    model, zeros = train_literal(images, chosen, Schedule(**schedule), seed)
    score = accuracy(model, images.batches("test", 1000))
    row = {"part": LITERAL, "data": data, "variant": variant, "seed": seed}
    return [{**row, "zeros": zeros, "accuracy": score}]


def rigorous(data: str, folder: str | None, size: dict[str, Any], seed: int) -> list[Row]:
    """Compare criteria on an LSTM of one seed, and measure the effects of removing half of its units."""
    case = prepare_case(load_dataset(data, folder, seed), Size(**size), seed)
    return [*compare_criteria(case), *measure_effects(case)]


def g2p(words: dict[str, Any], reach: str, removed: float, seed: int, weights: str | None) -> list[Row]:
    """Compare criteria on the grapheme-to-phoneme network."""
    return list(phonemes.compare_methods(phonemes.Words(**words), reach, removed, seed, weights))
