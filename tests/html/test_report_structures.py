"""Pages on structures: figures from portraits, with every number in the table behind them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import portrayed

from secateur.html.section import Section
from secateur.html.structures import DRAWN, structure_sections
from secateur.html.structures.lattice import lattice_sections, places
from secateur.html.structures.matroid import matroid_sections


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return portrayed()


@pytest.fixture(scope="module")
def sections(runs: list[dict]) -> list[Section]:
    return structure_sections(runs)


def numbers(value: Any) -> list[float]:
    """Return the finite numbers among coordinates."""
    return [v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]


def test_every_structure_has_a_chapter(sections: list[Section]) -> None:
    chapters = list(dict.fromkeys(s.chapter for s in sections))
    assert [title.split()[0].strip(":") for title in chapters] == [
        "Matroid",
        "Spectrum",
        "Mixed-integer",
        "Lattice",
    ]
    told = {(s.chapter.split()[0], s.network) for s in sections}
    assert ("Spectrum:", "noise, Sequential: spectral, Units(0.5), repair none, seed 0") in told
    assert ("Lattice:", "noise, Reader: lattice, Units(0.5), repair none, seed 0") in told


def test_figures_have_words_axes_and_json(sections: list[Section]) -> None:
    drawn = [s for s in sections if s.figure]
    assert len(drawn) >= 20
    for section in drawn:
        assert len(section.alternative) > 20 and section.text and section.rows
        assert all("title" in section.figure["layout"][axis] for axis in ("xaxis", "yaxis"))
        json.dumps(section.figure, allow_nan=False)
        assert any(trace["x"] for trace in section.figure["data"])


def test_colours_follow_the_page(sections: list[Section]) -> None:
    for section in sections:
        text = json.dumps(section.figure)
        assert "#" not in text and "rgb" not in text


def table(section: Section) -> set[float]:
    return {round(v, 9) for row in section.rows for v in numbers(row.values())}


@pytest.mark.parametrize(
    "title", ["unexplained", "Hyperplane", "Windows", "lambda_2", "Components", "Importance"]
)
def test_what_is_drawn_stands_in_the_table(title: str, sections: list[Section]) -> None:
    found = [s for s in sections if title in s.title]
    assert found
    for section in found:
        drawn = [v for trace in section.figure["data"] for v in numbers(trace["y"])]
        assert drawn and {round(v, 9) for v in drawn} - {0} <= table(section)


def test_histograms_count_every_weight(sections: list[Section], runs: list[dict]) -> None:
    for section in (s for s in sections if s.title.startswith("Leverage")):
        counts = [sum(trace["y"]) for trace in section.figure["data"]]
        assert counts == [sum(row[key] for row in section.rows) for key in ("stays", "goes")]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_places_of_a_level_are_apart_and_centred(heights: list[int], random: Any) -> None:
    count = len(heights)
    edges = [(random.randrange(count), random.randrange(count)) for _ in range(count)]
    edges = [(a, b) for a, b in edges if heights[a] < heights[b]]
    found = places(heights, edges)
    for height in set(heights):
        own = sorted(x for x, h in zip(found, heights, strict=True) if h == height)
        assert own == [i - (len(own) - 1) / 2 for i in range(len(own))]


def test_places_put_a_chain_above_itself_and_uncross() -> None:
    assert places([0, 1, 2], [(0, 1), (1, 2)]) == [0, 0, 0]
    x = places([0, 0, 1, 1], [(0, 3), (1, 2)])
    assert (x[0] - x[1]) * (x[3] - x[2]) > 0


def test_runs_of_one_network_are_told_apart(runs: list[dict]) -> None:
    one = next(run for run in runs if run["structure"]["structure"] == "spectral")
    twice = structure_sections([one, {**one, "budget": "Units(0.25)"}])
    assert len({s.network for s in twice}) == 2
    assert len({s.network for s in structure_sections([one, one])}) == 2
    assert structure_sections([{**one, "structure": {}}, {"method": "mip", "status": "failed"}]) == []
    assert structure_sections([{**one, "structure": {"structure": "of a later version"}}]) == []


def test_an_antichain_says_that_the_order_is_silent(runs: list[dict]) -> None:
    portrait = next(run["structure"] for run in runs if run["structure"]["structure"] == "lattice")
    name, order = next((name, o) for name, o in portrait["orders"].items() if len(o["nodes"]) > 1)
    flat = {**order, "covers": [], "nodes": [{**node, "height": 0} for node in order["nodes"]]}
    words = lattice_sections({**portrait, "orders": {name: flat}})[0].text
    assert "No unit is comparable with another: the order says nothing here." in words
    assert (
        "says nothing here"
        not in lattice_sections({**portrait, "orders": {name: {**order, "covers": [[0, 1]]}}})[0].text
    )


def test_not_drawn_is_said_once() -> None:
    skipped = {"conv": "no single rows", "rnn": "no single rows"}
    portrait = {"structure": "matroid", "curves": {}, "layers": {}, "skipped": skipped}
    (section,) = matroid_sections(portrait)
    assert section.title == "Not drawn" and section.text == "Rows [W | b] of conv, rnn: no single rows."


def test_networks_without_rows_say_so() -> None:
    portrait = {"structure": "matroid", "curves": {}, "layers": {}, "skipped": {"conv": "no single rows"}}
    (section,) = matroid_sections(portrait)
    assert "conv: no single rows" in section.text and set(DRAWN) >= {"matroid"}
