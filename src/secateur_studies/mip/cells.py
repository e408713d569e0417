"""The cells of the study: each a function from plain words to rows, run in a process of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from secateur.measure.metrics import accuracy
from secateur.methods import SNIP
from secateur.structures.relu_mip import Scores
from secateur.tracing.trace import trace
from secateur_studies.mip.removal import (
    at_threshold,
    others,
    random_keep,
    ranked,
    retrained,
    share,
    test,
    test_folded,
    test_tuned,
)
from secateur_studies.mip.subjects import THRESHOLDS, Setting, Subject, dataset, fit, make, subject

Row = dict[str, Any]
LAMBDAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)

__all__ = ["epochs", "images", "lambdas", "modes", "pruning", "rescale", "snip", "transfer", "tuned"]


@contextmanager
def _expected() -> Iterator[None]:
    """Let one class at a time, and draws that may hold a mistake, pass without a warning."""
    with warnings.catch_warnings():
        for message in ("no image of class", "the network misclassifies"):
            warnings.filterwarnings("ignore", message=message)
        yield


def pruning(
    net: str, data: str, seed: int, setting: Row, valid: bool = False, cache: str | None = None
) -> list[Row]:
    """Table 2: the published form with 10 images; and (`valid`) the one that lets live units go, with 20."""
    s = subject(net, data, Setting(**setting, cache=cache), seed)
    forms = ({"bounds": "paper"}, {"bounds": "valid", "images": 20, "relax": True})[: 2 if valid else 1]
    return [_pruned(s, options) for options in forms]


def _pruned(s: Subject, options: Mapping[str, Any]) -> Row:
    """One network and one form: ours, and every comparator at the same counts."""
    with _expected():
        result = s.scores(**options)
    keep = at_threshold(s.network, result.scores, THRESHOLDS[s.net])
    rest = others(s, result, keep)
    generator = np.random.default_rng(s.seed)
    chance = [random_keep(keep, s.network, generator) for _ in range(s.setting.draws)]
    dead = sum(int(d.sum()) for d in result.dead.values())
    low = sum(int(((v < THRESHOLDS[s.net]) & ~result.dead[n]).sum()) for n, v in result.scores.items())
    row = {
        "net": s.net,
        "data": s.data.name,
        "seed": s.seed,
        "bounds": options["bounds"],
        "images": options.get("images", 10),
        "threshold": THRESHOLDS[s.net],
        "ref": s.reference,
        "ours": test(s, keep),
        "random": float(np.mean([test(s, c) for c in chance])),
        **{name: test(s, other) for name, other in rest.items()},
        "pruned": share(s.network, keep),
        "pruned dead only": share(s.network, rest["dead only"]),
        "live units removed": low,
        "dead units": dead,
        "draws": len(chance),
        **_solved(result),
    }
    if options["bounds"] == "paper":
        return row
    folded = {"ours": keep, "random": chance[0], **{n: k for n, k in rest.items() if n != "critical"}}
    return row | {f"{name} + fold": test_folded(s, kept) for name, kept in folded.items()}


def _solved(result: Scores) -> Row:
    return {"status": result.status, "gap": result.gap, "solver seconds": result.stats["seconds"]}


def tuned(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Table 2 with fine-tuning: the published form and its comparators after one epoch each."""
    s = subject(net, data, Setting(**setting, cache=cache), seed)
    with _expected():
        result = s.scores()
    keep = at_threshold(s.network, result.scores, THRESHOLDS[net])
    chance = random_keep(keep, s.network, np.random.default_rng(seed))
    masks = {"ours": keep, "random": chance, **others(s, result, keep)}
    same = {"net": net, "data": data, "seed": seed}
    return [same | {f"{name} + ft": test_tuned(s, kept) for name, kept in masks.items()}]


def modes(data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Tables 1 and 6: class by class, imbalanced, and all at once; LeNet-5, lambda 1."""
    s = subject("LeNet-5", data, Setting(**setting, cache=cache), seed)
    rows, reference = [], s.reference
    for mode in ("per_class", "imbalanced", "joint"):
        with _expected():
            result = s.scores(lam=1.0, mode=mode, correct=False)
        for threshold in (0.01, 0.1):
            keep = at_threshold(s.network, result.scores, threshold)
            rows.append(
                {
                    "data": data,
                    "seed": seed,
                    "mode": mode,
                    "threshold": threshold,
                    "ref": reference,
                    "ours": test(s, keep),
                    "pruned": share(s.network, keep),
                    **_solved(result),
                }
            )
    return rows


def transfer(
    net: str, source: str, target: str, seed: int, setting: Row, cache: str | None = None
) -> list[Row]:
    """Table 3: mask from one data set, retrain from the same initialisation on another; and random masks."""
    scale = Setting(**setting, cache=cache)
    s = subject(net, source, scale, seed)
    with _expected():
        result = s.scores()
    keep = at_threshold(s.network, result.scores, THRESHOLDS[net])
    chance = random_keep(keep, s.network, np.random.default_rng(seed))
    goal = dataset(target, net, scale)
    whole = fit(s.initial, goal, scale, seed) if net == "VGG-16" else subject(net, target, scale, seed).model
    return [
        {
            "net": net,
            "source": source,
            "target": target,
            "seed": seed,
            "ref": 100 * accuracy(whole, goal.batches("test", 500)),
            "ours": retrained(s, keep, goal),
            "random": retrained(s, chance, goal),
            "pruned": share(s.network, keep),
            **_solved(result),
        }
    ]


def rescale(data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Table 4: s - 2, s - 1, s; LeNet-5, threshold 0.05."""
    s = subject("LeNet-5", data, Setting(**setting, cache=cache), seed)
    rows, reference = [], s.reference
    for c in (2.0, 1.0, 0.0):
        with _expected():
            result = s.scores(rescale=c)
        keep = at_threshold(s.network, result.scores, 0.05)
        rows.append(
            {
                "data": data,
                "seed": seed,
                "c": c,
                "ref": reference,
                "ours": test(s, keep),
                "pruned": share(s.network, keep),
                **_solved(result),
            }
        )
    return rows


def snip(source: str, target: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Table 5: SNIP by neurons and ours, both at initialisation (lambda 1, threshold 0.2); LeNet-5."""
    scale = Setting(**setting, cache=cache)
    data = dataset(source, "LeNet-5", scale)
    initial = make("LeNet-5", data, seed).eval()
    network = trace(initial, data.parts["calibration"][0][:2])
    s = Subject("LeNet-5", data, seed, initial, initial, network, scale)
    with _expected():
        result = s.scores(lam=1.0, correct=False)
    keep = at_threshold(network, result.scores, 0.2)
    sensitivity = SNIP().unit_scores(network, s.evidence({"gradients"}))
    goal = dataset(target, "LeNet-5", scale)
    masks = {
        "ours": keep,
        "snip": ranked({n: v.numpy() for n, v in sensitivity.items()}, keep),
        "random": random_keep(keep, network, np.random.default_rng(seed)),
    }
    same = {"source": source, "target": target, "seed": seed}
    reference = subject("LeNet-5", target, scale, seed).reference
    return [
        {
            **same,
            "method": name,
            "ref": reference,
            "masked": retrained(s, kept, goal),
            "pruned": share(network, kept),
            **_solved(result),
        }
        for name, kept in masks.items()
    ]


def images(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 2a: the same network under several random balanced sets of images."""
    s = subject(net, data, Setting(**setting, cache=cache), seed)
    rows, reference = [], s.reference
    for draw in range(s.setting.sets):
        with _expected():
            result = s.scores(seed=draw, correct=False)
        keep = at_threshold(s.network, result.scores, THRESHOLDS[net])
        rows.append(
            {
                "net": net,
                "data": data,
                "seed": seed,
                "set": draw,
                "ref": reference,
                "ours": test(s, keep),
                "pruned": share(s.network, keep),
                **_solved(result),
            }
        )
    return rows


def epochs(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 2b: scores after every epoch of training."""
    scale = Setting(**setting, cache=cache)
    examples = dataset(data, net, scale)
    initial = make(net, examples, seed, scale.width)
    network = trace(initial.eval(), examples.parts["calibration"][0][:2])
    rows: list[Row] = []

    def look(epoch: int, model: nn.Module) -> None:
        was = model.training
        s = Subject(net, examples, seed, initial, model.eval(), network, scale)
        with _expected():
            result = s.scores()
        keep = at_threshold(network, result.scores, THRESHOLDS[net])
        rows.append(
            {
                "net": net,
                "data": data,
                "seed": seed,
                "epoch": epoch,
                "ref": s.reference,
                "ours": test(s, keep),
                "pruned": share(network, keep),
                **_solved(result),
            }
        )
        model.train(was)

    fit(initial, examples, scale, seed, after_epoch=look)
    return rows


def lambdas(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 3: the trade-off lambda."""
    s = subject(net, data, Setting(**setting, cache=cache), seed)
    rows, reference = [], s.reference
    for lam in LAMBDAS:
        with _expected():
            result = s.scores(lam=lam)
        keep = at_threshold(s.network, result.scores, THRESHOLDS[net])
        rows.append(
            {
                "net": net,
                "data": data,
                "seed": seed,
                "lambda": lam,
                "ref": reference,
                "ours": test(s, keep),
                "pruned": share(s.network, keep),
                **_solved(result),
            }
        )
    return rows
