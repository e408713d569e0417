"""The paper's tables and figures, each a list of rows with our numbers and the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.analysis.measure import accuracy
from secateur.finetune import finetune
from secateur.methods import MIP, SNIP
from secateur.network.decoupled import attach_auxiliaries, parts
from secateur.network.surgery import shrink
from secateur.network.trace import trace
from secateur.structures.relu_mip import balanced_images
from secateur.studies.mip import published
from secateur.studies.mip.subjects import (
    THRESHOLDS,
    Keep,
    Scale,
    Subject,
    as_plan,
    at_threshold,
    dataset,
    make,
    others,
    random_keep,
    ranked,
    share,
    subject,
    test,
)
from secateur.zoo import train

Row = dict[str, Any]
Folders = Mapping[str, str | Path]

# Bounds and number of images: the published form, and the valid one with as many and with twice as many.
FORMS = (("paper", 10), ("valid", 10), ("valid", 20))

__all__ = ["Row", "epochs", "images", "lambdas", "modes", "pruning", "rescale", "snip", "transfer"]


def pruning(net: str, name: str, folders: Folders, scale: Scale, seeds: Sequence[int]) -> list[Row]:
    """Table 2, with L1, mean activation, dead-only, the valid form, and a fold beside it."""
    rows = []
    for seed in seeds:
        s = subject(net, name, folders, scale, seed)
        forms = FORMS if net.startswith("FC") else FORMS[:1]
        rows += [_pruned_once(s, name, bounds, count) for bounds, count in forms]
    return rows


def _method(s: Subject, **options: Any) -> MIP:
    """The published settings; layer by layer for VGG-16."""
    if s.net != "VGG-16":
        return MIP(time_limit=s.scale.seconds, correct=True, **options)
    inputs, targets = s.data.parts["train"]
    batches = list(zip(inputs.split(64), targets.split(64), strict=True))
    decoupled = attach_auxiliaries(s.model, batches, seed=s.seed)
    x, y = s.data.parts["calibration"]
    chosen = balanced_images(y.numpy(), s.data.classes, np.random.default_rng(s.seed))
    return MIP(parts=parts(decoupled, x[chosen], y[chosen]), time_limit=s.scale.seconds, **options)


def _pruned_once(s: Subject, name: str, bounds: str, count: int) -> Row:
    """One network: ours, and every comparator at the same counts."""
    method = _method(s, bounds=bounds, images=count, relax=bounds == "valid", gap=1e-3)
    result = s.scores(method)
    keep = at_threshold(s.network, result.scores, THRESHOLDS[s.net])
    rest = others(s, result, keep)
    generator = np.random.default_rng(s.seed)
    draws = [test(s, random_keep(keep, s.network, generator)) for _ in range(s.scale.draws)]
    dead = {n: int(d.sum()) for n, d in result.dead.items()}
    return {
        "net": s.net, "data": name, "seed": s.seed, "bounds": bounds, "images": count,
        "threshold": THRESHOLDS[s.net],
        "ref": 100 * s.reference, "ours": test(s, keep), "ours + ft": _finetuned(s, keep),
        "random": float(np.mean(draws)), "random draws": len(draws),
        **{key: test(s, other) for key, other in rest.items()},
        "ours + fold": test(s, keep, repair=True), "L1 + fold": test(s, rest["L1"], repair=True),
        "mean activation + fold": test(s, rest["mean activation"], repair=True),
        "pruned": share(s.network, keep), "pruned dead only": share(s.network, rest["dead only"]),
        "live units removed": _live(s, keep, result.scores, result.dead), "dead units": sum(dead.values()),
        "status": result.status, "gap": result.gap, "solver seconds": result.stats["seconds"],
        "published": published.PRUNING.get((name, s.net)) if bounds == "paper" else None,
    }  # fmt: skip


def _live(s: Subject, keep: Keep, scores: Mapping[str, np.ndarray], dead: Mapping[str, np.ndarray]) -> int:
    return sum(int(((v < THRESHOLDS[s.net]) & ~dead[n]).sum()) for n, v in scores.items())


def _finetuned(s: Subject, keep: Keep) -> float:
    """One epoch of fine-tuning on the shrunk network."""
    if share(s.network, keep) == 0:
        return 100 * s.reference
    small = shrink(s.model, as_plan(s.network, keep))
    tuned, _ = finetune(small, s.data.batches("train", 64), epochs=1, seed=s.seed, progress=False)
    return 100 * accuracy(tuned.eval(), s.data.batches("test", 500))


def modes(name: str, folders: Folders, scale: Scale, seeds: Sequence[int]) -> list[Row]:
    """Tables 1 and 6: class by class, imbalanced, and all at once, LeNet-5, lambda 1."""
    rows = []
    for seed in seeds:
        s = subject("LeNet-5", name, folders, scale, seed)
        for mode in ("per_class", "imbalanced", "joint"):
            result = s.scores(MIP(lam=1.0, mode=mode, time_limit=scale.seconds))
            for threshold in (0.01, 0.1):
                keep = at_threshold(s.network, result.scores, threshold)
                rows.append({
                    "data": name, "seed": seed, "mode": mode, "threshold": threshold,
                    "ref": 100 * s.reference,
                    "ours": test(s, keep), "pruned": share(s.network, keep),
                    "solver seconds": result.stats["seconds"],
                    "published": published.MODES.get((name, mode, threshold)),
                })  # fmt: skip
    return rows


def rescale(name: str, folders: Folders, scale: Scale, seeds: Sequence[int]) -> list[Row]:
    """Table 4: s - 2, s - 1, s; LeNet-5, threshold 0.05."""
    rows = []
    for seed in seeds:
        s = subject("LeNet-5", name, folders, scale, seed)
        for c in (2.0, 1.0, 0.0):
            keep = at_threshold(s.network, s.scores(_method(s, rescale=c)).scores, 0.05)
            rows.append({
                "data": name, "seed": seed, "objective": f"s - {c:g}", "ref": 100 * s.reference,
                "ours": test(s, keep), "pruned": share(s.network, keep),
                "published": published.RESCALE.get((name, c)),
            })  # fmt: skip
    return rows


def transfer(net: str, source: str, target: str, folders: Folders, scale: Scale, seed: int) -> list[Row]:
    """Table 3: mask from one data set, retrain from the same initialisation on another; and a random mask."""
    s = subject(net, source, folders, scale, seed)
    keep = at_threshold(s.network, s.scores(_method(s)).scores, THRESHOLDS[net])
    chance = random_keep(keep, s.network, np.random.default_rng(seed))
    data = dataset(target, net, folders, scale, 0)
    reference = 100 * train(s.initial, data, scale.epochs, seed=seed).accuracy
    return [{
        "net": net, "source": source, "target": target, "seed": seed, "ref": reference,
        "ours": _retrained(s, keep, data, seed), "random": _retrained(s, chance, data, seed),
        "pruned": share(s.network, keep), "published": published.TRANSFER.get((net, source, target)),
    }]  # fmt: skip


def _retrained(s: Subject, keep: Keep, data: Any, seed: int) -> float:
    """Train the pruned initial network on other data."""
    small = shrink(s.initial, as_plan(s.network, keep)) if share(s.network, keep) else s.initial
    return 100 * train(small, data, s.scale.epochs, seed=seed).accuracy


def snip(source: str, target: str, folders: Folders, scale: Scale, seed: int) -> list[Row]:
    """Table 5: SNIP by neurons and ours, both at initialisation (lambda 1, threshold 0.2), LeNet-5."""
    data = dataset(source, "LeNet-5", folders, scale, 0)
    initial = make("LeNet-5", data, seed).eval()
    network = trace(initial, data.parts["calibration"][0][:2])
    s = Subject("LeNet-5", data, seed, initial, initial, network, 0.0, scale)
    keep = at_threshold(network, s.scores(MIP(lam=1.0, time_limit=scale.seconds)).scores, 0.2)
    evidence = s.evidence({"gradients"})
    sensitivity = {n: v.numpy() for n, v in SNIP().unit_scores(network, evidence).items()}
    goal = dataset(target, "LeNet-5", folders, scale, 0)
    reference = 100 * train(initial, goal, scale.epochs, seed=seed).accuracy
    candidates = {
        "ours": keep, "snip": ranked(network, sensitivity, keep),
        "random": random_keep(keep, network, np.random.default_rng(seed)),
    }  # fmt: skip
    return [
        {
            "method": method, "source": source, "target": target, "seed": seed, "ref": reference,
            "masked": _retrained(s, kept, goal, seed), "pruned": share(network, kept),
            "published": published.SNIP.get((method, source, target)),
        }
        for method, kept in candidates.items()
    ]  # fmt: skip


def images(net: str, name: str, folders: Folders, scale: Scale, seed: int) -> list[Row]:
    """Figure 2a: the same network under several random balanced sets of images."""
    s = subject(net, name, folders, scale, seed)
    rows = []
    for draw in range(scale.sets):
        method = MIP(time_limit=scale.seconds)
        result = s.scores(method, seed=draw)
        keep = at_threshold(s.network, result.scores, THRESHOLDS[net])
        rows.append({
            "net": net, "data": name, "seed": seed, "set": draw, "ref": 100 * s.reference,
            "ours": test(s, keep), "pruned": share(s.network, keep),
        })  # fmt: skip
    return rows


def epochs(net: str, name: str, folders: Folders, scale: Scale, seed: int) -> list[Row]:
    """Figure 2b: scores after every epoch of training."""
    data = dataset(name, net, folders, scale, 0)
    model = make(net, data, seed)
    network = trace(model.eval(), data.parts["calibration"][0][:2])
    rows = []
    for epoch in range(1, scale.epochs + 1):
        generator = torch.Generator().manual_seed(seed + epoch)
        x, y = data.parts["train"]
        order = torch.randperm(len(y), generator=generator)
        batches = [(x[at], y[at]) for at in order.split(128)]
        model, _ = finetune(model, batches, epochs=1, lr=1e-3, seed=seed + epoch, progress=False)
        model.eval()
        reference = accuracy(model, data.batches("test", 500))
        s = Subject(net, data, seed, model, model, network, reference, scale)
        keep = at_threshold(network, s.scores(_method(s)).scores, THRESHOLDS[net])
        rows.append({
            "net": net, "data": name, "seed": seed, "epoch": epoch, "ref": 100 * reference,
            "ours": test(s, keep), "pruned": share(network, keep),
        })  # fmt: skip
    return rows


def lambdas(net: str, name: str, folders: Folders, scale: Scale, seed: int) -> list[Row]:
    """Figure 3: the trade-off lambda."""
    s = subject(net, name, folders, scale, seed)
    rows = []
    for lam in (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0):
        keep = at_threshold(s.network, s.scores(replace(_method(s), lam=lam)).scores, THRESHOLDS[net])
        rows.append({
            "net": net, "data": name, "seed": seed, "lambda": lam, "ref": 100 * s.reference,
            "ours": test(s, keep), "pruned": share(s.network, keep),
        })  # fmt: skip
    return rows
