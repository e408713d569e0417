"""Importance by mixed-integer programming: time and size, against the naive dense formulation in cvxpy.

    python benchmarks/mip.py [--data FOLDER] [--out FILE] [--peer-seconds S] [--epochs N]

Trains FC-3 (784-300-100-10) and LeNet-5 on Fashion-MNIST, scores both with 10 images (one a class), and
states CPU seconds, gap and non-zeros.  The peer writes constraints (1) and (2) as printed, h0 = x included,
one dense matrix product a layer and an image, with cvxpy, and gives the relaxation to Clarabel (`pip install
cvxpy`) for at most `--peer-seconds`; where that ends it, the ratio of times is a lower bound.  Seconds are
CPU seconds of this process, one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.data import Dataset, fashion
from secateur.statistics.relu_chain import affine_relu_chain, flatten_images
from secateur.structures.relu_mip import (
    Affine,
    Chain,
    Scores,
    average,
    balanced_images,
    bounds,
    importance_scores,
)
from secateur.zoo import lenet5, mlp, train


def ten_images(model: torch.nn.Module, data: Dataset, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """One correctly classified calibration image of every class."""
    inputs, targets = data.parts["calibration"]
    with torch.no_grad():
        right = model(inputs).argmax(1) == targets
    inputs, targets = inputs[right], targets[right]
    chosen = balanced_images(targets.numpy(), 10, np.random.default_rng(seed))
    return inputs[chosen], targets[chosen].numpy()


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the CPU seconds it took."""
    began = time.process_time()
    result = run()
    return result, time.process_time() - began


def naive(
    chain: Chain, x: np.ndarray, labels: np.ndarray, epsilon: float, lam: float, seconds: float
) -> dict[str, Any]:
    """Constraints (1) and (2) as printed, dense, relaxed; the objective is the same as ours."""
    import cvxpy as cp

    box = bounds(chain, x, "paper", epsilon)
    layers = [step for step in chain.steps if isinstance(step, Affine)]
    s = [cp.Variable(len(layer.b)) for layer in layers[:-1]]
    rules = [rule for score in s for rule in (score >= 0, score <= 1)]
    losses = []
    for i, image in enumerate(x):
        h = cp.Variable(len(image))
        rules.append(h == image)  # (1a)
        for k, layer in enumerate(layers[:-1]):
            L, U = box.lower[2 * k + 1][i], box.upper[2 * k + 1][i]
            a, D = layer.W.toarray() @ h + layer.b, np.maximum(U, 0)
            new, z = cp.Variable(len(layer.b)), cp.Variable(len(layer.b))
            pruned = a - cp.multiply(1 - s[k], D)
            rules += [new >= 0, z >= 0, z <= 1, new <= cp.multiply(z, D), new >= pruned]
            rules += [new + cp.multiply(1 - z, L) <= pruned]
            h = new
        out = layers[-1].W.toarray() @ h + layers[-1].b
        losses.append(cp.log_sum_exp(out) - out[int(labels[i])])
    means = [cp.sum(score - 2) / score.size for score in s]
    sparsity = cp.maximum(*(sum(means) - mean for mean in means))
    problem = cp.Problem(cp.Minimize(sparsity + lam * sum(losses) / len(x)), rules)
    began = time.process_time()
    data = problem.get_problem_data(cp.CLARABEL)[0]
    found = {"rows": data["A"].shape[0], "columns": data["A"].shape[1], "nonzeros": int(data["A"].nnz)}
    problem.solve(solver=cp.CLARABEL, time_limit=seconds)
    return {
        **found,
        "cpu_s": time.process_time() - began,
        "status": problem.status,
        "objective": problem.value,
    }


def fc3(data: Dataset, epochs: int, peer_seconds: float) -> list[dict]:
    """FC-3, published and valid bounds, and the peer."""
    trained = train(mlp((784, 300, 100, 10)), data, epochs)
    images, labels = ten_images(trained.model, data, 0)
    chain, x = affine_relu_chain(trained.model, images), flatten_images(images)
    rows = []
    for kind, relax in (("paper", False), ("valid", True)):
        options = {"bounds": kind, "relax": relax, "gap": 1e-3, "time_limit": 120}
        found, cpu = timed(lambda options=options: importance_scores(chain, x, labels, **options))
        rows.append(
            line(f"FC-3, 10 images, {kind} bounds", found, cpu, target=5 if kind == "paper" else None)
        )
    if peer_seconds:
        other = naive(chain, x, labels, 1e-5, 5.0, peer_seconds)
        ours = rows[0]
        other |= {
            "run": "FC-3, naive dense cvxpy + Clarabel, relaxed",
            "cpu_ratio": other["cpu_s"] / ours["cpu_s"],
            "nonzero_ratio": other["nonzeros"] / ours["solver_nonzeros"],
            "nonzero_ratio_whole_program": other["nonzeros"] / ours["nonzeros"],
            "targets": "cpu_ratio >= 25, nonzero_ratio >= 50",
        }
        rows.append(other)
    return rows


def lenet(data: Dataset, epochs: int, pool: str) -> list[dict]:
    """LeNet-5, jointly and class by class."""
    trained = train(lenet5(pool), data, epochs)
    images, labels = ten_images(trained.model, data, 0)
    chain, x = affine_relu_chain(trained.model, images), flatten_images(images)
    joint, cpu = timed(lambda: importance_scores(chain, x, labels, gap=1e-2, time_limit=300))
    rows = [line(f"LeNet-5 ({pool}), 10 images jointly, gap 1e-2", joint, cpu, target=300)]

    def single() -> Scores:
        return average([importance_scores(chain, x[[i]], labels[[i]], time_limit=60) for i in range(10)])

    idp, cpu = timed(single)
    return [*rows, line(f"LeNet-5 ({pool}), class by class", idp, cpu, target=25)]


def line(run: str, found: Scores, cpu: float, target: float | None) -> dict:
    """One line of the table."""
    return {
        "run": run,
        "cpu_s": cpu,
        "target_s": target,
        "status": found.status,
        "gap": found.gap,
        "objective": found.objective,
        "free_binaries": found.free_binaries,
        "rows": found.stats["program_rows"],
        "columns": found.stats["program_columns"],
        "solver_nonzeros": found.stats["nonzeros"],
        "nonzeros": found.stats["program_nonzeros"],
        "forward_error": found.stats["forward_error"],
    }


def main() -> None:
    """Run, print one JSON line a run, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="folder with Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON lines")
    parser.add_argument("--peer-seconds", type=float, default=60, help="0 leaves cvxpy out")
    parser.add_argument("--epochs", type=int, default=3, help="training epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion(args.data)
    rows = fc3(data, args.epochs, args.peer_seconds)
    for pool in ("avg", "max"):
        rows += lenet(data, max(1, args.epochs // 2), pool)
    text = "\n".join(json.dumps(row) for row in rows)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
