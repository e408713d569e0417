"""The trials and the conclusion of the spectral study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.bench import Trial
from secateur.core import InputError
from secateur_studies.findings import Findings
from secateur_studies.rows import Rows
from secateur_studies.runner import Study, check_names
from secateur_studies.spectral.experiments import AT_START, CONTROL
from secateur_studies.spectral.figures import figures
from secateur_studies.spectral.mask_variants import (
    CONTROLS,
    COVERAGE,
    DENSE,
    GREEDY_ERK,
    GREEDY_GLOBAL,
    MAIN,
)
from secateur_studies.spectral.models import FULL, NETS, PLAIN, PLAIN_FULL, PLAIN_QUICK, QUICK, Scale
from secateur_studies.spectral.published import TABLE_1
from secateur_studies.spectral.tables import tables

__all__ = ["PARTS", "STUDY", "findings", "trials"]

PARTS = ("table1", "figure2", "controls", "figure3", "oneshot")
SCORES = ("magnitude", "snip", "synflow")
AFTER = (DENSE, *MAIN, GREEDY_GLOBAL, GREEDY_ERK, COVERAGE)
SHARES = (0.5, 0.2, 0.1, 0.05)
UNITS = (0.7, 0.5, 0.3)
FLOOR = 0.1
SEEDS, OTHERS = 3, 2  # of the first network, and of the others
JOBS = "secateur_studies.spectral.experiments"
TITLE = "Pruning by spectral sparsification: the paper's experiments, with controls"
CONCLUSION = """\
The paper's central statement is reproduced: at initialisation and at low densities, `sparsify` is far ahead
of `greedy`, for every score. But the controls show that this is the effect of the layer sizes. Greedy masks
and even random masks with the layer sizes of `sparsify` do as well, and so do greedy masks with ERK sizes.
At the lowest density ERK sizes are better than `sparsify`.

Several statements are not reproduced. SynFlow's scores are no better than the others for `sparsify`; SNIP's
scores are not worse once the sizes are those of `sparsify`; magnitudes ranked over all layers are
ahead of `sparsify` when the network is retrained after training.

The speed-up of the layer-by-layer algorithm is not reproduced either. With both algorithms exact, a mask
from the whole network's graph takes about as long as one made layer by layer. The published speed-ups are
those of pseudo-inverses, whose time grows with the cube of the channels; neither algorithm needs one.

After training and without retraining, the leverage of (|w| input)^2 is well ahead of global magnitude on
the perceptron and on LeNet-5 at low densities. On the networks with batch normalisation it is not: there it
ties with magnitude or is behind."""


def trials(
    *,
    full: bool,
    seed: int,
    folders: Mapping[str, str],
    cache: str,
    parts: Sequence[str] = PARTS,
    nets: Sequence[str] = tuple(NETS),
    seeds: int | None = None,
    scale: Scale | None = None,
) -> list[Trial]:
    """Return one trial for each network, seed, score and mask variant.

    Args:
        full: The paper's widths, epochs, densities and augmentation (weeks on a CPU; a GPU is used if there
            is one) instead of narrow networks on small images. Then each density is its own trial.
        seed: First seed.
        folders: Folders of the paper's data: ``"cifar10"``, ``"cifar100"`` (binary versions) and
            ``"tinyimagenet"``. Missing ones are replaced by Fashion-MNIST or digits.
        cache: Not used: no weights are shared.
        parts: Any of ``"table1"`` (layer by layer against the whole network), ``"figure2"`` (at
            initialisation), ``"controls"`` (of Figure 2), ``"figure3"`` (after training, retrained from the
            initial weights, with the connectivity of Figure 4), ``"oneshot"`` (after training, not
            retrained).
        nets: Any of VGG-11, ResNet-20, VGG-16, ResNet-18. Controls and Figures 3 and 4 use the first. Part
            ``"oneshot"`` also has a perceptron and LeNet-5.
        seeds: Number of seeds; two more for the perceptron and LeNet-5. By default three, and two for all
            but the first network: without controls, they are compared over networks.
        scale: Another scale.

    Raises:
        InputError: If a part or a network is unknown, or `seeds` is not positive.
    """
    check_names("part", parts, PARTS)
    check_names("network", nets, tuple(NETS))
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds must be at least 1; got {seeds}")
    chosen = scale or (FULL if full else QUICK)
    densities = [[d] for d in chosen.densities] if chosen.paper else [list(chosen.densities)]
    planned: list[Trial] = []
    count = seeds or SEEDS
    for s in range(seed, seed + count):
        for net in nets if seeds is not None or full or s < seed + OTHERS else nets[:1]:
            common = _common_parameters(net, s, chosen, folders)
            if "table1" in parts and (net, "layer") in TABLE_1:
                timed = {"density": TABLE_1[net, "layer"].density, "repeats": 3}
                planned.append(Trial(f"{JOBS}:table1", {**common, **timed}))
            for job, values in _trainings(parts, net == nets[0]):
                some = [[]] if values["variant"] == DENSE else densities
                planned += [Trial(f"{JOBS}:{job}", {**common, **values, "densities": list(d)}) for d in some]
            if "oneshot" in parts and (net in ("VGG-11", "ResNet-20") or len(nets) == 1):
                planned.append(_oneshot_trial(common))
    if "oneshot" in parts:
        plain = scale or (PLAIN_FULL if full else PLAIN_QUICK)
        several = range(seed, seed + count + 2)
        planned += [
            _oneshot_trial(_common_parameters(net, s, plain, folders)) for s in several for net in PLAIN
        ]
    return planned


def _common_parameters(net: str, seed: int, scale: Scale, folders: Mapping[str, str]) -> dict[str, Any]:
    return {"net": net, "seed": seed, "scale": scale.to_json(), "folders": dict(folders)}


def _oneshot_trial(common: Mapping[str, Any]) -> Trial:
    budgets = {"densities": list(SHARES), "units": list(UNITS), "floor": FLOOR}
    return Trial(f"{JOBS}:oneshot", {**common, **budgets})


def _trainings(parts: Sequence[str], first: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the jobs that train at each density, with their parameters."""
    if "figure2" in parts:
        yield "figure2", {"part": AT_START, "score": "none", "variant": DENSE}
        for score in SCORES:
            for variant in MAIN:
                yield "figure2", {"part": AT_START, "score": score, "variant": variant}
    if "controls" in parts and first:
        for variant in CONTROLS:
            yield "figure2", {"part": CONTROL, "score": "magnitude", "variant": variant}
    if "figure3" in parts and first:
        for variant in AFTER:
            yield "figure3", {"variant": variant}


def findings(rows: Rows) -> Findings:
    """Return the findings from the rows of all trials."""
    return Findings("spectral", TITLE, "arXiv:2306.08849", tables(rows), figures(rows), CONCLUSION)


STUDY = Study("spectral", tuple(dict.fromkeys(NETS.values())), trials, findings)
