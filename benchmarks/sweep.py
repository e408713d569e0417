"""What the walk of a refit costs: seconds a layer as a chain grows, and the peak memory of a wide one.

Run `python benchmarks/sweep.py` (two minutes on one core).  A chain is `depth` linear layers with ReLU
between them; half of the units of each go.  The memory is what a process needs beyond the models, the rows
and the plan.  glibc keeps freed blocks of a few megabytes; MALLOC_TRIM_THRESHOLD_=0 and
MALLOC_MMAP_THRESHOLD_=65536 in the environment make it give them back, and then show what the walk holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.repair.refit import refit

PAGE, MIB = 4096, 2**20


def chain(width: int, depth: int, rows: int) -> Callable[[], nn.Module]:
    """Return a function that refits a chain of which half of the units went."""
    torch.manual_seed(0)
    layers = (layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU()))
    model, x = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(rows, width)
    graph = sc.trace(model, x[:2])
    plan = sc.Plan(graph, "half", {group.name: np.arange(width // 2) for group in graph.groups})
    small = sc.shrink(model, plan)
    batches: list[tuple[Tensor, None]] = [(part, None) for part in x.split(rows // 16)]
    return lambda: refit(model, small, plan, batches[:13], batches[13:])[0]


def peak_memory(work: Callable[[], object]) -> float:
    """Return by how many MiB the resident memory rises while a function runs, seen every 2 ms."""
    seen, running = [], True

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / MIB

    def watch() -> None:
        while running:
            seen.append(resident())
            time.sleep(0.002)

    before, watcher = resident(), threading.Thread(target=watch)
    watcher.start()
    work()
    running = False
    watcher.join()
    return max(seen) - before


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    for depth in (8, 16, 32, 64):
        work, start = chain(256, depth, 4096), time.process_time()
        work()
        print(f"{depth} layers: {(time.process_time() - start) / depth:.3f} CPU seconds a layer")
    width, depth, rows = 1024, 16, 16384
    risen = peak_memory(chain(width, depth, rows))
    alive, layer = rows * (width + width // 2) * 4 / MIB, width * width * 4 / MIB
    print(f"{depth} layers of {width} units, {rows} rows: {risen:.0f} MiB above the models;")
    print(f"the live activations of both networks are {alive:.0f} MiB, the largest layer {layer:.0f} MiB")


if __name__ == "__main__":
    main()
