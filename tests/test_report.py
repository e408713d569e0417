"""Reports as JSON and Markdown."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core import InputError
from secateur.core.jsonable import plain
from secateur.measure.cost import ModelCost
from secateur.measure.latency import Timing
from secateur.measure.metrics import (
    Agreement,
)
from secateur.report import Measurement, Report

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.floats(0, 1))
def test_report_survives_json(notes: dict, value: float) -> None:
    row = Timing(1, 0.5, 0.25, 0.75, 30, 1, "cpu")
    before, after = (Measurement(ModelCost(n, n, 4 * n, 9 * n), value, (row,)) for n in (10, 5))
    report = Report(
        model="Net",
        method="matroid",
        budget="Units(keep=0.5)",
        repair="fold",
        seed=3,
        metric="accuracy",
        before=before,
        after=after,
        agreement=Agreement(None, value, value, 3),
        groups={"a|b": {"units": 4, "kept": 2}},
        notes=notes,
        masks={"w": {"weights": 8, "kept": 3}},
        steps=[{"keep": value}],
        folds={"w": {"residual": math.inf}},
    )
    again = Report.from_json(report.to_json())
    assert again == report
    assert json.loads(report.to_json(), parse_constant=lambda x: pytest.fail(x)) == report.to_dict()
    text = report.to_markdown()
    assert "| parameters | 10 | 5 | 2.00x |" in text
    assert "| a\\|b | 4 units | 2 |" in text


def test_failed_repairs_are_those_of_the_fold_and_of_the_refit() -> None:
    size = Measurement(ModelCost(10, 10, 40, 90))
    folds = {
        "a": {"undone": True, "why": "farther"},
        "b": {"undone": False, "refit": {"undone": True, "why": "no better"}},
        "c": {"skipped": "tied", "refit": {"undone": False}},
        "d": {"undone": False},
    }
    report = Report("Net", "matroid", "Units(0.5)", "refit", 0, None, size, size, folds=folds)
    assert report.failed_repairs("undone") == {"a": "farther", "b": "no better"}
    assert report.failed_repairs("skipped") == {"c": "tied"}
    assert "repair undone on 2 of 4 weights" in repr(report)
    assert "repair skipped on 1 of 4 weights" in repr(report)


@given(json_values)
def test_plain_is_idempotent(value: object) -> None:
    once = plain(value)
    assert plain(once) == once
    json.dumps(once, allow_nan=False)


@pytest.mark.parametrize(
    "text", [None, 3, "", "{}", "[]", "[1]", '{"agreement": null, "before": 3, "after": 4}']
)
def test_report_bad_input(text: object) -> None:
    with pytest.raises(InputError, match="not the report"):
        Report.from_json(text)
