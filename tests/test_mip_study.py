"""The study runs, and what it writes is what it found."""

from __future__ import annotations

import json

import pytest

from secateur.core import InputError
from secateur.studies.mip import run
from secateur.studies.mip.subjects import Scale

SMALL = Scale(train=600, epochs=3, test=200, seconds=60, draws=3, sets=2)


def test_a_figure_and_its_files(tmp_path):
    found = run(out=tmp_path, parts=["images"], nets=["FC-3"], scale=SMALL, seeds=1)
    rows = found["images"]
    assert [row["set"] for row in rows] == [0, 1]
    assert all(0 <= row["ours"] <= 100 and 0 <= row["pruned"] < 100 for row in rows)
    written = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert written == rows
    assert "Figure 2a" in (tmp_path / "tables.md").read_text()


@pytest.mark.slow
def test_table_2_compares_at_equal_counts(tmp_path):
    found = run(out=tmp_path, parts=["pruning"], nets=["FC-3"], scale=SMALL, seeds=1)
    for row in found["pruning"]:
        assert {"ours", "random", "critical", "L1", "mean activation", "dead only"} <= set(row)
        assert row["pruned"] >= row["pruned dead only"] - 1e-9


@pytest.mark.parametrize(
    ("given", "message"), [({"parts": ["prunning"]}, "pruning"), ({"nets": ["FC-5"]}, "FC-")]
)
def test_unknown_names_are_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        run(out=tmp_path, **given)
