"""Budgets in the tables of the demonstration."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.cli import demo
from secateur.core import InputError, Units
from secateur.html import flatten


def test_budgets_of_failed_runs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("no")

    monkeypatch.setattr(demo, "prune", refuse)
    run = demo.demonstrate(0.25, methods=["random"], quick=True)[0]
    assert run["budget"] == "Units(0.25)" and run["status"] == "no"
    assert flatten({"budget": repr(Units(0.25)), "status": "no"})["budget"] == "Units(0.25)"
