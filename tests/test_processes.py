"""Sharing batches over processes; tests/cli/test_torchrun.py starts real ones."""

from __future__ import annotations

import torch

from secateur.processes import (
    Processes,
    check_same,
    current_processes,
    gather_over_processes,
    sum_over_processes,
    undivided,
)


def test_one_process_is_all_there_is_by_default() -> None:
    sums = {"a": torch.ones(2)}
    assert current_processes() == Processes() and Processes().reports()
    assert sum_over_processes(sums)["a"] is sums["a"] and gather_over_processes(3) == [3]
    check_same("a number", 3)
    with undivided():
        assert current_processes().count == 1


def test_each_piece_of_work_has_one_owner() -> None:
    three = [Processes(number, 3) for number in range(3)]
    assert all(sum(process.owns(piece) for process in three) == 1 for piece in range(10))
