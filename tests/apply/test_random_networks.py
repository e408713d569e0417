"""Networks drawn at random: whatever tracing offers can go, and what goes, goes exactly."""

from __future__ import annotations

from collections import Counter

import oracles
import pytest
from bank import B, Entry, floats
from random_networks import HARD_IMAGES, HARD_SERIES, IMAGES, SERIES, Kit, RandomNetwork
from sampled import sampled

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import ExactnessError, NothingToPrune
from secateur.tracing.trace import trace

SERIES_SHAPE, IMAGES_SHAPE = (B, 5, 4), (B, 4, 6, 6)
KITS = [pytest.param(SERIES, SERIES_SHAPE, id="series"), pytest.param(IMAGES, IMAGES_SHAPE, id="images")]
HARD_KITS = [
    pytest.param(HARD_SERIES, SERIES_SHAPE, id="series"),
    pytest.param(HARD_IMAGES, IMAGES_SHAPE, id="images"),
]


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


def check_unless_constant(kit: Kit, shape: tuple[int, ...], seed: int, steps: int) -> int:
    """The same, where networks are refused that return x - x, the same whatever their weights are."""
    try:
        return check(kit, shape, seed, steps)
    except ExactnessError as error:
        assert "compares constants" in str(error)
        return 0


def outcome(kit: Kit, shape: tuple[int, ...], seed: int, steps: int) -> str:
    """Return how one hard network ends: "exact", "nothing to prune", "refused", or what is wrong with it."""
    try:
        return "exact" if check(kit, shape, seed, steps) else "nothing to prune"
    except ExactnessError:
        return "refused"
    except AssertionError as error:
        return f"WRONG: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def failures(kit: Kit, shape: tuple[int, ...], seeds: range, steps: int) -> tuple[list[str], Counter[str]]:
    """Return the networks that end otherwise than they may, each at its smallest, and counts of all."""
    allowed = ("exact", "nothing to prune", "refused")
    found = {seed: outcome(kit, shape, seed, steps) for seed in seeds}
    wrong = []
    for seed, end in found.items():
        if end not in allowed:
            # The first steps of a network are the network with fewer steps of the same seed.
            ends = {count: outcome(kit, shape, seed, count) for count in range(1, steps)} | {steps: end}
            least = next(count for count, x in ends.items() if x not in allowed)
            wrong.append(f"seed {seed}, {least} steps: {ends[least][:300]}")
    return wrong, Counter(found.values())


@pytest.mark.parametrize("start", sampled((0, 20, 40, 60), 0))
@pytest.mark.parametrize(("kit", "shape"), KITS)
def test_random_networks_shrink_exactly(kit: Kit, shape: tuple[int, ...], start: int) -> None:
    units = [check_unless_constant(kit, shape, seed, steps=7) for seed in range(start, start + 20)]
    assert sum(1 for n in units if n) >= 10


@pytest.mark.parametrize(("kit", "shape"), HARD_KITS)
def test_hard_networks_are_exact_or_refused(kit: Kit, shape: tuple[int, ...]) -> None:
    wrong, ends = failures(kit, shape, range(25), steps=5)
    assert wrong == [] and ends["exact"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1500, 25))
@pytest.mark.parametrize(("kit", "shape"), HARD_KITS)
def test_many_hard_networks_are_exact_or_refused(kit: Kit, shape: tuple[int, ...], start: int) -> None:
    wrong, ends = failures(kit, shape, range(start, start + 25), steps=6)
    assert wrong == [] and ends["exact"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1400, 20))
@pytest.mark.parametrize(("kit", "shape"), KITS)
def test_large_random_networks_shrink_exactly(kit: Kit, shape: tuple[int, ...], start: int) -> None:
    units = [check_unless_constant(kit, shape, seed, steps=16) for seed in range(start, start + 20)]
    assert sum(1 for n in units if n) >= 10
