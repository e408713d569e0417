"""Effective resistances of all edges of VGG-16's layers, against the dense pseudo-inverse, in one run.

    OMP_NUM_THREADS=1 python benchmarks/spectral.py [--upto N] [--wide] [--json FILE]

Processor time, one thread.  The pseudo-inverse (`torch.linalg.pinv(L, hermitian=True)` in float64, and the
resistances read from it) takes minutes on the largest layers: each distinct shape is run once and counted as
often as it occurs.  With `--upto N` only graphs of at most N nodes are run, and larger ones are extrapolated
by the law n^3 fitted to the two largest measured.  Everything else is the least of three or four runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.structures.spectral import chain_resistance, effective_resistance, layer_graph

CHANNELS = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)) + (
    (512, 512),
) * 5


def vgg16(seed: int = 0) -> list[Tensor]:
    """Magnitudes of VGG-16 at Kaiming's initialisation, with two linear layers: 15 weights."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(o, i, 3, 3) for i, o in CHANNELS] + [(512, 512), (100, 512)]
    return [torch.randn(*s, generator=g).abs() * (2 / (torch.Size(s).numel() / s[0])) ** 0.5 for s in shapes]


def cpu(call: Callable[[], Any], runs: int = 3) -> float:
    """Least processor time of several runs, in seconds; the first of them warms up."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def pseudo_inverse(S: Tensor) -> Tensor:
    """The published way: the pseudo-inverse of the whole Laplacian, float64."""
    n1, n2 = S.shape
    L = torch.zeros(n1 + n2, n1 + n2, dtype=torch.float64)
    L[:n1, n1:], L[n1:, :n1] = -S, -S.T
    L.diagonal().copy_(torch.cat([S.sum(1, dtype=torch.float64), S.sum(0, dtype=torch.float64)]))
    P = torch.linalg.pinv(L, hermitian=True)
    p = P.diagonal()
    return p[:n1, None] + p[None, n1:] - 2 * P[:n1, n1:]


def peak(dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a large square product."""
    a, b = torch.rand(2048, 2048, dtype=dtype), torch.rand(2048, 2048, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * 2048**3 / cpu(lambda: torch.mm(a, b, out=out), 4)


def operations(S: Tensor) -> float:
    """What the exact way has to do: half of S^T S, S K, and a symmetric inverse."""
    n1, n2 = max(S.shape), min(S.shape)
    return 3.0 * n1 * n2**2 + n2**3


def reference(
    layers: list[Tensor], upto: int
) -> tuple[float, dict[str, float], dict[tuple[int, ...], Tensor]]:
    """Processor time of the pseudo-inverse over all layers, what was measured, and its resistances."""
    measured: dict[tuple[int, ...], float] = {}
    values: dict[tuple[int, ...], Tensor] = {}
    for S in sorted(layers, key=lambda x: sum(x.shape)):
        shape = tuple(S.shape)
        if sum(shape) <= upto and shape not in measured:
            start = time.process_time()
            values[shape] = pseudo_inverse(S.double())
            measured[shape] = time.process_time() - start
    largest = sorted(measured, key=sum)[-2:]
    law = sum(measured[s] for s in largest) / sum(float(sum(s)) ** 3 for s in largest)
    total = sum(measured.get(tuple(S.shape), law * float(sum(S.shape)) ** 3) for S in layers)
    return total, {"x".join(map(str, s)): round(t, 3) for s, t in measured.items()}, values


def error(
    values: dict[tuple[int, ...], Tensor], first: dict[tuple[int, ...], Tensor], **options: Any
) -> float:
    """Largest relative error over the layers whose pseudo-inverse was computed."""
    return max(
        float(((effective_resistance(first[s], **options).values.double() - R).abs() / R).max())
        for s, R in values.items()
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upto", type=int, default=10**9, help="largest graph to pseudo-invert, in nodes")
    parser.add_argument("--wide", action="store_true", help="also one 4096 x 14336 layer, with its memory")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = vgg16()
    layers = [layer_graph(w).scores[0] for w in weights]
    result: dict[str, Any] = {"ways": {}}
    if options.wide:  # first, while the process is small: its memory is read from the largest it ever was
        result["4096 x 14336, float32"] = wide()
    for name, dtype, method in (
        ("exact, float64", torch.float64, "exact"),
        ("exact, float32", torch.float32, "exact"),
        ("auto, float64", torch.float64, "auto"),
        ("auto, float32", torch.float32, "auto"),
    ):
        typed = [S.to(dtype) for S in layers]
        times = [cpu(lambda S=S, m=method: effective_resistance(S, m), 4) for S in typed]
        result["ways"][name] = {"seconds": sum(times)}
        if method == "exact":
            top = max(range(len(layers)), key=lambda i: operations(layers[i]))
            result["ways"][name]["share of peak, largest layer"] = (
                operations(layers[top]) / times[top] / peak(dtype)
            )
    for name, dtype in (("whole network, float64", torch.float64), ("whole network, float32", torch.float32)):
        typed = [w.to(dtype) for w in weights]
        result["ways"][name] = {"seconds": cpu(lambda t=typed: chain_resistance(t))}
    total, measured, values = reference(layers, options.upto)
    result["pseudo-inverse"] = {"seconds": total, "measured": measured}
    first = {tuple(S.shape): S for S in reversed(layers)}
    for name, way in result["ways"].items():
        way["times faster"] = total / way["seconds"]
        if "network" not in name:
            dtype = torch.float64 if "64" in name else torch.float32
            typed = {s: S.to(dtype) for s, S in first.items()}
            way["largest relative error"] = error(values, typed, method=name.split(",")[0])
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def wide() -> dict[str, float]:
    """One layer of a large language model: time, share of the peak, and growth of the resident memory."""
    S = torch.randn(14336, 4096, generator=torch.Generator().manual_seed(0)).abs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = cpu(lambda: effective_resistance(S, "exact"), 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    fast = cpu(lambda: effective_resistance(S, "auto"), 1)
    share = operations(S) / seconds / peak(torch.float32)
    return {
        "exact": seconds,
        "share of peak": share,
        "GiB above the scores": grown / 2**20,
        "auto": fast,
    }


if __name__ == "__main__":
    main()
