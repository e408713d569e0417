"""The trials and the conclusion of the matroid study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.bench import Trial
from secateur.data import fashion_available
from secateur_studies.findings import Findings
from secateur_studies.matroid.harder import KERNELS, TASKS
from secateur_studies.matroid.ordinary import MODELS
from secateur_studies.matroid.post import DIMENSIONS, SEEDS
from secateur_studies.matroid.tables import figures, tables
from secateur_studies.rows import Rows
from secateur_studies.runner import Study, check_names

__all__ = ["STUDY", "findings", "trials"]

PARTS = ("post", "controls", "ordinary", "planted", "harder")
JOBS = "secateur_studies.matroid.experiments"
TITLE = "Matroid-guided pruning: the post, its limits, and ordinary networks"
SOURCE = (
    'the blog post "Matroid-Guided Pruning: Removing 70% of Neurons for Free" and its published experiment'
)
CONCLUSION = """\
Every published mean comes out to the printed digit. The post has no number for the network of 50 units,
which gains accuracy when its whole tail goes.

The published means depend on the order of the neurons. Permuting the neurons does not change the function,
but then the same rule does worse than random removal in the widest network. Over the rationals the tail of
wide networks is much smaller than the numerical one: it has as many units as there are biases of exactly 0.
An untrained network has a long tail, too. Cauchy and unconstrained networks have none on the post's data.

Merging positive multiples works in any order of the neurons, keeps few units, and does not change the
accuracy. Exact merging finds all planted multiples and duplicates, and nothing else.

Within the tail, the orders by index, by deficient windows and by norm lose nothing. The order from the
outermost inward loses about 10 points on the wider networks of the exponential kernel, and random units of
the tail cost about as much as random units of the layer. On harder tasks a Gaussian kernel trains where the
exponential one fails. With five inputs and more its tail is not free; with a fold, a basis of activations
loses nothing there.

On ordinary networks, a basis of activations is compared with the best baseline, both with the same fold.
Most comparisons are ties. The basis is ahead in a few of those that remove most of the units, and behind in
none."""


def trials(
    *,
    full: bool,
    seed: int,
    folders: Mapping[str, str],
    cache: str,
    parts: Sequence[str] = PARTS,
    dimensions: Sequence[int] = DIMENSIONS,
    models: Sequence[str] = tuple(MODELS),
    seeds: int | None = None,
    limit: int | None = None,
) -> list[Trial]:
    """Return the trials, the longest first.

    Args:
        full: Train ordinary networks twice as long on all examples, test on all, with ten seeds or more.
        seed: First seed of the ordinary networks (the post's are fixed).
        folders: Folder of ``"fashion"``. Without it and without Debian's package, digits are used.
        cache: Not used: no weights are shared.
        parts: Any of `PARTS`.
        dimensions: Hidden units of the post's networks.
        models: Ordinary networks: ``"mlp"``, ``"cnn"``, ``"lstm"``.
        seeds: Number of ordinary networks of each kind; by default ten perceptrons, five of the others.
        limit: Train ordinary networks on at most this many examples.

    Raises:
        InputError: If a part or a model is unknown.
    """
    check_names("part", parts, PARTS)
    check_names("model", models, tuple(MODELS))
    folder = folders.get("fashion")
    images = {"data": "fashion" if folder or fashion_available() else "digits", "folder": folder}
    seeds = 10 if seeds is None and full else seeds
    planned: list[Trial] = []
    for model in sorted(models, key=["lstm", "cnn", "mlp"].index) if "ordinary" in parts else ():
        size = _choose_size(model, full, limit)
        chosen = range(seed, seed + (MODELS[model].seeds if seeds is None else seeds))
        planned += [Trial(f"{JOBS}:ordinary", {**images, "model": model, "seed": s, **size}) for s in chosen]
    if "post" in parts:
        planned += [
            Trial(f"{JOBS}:post", {"seed": s, "mode": mode, "units": list(dimensions)})
            for mode in ("tp_exponential", "negated_bidiagonal")
            for s in SEEDS
        ]
    if "controls" in parts:
        planned += [Trial(f"{JOBS}:controls", {"seed": s, "units": dimensions[-1]}) for s in SEEDS]
    if "harder" in parts:
        planned += [
            Trial(f"{JOBS}:harder", {"task": task, "mode": mode, "seed": s})
            for task in TASKS
            for mode in KERNELS
            for s in range(seed, seed + (5 if seeds is None else seeds))
        ]
    if "planted" in parts:
        chosen = range(seed, seed + (5 if seeds is None else seeds))
        planned += [Trial(f"{JOBS}:planted", {**images, "seed": s, "count": 40}) for s in chosen]
    return planned


def _choose_size(model: str, full: bool, limit: int | None) -> dict[str, Any]:
    scale = MODELS[model]
    if full:
        size = {"epochs": 2 * scale.epochs, "limit": None, "tests": None, "draws": 20}
    else:
        size = {"epochs": scale.epochs, "limit": scale.limit, "tests": scale.tests, "draws": 10}
    return size if limit is None else {**size, "limit": limit, "draws": 2}


def findings(rows: Rows) -> Findings:
    """Return the findings from the rows of all trials."""
    return Findings("matroid", TITLE, SOURCE, tables(rows), figures(rows), CONCLUSION)


STUDY = Study("matroid", ("fashion",), trials, findings)
