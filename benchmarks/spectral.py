"""Effective resistances of all edges of VGG-16's layers, against the dense pseudo-inverse, in one run.

    OMP_NUM_THREADS=1 python benchmarks/spectral.py [--upto N] [--wide] [--json FILE]

Processor time, one thread.  The pseudo-inverse (`torch.linalg.pinv(L, hermitian=True)` in float64, and the
resistances read from it) takes a minute on the largest layers: each distinct shape is run once and counted as
often as it occurs.  With `--upto N` only graphs of at most N nodes are run, and larger ones are extrapolated
by the law n^3 fitted to the two largest measured, which the result says.  Everything else is the least of
four runs.  Then: connectivity of sparsifiers at 5 % density, by four ways to choose the edges; and with
`--wide`, time and memory of a layer of 14336 x 4096.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.structures.spectral import (
    chain_resistance,
    connectivity,
    effective_resistance,
    layer_graph,
    leverage,
    sparsifier_quality,
    sparsify,
)

CHANNELS = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)) + (
    (512, 512),
) * 5
LARGE = 2304 * 256  # edges from which a layer counts among the largest
DENSITY = 0.05
Shape = tuple[int, ...]
Result = dict[str, Any]


def vgg16(seed: int = 0) -> list[Tensor]:
    """Magnitudes of VGG-16 at Kaiming's initialisation, with two linear layers: 15 weights."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(o, i, 3, 3) for i, o in CHANNELS] + [(512, 512), (100, 512)]
    return [torch.randn(*s, generator=g).abs() * (2 / (torch.Size(s).numel() / s[0])) ** 0.5 for s in shapes]


def cpu(call: Callable[[], Any], runs: int = 4) -> float:
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
    return 2 * 2048**3 / cpu(lambda: torch.mm(a, b, out=out))


def operations(shape: Shape) -> float:
    """What the exact way has to do: half of S^T S, S K, and a symmetric inverse."""
    n1, n2 = max(shape), min(shape)
    return 3.0 * n1 * n2**2 + n2**3


def name_of(shape: Shape) -> str:
    """Write a shape as rows x columns."""
    return " x ".join(map(str, shape))


def ways(layers: list[Tensor]) -> Result:
    """Time every way on all layers; of the exact ones, the largest layers' share of the peak."""
    found: Result = {}
    for dtype in (torch.float64, torch.float32):
        typed, fastest = [S.to(dtype) for S in layers], peak(dtype)
        for method in ("exact", "auto"):
            times = [cpu(lambda S=S, m=method: effective_resistance(S, m)) for S in typed]
            entry = {"seconds": sum(times)}
            if method == "exact":
                entry["share of the peak"] = {
                    name_of(S.shape): operations(tuple(S.shape)) / t / fastest
                    for S, t in zip(layers, times, strict=True)
                    if S.numel() >= LARGE
                }
            else:
                entry["chosen"] = [effective_resistance(S).method for S in typed]
            found[f"{method}, {str(dtype)[6:]}"] = entry
    return found


def reference(layers: list[Tensor], upto: int) -> tuple[Result, dict[Shape, Tensor]]:
    """Processor time of the pseudo-inverse over all layers, what was measured, and its resistances."""
    measured: dict[Shape, float] = {}
    values: dict[Shape, Tensor] = {}
    for S in sorted(layers, key=lambda x: sum(x.shape)):
        shape = tuple(S.shape)
        if sum(shape) <= upto and shape not in measured:
            start = time.process_time()
            values[shape] = pseudo_inverse(S.double())
            measured[shape] = time.process_time() - start
    largest = sorted(measured, key=sum)[-2:]
    law = sum(measured[s] for s in largest) / sum(float(sum(s)) ** 3 for s in largest)
    total = sum(measured.get(tuple(S.shape), law * float(sum(S.shape)) ** 3) for S in layers)
    beyond = sorted({name_of(S.shape) for S in layers if tuple(S.shape) not in measured})
    seconds = {name_of(s): round(t, 3) for s, t in measured.items()}
    return {"seconds": total, "measured": seconds, "extrapolated": beyond}, values


def error(values: dict[Shape, Tensor], layers: list[Tensor], dtype: torch.dtype, method: str) -> float:
    """Largest relative error over the layers whose pseudo-inverse was computed."""
    first = {tuple(S.shape): S for S in reversed(layers)}
    return max(
        float(((effective_resistance(first[s].to(dtype), method).values.double() - R).abs() / R).max())  # type: ignore[arg-type]
        for s, R in values.items()
    )


def choices(S: Tensor, count: int) -> Iterator[tuple[str, Tensor]]:
    """Masks of that many edges, by four ways."""
    lev, g = leverage(S), torch.Generator().manual_seed(1)
    yield "coverage", sparsify(S, count, mode="coverage").mask
    yield "sampled by leverage", sparsify(S, count, generator=g, leverages=lev).mask
    for name, scores in (("largest leverage", lev), ("largest weight (greedy)", S)):
        mask = torch.zeros(S.numel(), dtype=torch.bool)
        mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
        yield name, mask.view(S.shape)


def sparsifiers(layers: list[Tensor], upto: int = 1500) -> Result:
    """Connectivity at 5 % density of the layers whose dense eigenproblem is small.

    As they are at initialisation, and with each row times a number uniform in (0, 1), which stands for inputs
    of unequal importance.
    """
    found: Result = {}
    for shape, S in {tuple(S.shape): S.double() for S in layers if 640 <= sum(S.shape) <= upto}.items():
        factors = torch.rand(shape[0], 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for kind, graph in (("as initialised", S), ("rows scaled", S * factors)):
            found[f"{name_of(shape)}, {kind}"] = {
                way: quality(graph, mask) for way, mask in choices(graph, round(DENSITY * S.numel()))
            }
    return found


def quality(S: Tensor, mask: Tensor) -> str:
    """Word how a mask leaves a graph."""
    left, condition = connectivity(S * mask), sparsifier_quality(S, S * mask).condition
    dead = left.dead_inputs + left.dead_outputs
    number = f"{condition:.2f}" if math.isfinite(condition) else "infinite"
    return f"{left.components} components, {dead} dead units, condition number {number}"


def memory(field: str) -> float:
    """Resident memory of this process in GiB: now ("VmRSS") or at its largest ("VmHWM")."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 2**20


def wide() -> Result:
    """One layer of a large language model: time, share of the peak, and the process's memory."""
    S = torch.empty(14336, 4096).normal_(generator=torch.Generator().manual_seed(0)).abs_()
    Path("/proc/self/clear_refs").write_text("5")  # count the largest memory anew
    before = memory("VmRSS")
    seconds = cpu(lambda: effective_resistance(S, "exact"), 1)
    largest = memory("VmHWM")
    return {
        "exact, seconds": seconds,
        "share of the peak": operations(tuple(S.shape)) / seconds / peak(torch.float32),
        "largest memory of the process, GiB": largest,
        "of that before the call, scores included, GiB": before,
        "auto, seconds": cpu(lambda: effective_resistance(S, "auto"), 1),
    }


def measure(upto: int, with_wide: bool) -> Result:
    """Run everything."""
    weights = vgg16()
    layers = [layer_graph(w).scores[0] for w in weights]
    result: Result = {"14336 x 4096, float32": wide()} if with_wide else {}
    result["ways"] = ways(layers)
    network = {"seconds": cpu(lambda: chain_resistance([w.double() for w in weights]))}
    network["layer by layer, same run"] = result["ways"]["exact, float64"]["seconds"]
    result["whole network, float64"] = network
    result["sparsifiers"] = sparsifiers(layers)
    result["pseudo-inverse"], values = reference(layers, upto)
    for name, way in result["ways"].items():
        method, dtype = name.split(", ")
        way["times faster"] = result["pseudo-inverse"]["seconds"] / way["seconds"]
        way["largest relative error"] = error(values, layers, getattr(torch, dtype), method)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upto", type=int, default=10**9, help="largest graph to pseudo-invert, in nodes")
    parser.add_argument("--wide", action="store_true", help="also one 14336 x 4096 layer, with its memory")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.upto, options.wide)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
