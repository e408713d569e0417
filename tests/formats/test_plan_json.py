"""Plans as JSON: what comes back equals what went in."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from bank import BANK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracles import half_plan

from secateur.core import Frozen, Group, Layer, Merge, Plan, PlanError, PruningGraph, SizeAttribute, Slot
from secateur.formats.plan_json import (
    OMITTED,
    _runs,
    decode_value,
    encode_value,
    plan_from_json,
    plan_to_json,
)
from secateur.tracing.trace import trace


def same(a: Any, b: Any) -> bool:
    """Say whether two values are equal in type and content, NaN being equal to itself."""
    if isinstance(a, np.ndarray):
        equal = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return equal and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        kept = [f.name for f in fields(a) if f.name not in OMITTED.get(type(a).__name__, ())]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in kept)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b and repr(a) == repr(b)


shape = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
dtypes = st.sampled_from([np.bool_, np.int64, np.int32, np.uint8, np.float16, np.float32, np.float64])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
data = st.recursive(
    scalars | dtypes.flatmap(lambda d: arrays.arrays(d, shape)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text() | st.sampled_from(["$type", "$", "a/b", "a"]) | st.integers(), inner, max_size=3
        )
    ),
    max_leaves=10,
)
ints = arrays.arrays(np.int64, shape)
names = st.text(max_size=5)
slots = st.builds(Slot, names, st.integers(0, 3), ints, st.sampled_from(["out", "in", "scale"]))
groups = st.builds(Group, names, st.integers(0, 9), st.lists(slots, max_size=2).map(tuple))
networks = st.builds(
    PruningGraph,
    groups=st.lists(groups, max_size=3).map(tuple),
    frozen=st.lists(st.builds(Frozen, names, st.integers(0, 3), names, names), max_size=2).map(tuple),
    layers=st.lists(
        st.builds(Layer, names, names, names, st.none() | names, positions=st.floats()), max_size=2
    ).map(tuple),
    shapes=st.dictionaries(names, st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=2),
    parameters=st.lists(names, max_size=2).map(tuple),
    aliases=st.dictionaries(names, names, max_size=2),
    sizes=st.lists(
        st.builds(
            SizeAttribute,
            names,
            names,
            st.integers(),
            st.lists(names, max_size=2).map(tuple),
            st.tuples(ints),
            names,
        ),
        max_size=2,
    ).map(tuple),
)
merges = st.builds(Merge, ints, ints, arrays.arrays(np.float64, shape), arrays.arrays(np.float64, shape))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    graph = draw(networks)
    sizes = {g.name: g.size for g in graph.groups}
    chosen = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True)) if sizes else []
    units = {name: draw(st.sets(st.sampled_from(range(sizes[name])))) for name in chosen if sizes[name]}
    small = sorted(name for name, lengths in graph.shapes.items() if math.prod(lengths) <= 99)
    masked = draw(st.lists(st.sampled_from(small), unique=True)) if small else []
    return Plan(
        graph=graph,
        method=draw(names),
        keep={name: np.array(sorted(kept), np.int64) for name, kept in units.items()},
        masks={name: draw(arrays.arrays(np.bool_, graph.shapes[name])) for name in masked},
        merges=draw(st.dictionaries(names, merges, max_size=2)),
        budget=draw(names),
        seed=draw(st.integers()),
        notes=draw(st.dictionaries(names, data, max_size=3)),
    )


@settings(max_examples=60)
@given(plans())
def test_plans_survive_exactly(plan: Plan) -> None:
    text = plan_to_json(plan)
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))
    assert same(plan_from_json(text), plan)


@settings(max_examples=200)
@given(data)
def test_data_survives_exactly(value: Any) -> None:
    document, beside = encode_value(value)
    assert same(decode_value(json.loads(json.dumps(document, allow_nan=False)), beside), value)


@given(arrays.arrays(np.int64, st.integers(0, 30), elements=st.integers(-3, 3)))
def test_runs_state_the_vector(values: np.ndarray) -> None:
    found = _runs(values)
    again = [start + step * i for start, count, step in found for i in range(count)]
    assert again == values.tolist()
    assert all(count >= 1 for _, count, _ in found)


@pytest.mark.parametrize(
    "index",
    [
        np.arange(64)[:, None],
        np.arange(16)[:, None] + 16 * np.arange(4),  # the gates of an LSTM
        np.arange(16 * 25).reshape(16, 25),  # flattened pixels
        np.arange(4 * 8).reshape(8, 4).T,  # interleaved
        np.arange(0, 64, 2)[:, None],
    ],
)
def test_regular_indices_are_few_runs(index: np.ndarray) -> None:
    assert len(json.dumps(encode_value(index)[0])) < 80


@pytest.mark.parametrize("name", ["ResNet-20, projection", "LSTM, bidirectional", "Fused qkv (timm)"])
def test_traced_plans_survive(name: str) -> None:
    args, kwargs = BANK[name].example()
    plan = half_plan(trace(BANK[name].build(), args, example_kwargs=kwargs))
    plan = replace(plan, notes={"scores": (1.5, math.inf), "gap": np.float32(0.5).item()})
    text = plan_to_json(plan)
    assert same(plan_from_json(text), plan)
    assert plan_to_json(plan_from_json(text)) == text


def test_numpy_and_torch_values_become_plain() -> None:
    notes = {"a": np.float64(0.25), "b": np.int32(3), "c": torch.tensor([1, 2]), "d": np.bool_(True)}
    assert decode_value(*encode_value(notes)) == {"a": 0.25, "b": 3, "c": [1, 2], "d": True}


@pytest.mark.parametrize("value", [object(), {"a": [len]}, np.array([None]), np.array(["x"]), {1, 2}, 1j])
def test_what_is_no_data_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match="must hold"):
        encode_value({"note": value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"plan": {}, "arrays": {}}',
        '{"plan": {"$type": "Nonsense"}, "arrays": {}}',
        '{"plan": {"$type": "Plan"}, "arrays": {}}',
        '{"plan": {"$ints": [[0, 3, 1]], "shape": [2]}, "arrays": {}}',
        '{"plan": {"$ints": [[0, 3]], "shape": [3]}, "arrays": {}}',
        '{"plan": {"$ints": [[0, 99999999, 1]], "shape": [99999999]}, "arrays": {}}',
        '{"plan": [' + ",".join(['{"$ints": [[0, 999999, 1]], "shape": [999999]}'] * 70) + '], "arrays": {}}',
        '{"plan": {"$ints": [[0, -5, 1], [0, 8, 1]], "shape": [3]}, "arrays": {}}',
        '{"plan": {"$array": "x"}, "arrays": {}}',
        '{"plan": {"$what": 1}, "arrays": {}}',
        '{"plan": 1, "arrays": {"x": {"dtype": "|O", "shape": [1], "base64": ""}}}',
        '{"plan": 1, "arrays": {"x": {"dtype": "<f8", "shape": [1], "base64": "AA=="}}}',
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        plan_from_json(text)


HIDDEN = PruningGraph((Group("hidden", 8, ()),), (), (), {}, ())


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([-1, 0, 1], "unit -1 at index 0, and group 'hidden' has units 0 to 7"),
        ([5, 6, 7, 8], "unit 8 at index 3, and group 'hidden' has units 0 to 7"),
        ([0, 1, 1, 2], "unit 1 at index 2, and it is there twice"),
        ([3, 2, 1], "unit 2 at index 1, and it comes after 3"),
        ([0, 1, 0], "unit 0 at index 2, and it is there twice"),
    ],
)
def test_invalid_units_are_refused(units: list[int], words: str) -> None:
    with pytest.raises(PlanError, match=rf"keep\['hidden'\] has {words}"):
        Plan(HIDDEN, "by hand", {"hidden": np.array(units)})
    document = json.loads(plan_to_json(Plan(HIDDEN, "by hand", {"hidden": np.arange(4)})))
    document["plan"]["keep"]["hidden"] = encode_value(np.array(units))[0]
    with pytest.raises(PlanError, match=words):
        plan_from_json(json.dumps(document))


def test_what_is_no_vector_of_units_is_refused() -> None:
    for kept in (np.ones(8, bool), np.array([0.0, 1.0]), np.array([[0, 1]]), 5, "01", np.array([])):
        with pytest.raises(PlanError, match=r"keep\['hidden'\] must be a vector of integers"):
            Plan(HIDDEN, "by hand", {"hidden": kept})  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="did you mean 'hidden'"):
        Plan(HIDDEN, "by hand", {"hiden": np.arange(2)})
    with pytest.raises(PlanError, match="got a list"):
        Plan(HIDDEN, "by hand", [1])  # type: ignore[arg-type]
    assert len(Plan(HIDDEN, "by hand", {"hidden": []}).removed("hidden")) == 8  # type: ignore[dict-item]


def test_a_truncated_text_is_refused_at_every_length() -> None:
    text = plan_to_json(
        Plan(PruningGraph((), (), (), {"w": (2, 2)}, ("w",)), "a", masks={"w": np.eye(2, dtype=bool)})
    )
    for end in range(len(text)):
        with pytest.raises(PlanError):
            plan_from_json(text[:end])


def test_retired_fields_of_old_plans_are_ignored() -> None:
    document = json.loads(plan_to_json(Plan(HIDDEN, "by hand", {"hidden": np.arange(4)})))
    group = document["plan"]["graph"]["groups"]["$tuple"][0]
    group |= {"exact": False, "note": "a note"}
    assert plan_from_json(json.dumps(document)).graph.group("hidden").size == 8
    group["other"] = 1
    with pytest.raises(PlanError, match="other"):
        plan_from_json(json.dumps(document))
