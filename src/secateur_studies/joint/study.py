"""The trials and the conclusion of the joint study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from secateur.bench import Trial
from secateur.data import fashion_available
from secateur.methods import METHODS
from secateur.specs import make_method
from secateur_studies.findings import Findings
from secateur_studies.joint.models import NETWORKS, SIZES
from secateur_studies.joint.tables import figures, tables
from secateur_studies.rows import Rows
from secateur_studies.runner import Study, check_names

__all__ = ["STUDY", "findings", "trials"]

JOB = "secateur_studies.joint.experiments:network"
KEEPS, FULL_KEEPS = (0.8, 0.6, 0.4, 0.2, 0.1), (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
COMPARED = (*METHODS, "magnitude:p=2")
# The longest first, so that workers end together.
ORDER = ("ResNet-20", "VGG", "transformer", "LeNet-5", "LSTM", "MLP")
TITLE = "The four structures and all baselines, on the same networks"
CONCLUSION = """\
With the fold, `matroid` loses least on average and is ahead of the next method, `flap`, over the kinds of
network. Without repair it is tied with `wanda`, and after a short fine-tuning with `leverage`. `taylor` is
the best method of a block most often without repair.

Few differences are certain. With three seeds the best method of a block is never significantly better than
random removal. Corrected for all comparisons with the same repair, over the kinds of network, `matroid` is
ahead of `magnitude` (with either norm), `activation`, `wanda` and `snip` with the fold, and of `magnitude`
after the fine-tuning; `lattice` is ahead of `magnitude` without repair. Everything else is tied, with
random removal, too. No structure is behind a baseline. `mip` is defined for half of the kinds of network
only. On average `spectral` loses more than most baselines with the fold.

`matroid` uses a basis of activations (an interpolative decomposition), not the windows of rows of the post,
and is close to what the fold solves for afterwards. `lattice` ranks by flow. The default options of the
structures were chosen with accuracies on these data sets in view. The baselines have no options that were
chosen in this way.

SynFlow, the integer program, `matroid` and `leverage` take longest to decide.

Not compared here: small networks trained from scratch, allocations other than the same share of every
group, MACs and latency, masks of single weights."""


def trials(
    *,
    full: bool,
    seed: int,
    folders: Mapping[str, str],
    cache: str | None,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] = ORDER,
    methods: Sequence[str] = COMPARED,
    keeps: Sequence[float] | None = None,
    seeds: int = 3,
    limit: int | None = None,
) -> list[Trial]:
    """Return one trial for each data set, network and seed.

    Args:
        full: Train networks on all examples and twice as long, test on all, with seven ratios and ten seeds.
        seed: First seed.
        folders: Folder of ``"fashion"``, if it is not installed.
        cache: Folder for trained weights.
        datasets: ``"fashion"``, ``"digits"``; by default both if Fashion-MNIST is available, else digits.
        networks: Names in `NETWORKS`.
        methods: Names in `METHODS`, with options; by default all of them, and the L2 norm.
        keeps: Shares of each group's units that stay.
        seeds: Number of networks of each kind.
        limit: Train on at most this many examples in one pass, and prune on few, for a test.

    Raises:
        InputError: If a network, a method or a data set is unknown.
    """
    folder = folders.get("fashion")
    available = ("fashion", "digits") if folder or fashion_available() else ("digits",)
    chosen = available if datasets is None else tuple(datasets)
    check_names("network", networks, tuple(NETWORKS))
    check_names("data set", chosen, ("fashion", "digits"))
    for name in methods:
        make_method(name)
    shares = list(keeps if keeps is not None else FULL_KEEPS if full else KEEPS)
    common = {"folder": folder, "methods": list(methods), "keeps": shares, "draws": 20 if full else 2}
    several = range(seed, seed + (max(10, seeds) if full and limit is None else seeds))
    planned = []
    for data in chosen:
        for network in sorted(networks, key=ORDER.index):
            size = SIZES[data, network].full() if full else SIZES[data, network]
            size = size if limit is None else size.tiny(limit)
            for s in several:
                what: dict[str, Any] = {"data": data, "model": network, "seed": s, "size": asdict(size)}
                planned.append(Trial(JOB, {**what, **common}, {"cache": cache}))
    return planned


def findings(rows: Rows) -> Findings:
    """Return the findings from the rows of all trials."""
    return Findings("joint", TITLE, "", tables(rows), figures(rows), CONCLUSION)


STUDY = Study("joint", ("fashion",), trials, findings)
