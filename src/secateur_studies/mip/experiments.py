"""The jobs of the MIP study. Each solves the programs of one network and returns rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from secateur.measure.metrics import accuracy
from secateur.methods import SNIP
from secateur.structures.relu_mip import Scores
from secateur.tracing.trace import trace
from secateur_studies.mip import published
from secateur_studies.mip.models import (
    THRESHOLDS,
    Case,
    Setting,
    epochs_of,
    load_case,
    load_data,
    make_network,
    train_network,
)
from secateur_studies.mip.removal import (
    DEAD_ONLY,
    Keep,
    choose_others,
    choose_random,
    choose_scored,
    choose_share,
    choose_top,
    count_maps,
    keep_above,
    keep_live,
    retrain,
    share_of_weights,
    share_removed,
    test,
    test_folded,
    test_tuned,
)

__all__ = ["epochs", "images", "lambdas", "modes", "pruning", "rescale", "snip", "transfer"]

Row = dict[str, Any]
PRUNING, MODES, TRANSFER, RESCALE, SNIP_ROWS = "pruning", "modes", "transfer", "rescale", "snip"
IMAGES, EPOCHS, LAMBDAS = "images", "epochs", "lambdas"
PAPER, VALID = "paper", "valid"  # bounds of the program
LAMBDA_VALUES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def _solve_quietly(case: Case, **options: Any) -> Scores:
    """Solve without warnings about missing classes (one class at a time) and misclassified images."""
    with warnings.catch_warnings():
        for message in ("no image of class", "the network misclassifies"):
            warnings.filterwarnings("ignore", message=message)
        return case.solve(**options)


def _make_row(part: str, case: Case, result: Scores, keep: Keep, **values: Any) -> Row:
    """Return the row of one pruning. Without a value "ours", test the masked network."""
    if "ours" not in values:
        values["ours"] = test(case, keep)
    maps, all_maps = count_maps(case, keep)
    return {
        "part": part,
        "net": case.net,
        "data": case.data.name,
        "seed": case.seed,
        "training examples": len(case.data.parts["train"][1]),
        "test examples": len(case.data.parts["test"][1]),
        **values,
        "pruned": share_removed(case.graph, keep),
        "pruned weights": share_of_weights(case, keep),
        "dead weights": share_of_weights(case, keep_live(case.graph, result)),
        "maps removed": maps,
        "maps": all_maps,
        "status": result.status,
        "gap": result.gap,
        "solver seconds": result.stats["seconds"],
    }


def pruning(
    net: str, data: str, seed: int, setting: Row, valid: bool = False, cache: str | None = None
) -> list[Row]:
    """Table 2: the published form with 10 images, and fine-tuned; if `valid`, the valid form with 20, too."""
    case = load_case(net, data, Setting(**setting, cache=cache), seed)
    forms = ({"bounds": PAPER}, {"bounds": VALID, "images": 20, "relax": True})[: 2 if valid else 1]
    return [_compare_at_threshold(case, options) for options in forms]


def _compare_at_threshold(case: Case, options: Mapping[str, Any]) -> Row:
    """Return one network and one form: ours, and every other criterion at the same counts."""
    result = _solve_quietly(case, **options)
    keep = keep_above(case.graph, result.scores, THRESHOLDS[case.net])
    others = choose_others(case, result, keep)
    generator = np.random.default_rng(case.seed)
    draws = [choose_random(keep, case.graph, generator) for _ in range(case.setting.draws)]
    scored = [choose_scored(keep, case.graph, result.scores, generator) for _ in draws]
    low = [(v < THRESHOLDS[case.net]) & ~result.dead[n] for n, v in result.scores.items()]
    values = {
        "bounds": options["bounds"],
        "images": options.get("images", 10),
        "threshold": THRESHOLDS[case.net],
        "epochs": epochs_of(case.data, case.setting, case.net),
        "width": case.setting.width if case.net == "VGG-16" else 1.0,
        "ref": case.reference,
        "random": float(np.mean([test(case, draw) for draw in draws])),
        "random scored": float(np.mean([test(case, draw) for draw in scored])),
        **{name: test(case, other) for name, other in others.items()},
        "pruned dead only": share_removed(case.graph, others[DEAD_ONLY]),
        "live units removed": sum(int(units.sum()) for units in low),
        "dead units": sum(int(dead.sum()) for dead in result.dead.values()),
        "draws": len(draws),
    }
    masks = {"ours": keep, "random": draws[0], **others}
    if options["bounds"] == VALID:
        values |= {f"{name} + fold": test_folded(case, k) for name, k in masks.items() if name != "critical"}
        return _make_row(PRUNING, case, result, keep, **values)
    masks["random scored"] = scored[0]
    values |= {f"{name} + ft": test_tuned(case, mask) for name, mask in masks.items()}
    printed = published.PRUNING.get((case.data.name, case.net), {}).get("pruned weights")
    if printed and count_maps(case, {})[1] and case.net != "VGG-16":
        everywhere = [choose_share(printed.mean / 100, case.graph, generator) for _ in draws]
        values["random everywhere"] = float(np.mean([test(case, draw) for draw in everywhere]))
    return _make_row(PRUNING, case, result, keep, **values)


def modes(data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Tables 1 and 6: class by class, imbalanced, and all at once; LeNet-5, lambda 1."""
    case = load_case("LeNet-5", data, Setting(**setting, cache=cache), seed)
    rows, reference = [], case.reference
    for mode in ("per_class", "imbalanced", "joint"):
        result = _solve_quietly(case, lam=1.0, mode=mode, correct=False)
        for threshold in (0.01, 0.1):
            keep = keep_above(case.graph, result.scores, threshold)
            values = {"mode": mode, "threshold": threshold, "ref": reference}
            rows.append(_make_row(MODES, case, result, keep, **values))
    return rows


def transfer(
    net: str, source: str, target: str, seed: int, setting: Row, cache: str | None = None
) -> list[Row]:
    """Table 3: mask from one data set, retrain from the same initialisation on another; and random masks."""
    scale = Setting(**setting, cache=cache)
    case = load_case(net, source, scale, seed)
    result = _solve_quietly(case)
    keep = keep_above(case.graph, result.scores, THRESHOLDS[net])
    drawn = choose_random(keep, case.graph, np.random.default_rng(seed))
    goal = load_data(target, net, scale)
    if net == "VGG-16":
        whole = train_network(case.initial, goal, scale, seed)
    else:
        whole = load_case(net, target, scale, seed).model
    values = {
        "source": source,
        "target": target,
        "ref": 100 * accuracy(whole, goal.batches("test", 500)),
        "random": retrain(case, drawn, goal),
        "ours": retrain(case, keep, goal),
    }
    return [_make_row(TRANSFER, case, result, keep, **values)]


def _solve_sweep(
    part: str, case: Case, threshold: float, name: str, values: Iterable[Any], **options: Any
) -> list[Row]:
    """Solve with several values of one option, and return a row for each."""
    keyword = {"c": "rescale", "set": "seed", "lambda": "lam"}[name]
    rows, reference = [], case.reference
    for value in values:
        result = _solve_quietly(case, **{keyword: value}, **options)
        keep = keep_above(case.graph, result.scores, threshold)
        rows.append(_make_row(part, case, result, keep, **{name: value, "ref": reference}))
    return rows


def rescale(data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Table 4: s - 2, s - 1, s; LeNet-5, threshold 0.05."""
    case = load_case("LeNet-5", data, Setting(**setting, cache=cache), seed)
    return _solve_sweep(RESCALE, case, 0.05, "c", (2.0, 1.0, 0.0))


def snip(source: str, target: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Table 5: SNIP by neurons and ours, both at initialisation (lambda 1, threshold 0.2); LeNet-5."""
    scale = Setting(**setting, cache=cache)
    data = load_data(source, "LeNet-5", scale)
    initial = make_network("LeNet-5", data, seed).eval()
    graph = trace(initial, data.parts["calibration"][0][:2])
    case = Case("LeNet-5", data, seed, initial, initial, graph, scale)
    result = _solve_quietly(case, lam=1.0, correct=False)
    keep = keep_above(graph, result.scores, 0.2)
    sensitivity = SNIP().unit_scores(graph, case.collect({"gradients"}))
    goal = load_data(target, "LeNet-5", scale)
    masks = {
        "ours": keep,
        "snip": choose_top({n: v.numpy() for n, v in sensitivity.items()}, keep),
        "random": choose_random(keep, graph, np.random.default_rng(seed)),
    }
    common = {"source": source, "target": target, "ref": load_case("LeNet-5", target, scale, seed).reference}
    return [
        _make_row(SNIP_ROWS, case, result, mask, method=name, ours=retrain(case, mask, goal), **common)
        for name, mask in masks.items()
    ]


def images(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 2a: the same network under several random balanced sets of images."""
    case = load_case(net, data, Setting(**setting, cache=cache), seed)
    return _solve_sweep(IMAGES, case, THRESHOLDS[net], "set", range(case.setting.sets), correct=False)


def epochs(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 2b: scores after every epoch of training."""
    scale = Setting(**setting, cache=cache)
    examples = load_data(data, net, scale)
    initial = make_network(net, examples, seed, scale.width)
    graph = trace(initial.eval(), examples.parts["calibration"][0][:2])
    rows: list[Row] = []

    def score(epoch: int, model: nn.Module) -> None:
        training = model.training
        case = Case(net, examples, seed, initial, model.eval(), graph, scale)
        result = _solve_quietly(case)
        keep = keep_above(graph, result.scores, THRESHOLDS[net])
        rows.append(_make_row(EPOCHS, case, result, keep, epoch=epoch, ref=case.reference))
        model.train(training)

    train_network(initial, examples, scale, seed, after_epoch=score)
    return rows


def lambdas(net: str, data: str, seed: int, setting: Row, cache: str | None = None) -> list[Row]:
    """Figure 3: the trade-off lambda."""
    case = load_case(net, data, Setting(**setting, cache=cache), seed)
    return _solve_sweep(LAMBDAS, case, THRESHOLDS[net], "lambda", LAMBDA_VALUES)
