"""Paths of outputs: what they lead to in every kind of container, and what a wrong one is told."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from secateur.core import InputError, Interface
from secateur.core.interface import check_outputs, part_of, paths_of, with_parts

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Found:
    scores: Any
    past: Any = None


class Cache:
    def __init__(self, keys: Any) -> None:
        self.keys = keys


A, B, C = (torch.full((2,), float(n)) for n in range(3))


@pytest.mark.parametrize(
    ("output", "paths", "expected"),
    [
        ((A, B, C), ("1",), (None, B, None)),
        ((A, B, C), ("-1", "0"), (A, None, C)),
        ([A, (B, C)], ("1.0",), [None, (B, None)]),
        ({"a": A, "b": {"c": C, "d": B}}, ("b.c", "a"), {"a": A, "b": {"c": C, "d": None}}),
        (OrderedDict(a=A, b=B), ("b",), OrderedDict(a=None, b=B)),
        ({0: A, 1: B}, ("1",), {0: None, 1: B}),
        (Pair(A, B), ("right",), Pair(None, B)),
        (Pair(A, B), ("0",), Pair(A, None)),
        (Found(A, (B, C)), ("past",), Found(None, (B, C))),
        (Found(A, (B, C)), ("past", "past.1", "scores"), Found(A, (B, C))),
    ],
)
def test_only_what_counts_is_left(output: Any, paths: tuple[str, ...], expected: Any) -> None:
    counted = Interface(paths).counted(output)
    assert type(counted) is type(output)
    assert repr(counted) == repr(expected)


def test_objects_are_copied_and_everything_counts_by_default() -> None:
    cache = Cache((A, B))
    counted = Interface(("1.keys.0",)).counted((C, cache))
    assert counted[0] is None and counted[1].keys == (A, None)
    assert cache.keys == (A, B)
    assert Interface().counted(cache) is cache
    assert Interface(("0",)).counted(A) is A, "a single tensor is its own part 0"
    assert Interface().is_whole and not Interface(("0",)).is_whole


@pytest.mark.parametrize(
    ("output", "path", "message"),
    [
        ({"logits": A, "past": (B, C)}, "logit", r"no output 'logit'; did you mean 'logits'\?.*'past\.0'"),
        ((A, (B, C)), "2", r"no output '2'.*Known: '0', '1\.0', '1\.1'"),
        ((A, B), "0.x", r"no output '0\.x'"),
        ({"loss": None, "logits": A}, "loss", r"no output 'loss'.*Known: 'logits'"),
        (A, "1", "no output '1'. Known: '0'"),
    ],
)
def test_a_path_that_leads_nowhere_lists_what_there_is(output: Any, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Interface((path,)).counted(output)


@pytest.mark.parametrize("given", ["", "a..b", (), [], 1.5, True, [None], object()])
def test_outputs_are_names_or_indices(given: Any) -> None:
    with pytest.raises(InputError, match="outputs are names of fields, indices, or paths"):
        check_outputs(given)


def test_parts_are_found_listed_and_replaced() -> None:
    output = {"y": A, "state": (Pair(A, B), [C])}
    assert list(paths_of(output)) == ["y", "state.0.left", "state.0.right", "state.1.0"]
    assert part_of(output, "state.0.right") is B
    with pytest.raises(InputError, match=r"no part 'state\.2'"):
        part_of(output, "state.2")
    changed = with_parts(output, {"state.0.0": C, "state.1.0": B})
    assert repr(changed) == repr({"y": A, "state": (Pair(C, B), [B])})
    assert part_of(output, "state.0.left") is A
