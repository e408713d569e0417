"""Repairs as values and by name."""

from __future__ import annotations

import pytest

from secateur.core import InputError
from secateur.repair.base import REPAIRS, Finetune, Fold, Refit, parse_repair, repair_name


@pytest.mark.parametrize("name", REPAIRS)
def test_every_name_is_parsed_and_named_again(name: str) -> None:
    assert repair_name(parse_repair(name)) == name


def test_values_and_tuples() -> None:
    tuning = Finetune(epochs=3, lr=1e-2)
    assert parse_repair(None) == parse_repair(()) == ()
    assert parse_repair(Fold()) == parse_repair("fold") == (Fold(),)
    assert parse_repair([Fold(), Refit(), tuning]) == (Fold(), Refit(), tuning)
    assert parse_repair(Refit()) == (Refit(),)
    assert repair_name(parse_repair(Refit())) == "refit only"


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        ("refti", "refit"),
        (Fold, r"Fold\(\) instead"),
        (3, "Finetune"),
        ((Fold(), "finetune"), "tuple of these values"),
        ((Refit(), Fold()), "in the order"),
        ((Fold(), Fold()), "once each"),
    ],
)
def test_other_repairs_are_refused(repair: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_repair(repair)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "positive integer"),
        ({"epochs": True}, "positive integer"),
        ({"lr": -1.0}, "positive number"),
        ({"loss": 3}, "callable"),
        ({"teacher": "yes"}, "teacher"),
        ({"teacher": True, "loss": max}, "not both"),
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"minutes": -1}, "minutes must be a positive number"),
        ({"minutes": True}, "minutes must be a positive number"),
        ({"features": "layer4"}, "list of names"),
        ({"features": [3]}, "list of names"),
        ({"features": ["layer4"], "teacher": False}, "those of a teacher"),
        ({"features": ["layer4"], "loss": max}, "those of a teacher"),
    ],
)
def test_invalid_finetune(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Finetune(**arguments)  # type: ignore[arg-type]
