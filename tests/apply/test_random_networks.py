"""Networks drawn at random: whatever tracing offers can go, and what goes, goes exactly."""

from __future__ import annotations

import oracles
import pytest
from bank import B, Entry, floats
from random_networks import IMAGES, SERIES, Kit, RandomNetwork

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import NothingToPrune
from secateur.tracing.trace import trace

KITS = [pytest.param(SERIES, (B, 5, 4), id="series"), pytest.param(IMAGES, (B, 4, 6, 6), id="images")]


def check(kit: Kit, shape: tuple[int, ...], seed: int, steps: int) -> int:
    """Shrink one random network to half, judge it, and return the number of its removable units."""
    entry = Entry(f"random {seed}", lambda: RandomNetwork(seed, steps, kit), (floats(*shape),))
    model = oracles.perturb(entry.build())
    graph = trace(model, entry.example()[0])
    plan = oracles.half_plan(graph)
    if not plan.keep:
        with pytest.raises(NothingToPrune):
            shrink(model, plan)
        return 0
    small = shrink(model, plan)
    assert oracles.size(small) < oracles.size(model)
    assert oracles.deviation(entry, model, small) < oracles.TOLERANCE
    assert oracles.gap(entry, small, mask(model, plan)) < oracles.TOLERANCE
    return sum(group.size for group in graph.groups)


@pytest.mark.parametrize("start", range(0, 80, 20))
@pytest.mark.parametrize(("kit", "shape"), KITS)
def test_random_networks_shrink_exactly(kit: Kit, shape: tuple[int, ...], start: int) -> None:
    units = [check(kit, shape, seed, steps=7) for seed in range(start, start + 20)]
    assert sum(1 for n in units if n) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1400, 20))
@pytest.mark.parametrize(("kit", "shape"), KITS)
def test_large_random_networks_shrink_exactly(kit: Kit, shape: tuple[int, ...], start: int) -> None:
    units = [check(kit, shape, seed, steps=16) for seed in range(start, start + 20)]
    assert sum(1 for n in units if n) >= 10
