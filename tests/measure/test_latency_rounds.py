"""Latency: both models run for equally long; the speedup is the median of the rounds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from report_runs import make_report
from torch import nn

from secateur.cli import demo
from secateur.measure.latency import latency, time_in_turn


def test_both_models_are_measured_for_equally_long() -> None:
    asked: dict[str, list[int]] = {"before": [], "after": []}

    def timed(name: str, seconds: float) -> Callable[[int], float]:
        def run(number: int) -> float:
            asked[name].append(number)
            return seconds  # of one pass

        return run

    runs = {"before": timed("before", 0.012), "after": timed("after", 0.003)}
    time_in_turn(runs, 5, 2, None, random.Random(0))
    assert asked == {"before": [1] * 8, "after": [1] * 3 + [4] * 5}


def test_the_speed_is_the_median_of_the_rounds() -> None:
    run = {**make_report("Net", "taylor", "fold", 0.5).to_dict(), "status": "ok", "data": "d"}
    assert demo.pivot([run])[0]["speed"] == pytest.approx(2)
    run["after"]["latency"][1]["speedup"] = 3.0
    assert demo.pivot([run])[0]["speed"] == 3.0
    (row,) = latency({"a": nn.Linear(2, 2)}, torch.zeros(1, 2), batch_sizes=(1,), repeats=3)["a"]
    assert row.speedup == 1.0
