"""Options of a wrong type: one error for all methods, in Python and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pytest

from secateur.core import InputError
from secateur.methods import METHODS, find_method
from secateur.methods.options import check_options
from secateur.specs import make_method

OPTIONS = [(name, f.name) for name, kind in METHODS.items() for f in fields(kind) if f.init]
VALUES = [
    "abc",
    "",
    -7,
    2.5,
    True,
    None,
    (),
    (1,),
    ("a", "b"),
    [0, 1],
    {},
    object(),
    np.ones(2),
    float("nan"),
]


@pytest.mark.parametrize(("method", "option"), OPTIONS)
def test_every_value_of_every_option_is_taken_or_refused_by_name(method, option):
    refused = 0
    for value in VALUES:
        try:
            METHODS[method](**{option: value})
        except InputError as error:
            refused += 1
            assert option in str(error)
    assert refused >= len(VALUES) // 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("matroid:share=abc", r"Matroid\.share is a number; got 'abc'"),
        ("matroid:exact=no", r"Matroid\.exact is True or False; got 'no'"),
        ("matroid:ground=row", r"'activations', 'rows', 'patterns' or 'windows'; got 'row'"),
        ("matroid:box=0", r"Matroid\.box is a tuple of 2 values such as \(0\.0, 1\.0\); got 0"),
        ("spectral:allocation=x", r"'erk', 'global' or None; got 'x'"),
        ("mip:threshold=True", r"MIP\.threshold is a number or None; got True"),
        ("mip:images=2.5", r"MIP\.images is a whole number; got 2\.5"),
        ("magnitude:p=True", r"Magnitude\.p is 1 or 2; got True"),
        ("lattice:density=x", r"Lattice\.density is a number; got 'x'"),
        ("mip:lam=-1", r"MIP\.lam must be 0 or more, and finite; got -1"),
        ("mip:epsilon=1e999", r"MIP\.epsilon must be 0 or more, and finite; got inf"),
        ("mip:jobs=0", r"MIP\.jobs must be at least 1, or -1"),
        ("mip:parts=()", r"MIP\.parts has no programs"),
        ("mip:parts=blocks", r"MIP\.parts is a tuple, 'layers' or None; got 'blocks'"),
        (
            "spectral:epsilon=1e-300",
            r"Spectral\.epsilon must be positive \(1e-09 or more\) and finite; got 1e-300",
        ),
        ("spectral:tol=1e999", r"Spectral\.power and tol must be positive and finite"),
        ("matroid:tolerance=1e999", r"swaps and tolerance must be 0 or more, and finite"),
    ],
)
def test_the_command_line_gives_the_same_message(spec, message):
    for find in (make_method, find_method):
        with pytest.raises(InputError, match=message):
            find(spec)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["lam", "epsilon", "rescale", "gap"])
def test_numbers_of_the_program_are_finite_and_not_negative(option, wrong):
    with pytest.raises(InputError, match=rf"MIP\.{option}"):
        METHODS["mip"](**{option: wrong})


def test_nan_is_no_number():
    for name, option in OPTIONS:
        with pytest.raises(InputError, match=option):
            METHODS[name](**{option: float("nan")})


def test_numbers_of_other_types_are_numbers():
    assert METHODS["matroid"](share=np.float32(0.5), swaps=np.int64(3), rtol=0).swaps == 3
    assert METHODS["mip"](lam=5, images=np.int32(4)).images == 4
    assert METHODS["spectral"](epsilon=np.int64(2))._parameter() == 0.25


def test_the_command_line_writes_infinity():
    method: Any = make_method("mip:time_limit=inf,nodes=5")
    assert method.time_limit == float("inf")
    with pytest.raises(InputError, match=r"MIP\.lam must be 0 or more, and finite; got inf"):
        make_method("mip:lam=inf")


def test_the_command_line_writes_tuples():
    method: Any = make_method("matroid:ground=rows,domain=box,box=(-1, 2.5),swaps=3")
    assert method.box == (-1, 2.5) and method.swaps == 3


def test_options_of_a_class_of_ones_own():
    @dataclass(frozen=True)
    class Own:
        anything: Any
        names: tuple[str, ...] = ()
        mapping: dict[str, int] | None = None
        mode: Literal["a", None] = "a"

    check_options(Own(object(), ("x", "y"), {}, None))
    for wrong, message in (({"names": ("x", 1)}, "names is a tuple;"), ({"mapping": 1}, "a dict or None")):
        with pytest.raises(InputError, match=message):
            check_options(Own(0, **wrong))


@pytest.mark.parametrize("spec", [f"spectral:power={10**30}", f"leverage:ridge={10**30}"])
def test_whole_numbers_that_torch_does_not_take_are_errors(spec: str) -> None:
    with pytest.raises(InputError, match="63 bits"):
        make_method(spec)
