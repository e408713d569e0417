"""Time the order engine on digraphs with 4096 vertices against closure by float matrix products.

Run `python benchmarks/order.py` (a minute on one core; `--vertices 1024` for a quick look).  Prints one JSON
line a case: the time from the boolean adjacency matrix to the meet-irreducibles (best of `--repeat`), the
time of the same closure by repeated squaring in float32, and their ratio, both as CPU time of one process.
The closures are compared entry by entry.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.structures.order import Poset, decompose


def random_dag(n: int, edges: float, generator: np.random.Generator) -> np.ndarray:
    """Return the adjacency of a random acyclic digraph with about `edges` edges, vertices shuffled."""
    dag = np.triu(generator.random((n, n)) < 2 * edges / (n * (n - 1)), 1)
    shuffle = generator.permutation(n)
    return np.ascontiguousarray(dag[np.ix_(shuffle, shuffle)])


def closure_by_products(adjacency: np.ndarray) -> np.ndarray:
    """Return the reflexive-transitive closure by squaring a float32 matrix until it stays the same."""
    reach = (adjacency | np.eye(len(adjacency), dtype=bool)).astype(np.float32)
    while True:
        longer = ((reach @ reach) > 0).astype(np.float32)
        if np.array_equal(longer, reach):
            return reach > 0
        reach = longer


def seconds(task: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Return the shortest CPU time of `repeat` runs, and the last result."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        result = task()
        times.append(time.process_time() - start)
    return min(times), result


def irreducibles(adjacency: np.ndarray) -> tuple[Poset, np.ndarray]:
    """Return the poset and its meet-irreducibles: what is timed."""
    poset = Poset.from_digraph(adjacency)
    return poset, poset.meet_irreducibles()


def compare(n: int, edges: float, repeat: int) -> dict[str, Any]:
    """Time one case both ways."""
    adjacency = random_dag(n, edges, np.random.default_rng(0))
    irreducibles(adjacency[:64, :64])
    ours, (poset, found) = seconds(lambda: irreducibles(adjacency), repeat)
    theirs, closed = seconds(lambda: closure_by_products(adjacency), 1)
    if not np.array_equal(poset.relation(), closed):
        raise ArithmeticError("the two closures differ")
    return {
        "vertices": n,
        "edges": int(adjacency.sum()),
        "irreducible": len(found),
        "seconds": round(ours, 4),
        "products_seconds": round(theirs, 2),
        "ratio": round(theirs / ours, 1),
    }


def parts(n: int, count: int, repeat: int) -> dict[str, Any]:
    """Time a digraph of `count` independent parts as a whole and in parts (wall time, 2 threads)."""
    blocks = [random_dag(n // count, 0.1 * (n // count) ** 2, np.random.default_rng(k)) for k in range(count)]
    whole = np.zeros((n, n), bool)
    for k, block in enumerate(blocks):
        place = slice(k * len(block), (k + 1) * len(block))
        whole[place, place] = block
    row: dict[str, Any] = {"vertices": n, "parts": count}
    for name, task in (
        ("whole", lambda: irreducibles(whole)[1]),
        ("parts", lambda: decompose(whole, jobs=2).meet_irreducible_vertices()),
    ):
        start = time.perf_counter()
        for _ in range(repeat):
            row[f"{name}_irreducible"] = len(task())
        row[f"{name}_seconds"] = round((time.perf_counter() - start) / repeat, 4)
    return row


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vertices", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    n = options.vertices
    for edges in (2 * n, 0.1 * n * n):
        print(json.dumps(compare(n, edges, options.repeat)), flush=True)
    print(json.dumps(parts(n, 8, options.repeat)), flush=True)


if __name__ == "__main__":
    main()
