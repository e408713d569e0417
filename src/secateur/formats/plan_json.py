"""Plans as JSON, exactly: what comes back equals what went in, arrays and tuples included.

A value is written with tags where JSON has no form of its own: ``{"$type": "Group", ...}`` for a value
of `secateur.core`, ``{"$tuple": [...]}``, ``{"$float": "inf"}``, ``{"$items": [[key, value], ...]}`` for
a mapping whose keys JSON cannot have, ``{"$ints": ...}`` for an array of integers as runs [start,
count, step], and ``{"$bits": name}`` or ``{"$array": name}`` for a mask or any other array of numbers,
which is kept beside the document.
What a plan's network holds for the traced model alone (example inputs, the captured graph) is left out.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import Frozen, Group, Layer, Merge, Plan, PlanError, PruningGraph, Size, Slot

Arrays = dict[str, NDArray[Any]]
TYPES = {kind.__name__: kind for kind in (Frozen, Group, Layer, Merge, PruningGraph, Plan, Size, Slot)}
LARGEST = 2**27  # numbers in an array of indices
WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
OMITTED = {"PruningGraph": ("example_inputs", "example_kwargs")}
# What version 0.1 called the same things, so that its folders keep loading.
RENAMED_TYPES = {"Network": "PruningGraph"}
RENAMED_FIELDS = {("Plan", "network"): "graph"}
RETIRED_FIELDS = {("Group", "exact"), ("Group", "note")}


def encode(value: Any) -> tuple[Any, Arrays]:
    """Return a value as strict JSON can hold it, and the arrays that are kept beside it by name.

    Raises:
        PlanError: The value holds something that is neither data nor of `secateur.core`.

    Example:
        >>> encode({"keep": np.arange(2, 9), "note": (1, float("inf"))})[0]["keep"]
        {'$ints': [[2, 7, 1]], 'shape': [7]}
    """
    arrays: Arrays = {}
    return _encode(value, "", arrays), arrays


def decode(document: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that `encode` wrote.

    Raises:
        PlanError: The document is not of that form.
    """
    try:
        return _decode(document, arrays)
    except WRONG as error:
        raise PlanError(f"this is no plan: {type(error).__name__}: {error}") from error


def plan_to_json(plan: Plan) -> str:
    """Return a plan as one JSON document, arrays inside it in base64.

    Example:
        >>> graph = PruningGraph((Group("fc", 6, ()),), (), (), {}, ())
        >>> plan = Plan(graph, "random", keep={"fc": np.array([0, 1, 2, 5])})
        >>> plan_from_json(plan_to_json(plan)).keep
        {'fc': array([0, 1, 2, 5])}
    """
    document, arrays = encode(plan)
    inline = {
        name: {"dtype": x.dtype.str, "shape": list(x.shape), "base64": base64.b64encode(x.tobytes()).decode()}
        for name, x in arrays.items()
    }
    return json.dumps({"plan": document, "arrays": inline}, allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Return the plan that `plan_to_json` wrote.

    Raises:
        PlanError: The text is not such a document, or its units cannot be.
    """
    try:
        document = json.loads(text)
        arrays = {name: _inline(x) for name, x in document["arrays"].items()}
        plan = decode(document["plan"], arrays)
    except WRONG as error:
        raise PlanError(f"this is no plan: {type(error).__name__}: {error}") from error
    if not isinstance(plan, Plan):
        raise PlanError(f"this is no plan: it holds a {type(plan).__name__}")
    return plan


def runs(values: NDArray[np.int64]) -> list[list[int]]:
    """Return a vector as runs [start, count, step], greedily the longest.

    Example:
        >>> runs(np.array([0, 1, 2, 3, 10, 12, 14, 7]))
        [[0, 4, 1], [10, 3, 2], [7, 1, 1]]
    """
    steps = np.diff(values)
    breaks = np.append(np.flatnonzero(steps[1:] != steps[:-1]) + 1, len(steps))
    found, i = [], 0
    while i < len(values):
        last = int(breaks[np.searchsorted(breaks, i, "right")]) if i < len(steps) else i
        step = int(steps[i]) if last > i else 1
        found.append([int(values[i]), last - i + 1, step])
        i = last + 1
    return found


def _encode(value: Any, path: str, arrays: Arrays) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        return _encode(value.detach().cpu().tolist(), path, arrays)
    if isinstance(value, np.ndarray):
        return _encode_array(value, path, arrays)
    if isinstance(value, list):
        return [_encode(x, f"{path}/{i}", arrays) for i, x in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(x, f"{path}/{i}", arrays) for i, x in enumerate(value)]}
    if isinstance(value, Mapping):
        return _encode_mapping(value, path, arrays)
    if type(value) in TYPES.values():
        kind = type(value).__name__
        kept = [f.name for f in fields(value) if f.name not in OMITTED.get(kind, ())]
        return {"$type": kind, **{n: _encode(getattr(value, n), f"{path}/{n}", arrays) for n in kept}}
    raise PlanError(f"a plan must hold data only; {path or 'it'} is a {type(value).__name__}")


def _encode_mapping(value: Mapping[Any, Any], path: str, arrays: Arrays) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(x, f"{path}/{key}", arrays) for key, x in value.items()}
    pairs = [[_encode(key, path, arrays), _encode(x, f"{path}/{key}", arrays)] for key, x in value.items()]
    return {"$items": pairs}


def _encode_array(value: NDArray[Any], path: str, arrays: Arrays) -> Any:
    if value.dtype == np.int64:
        by_row, by_column = runs(value.ravel()), runs(value.ravel(order="F"))
        short = min(by_row, by_column, key=len)
        if 2 * len(short) <= value.size + 8:
            order = {} if short is by_row else {"order": "F"}
            return {"$ints": short, "shape": list(value.shape), **order}
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise PlanError(f"a plan must hold numbers; {path or 'it'} is an array of {value.dtype}")
    while path in arrays:
        path += "'"
    bits = value.dtype == np.bool_
    arrays[path] = np.packbits(value) if bits else value.copy(order="C")
    return {"$bits": path, "shape": list(value.shape)} if bits else {"$array": path}


def _decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_decode(x, arrays) for x in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: _decode(x, arrays) for key, x in value.items()}
    if tag == "$type":
        return _build(value["$type"], {k: _decode(x, arrays) for k, x in value.items() if k != "$type"})
    if tag == "$ints":
        return _decode_ints(value)
    content = value[tag]
    if tag == "$bits":
        if len(arrays[content]) != -(-math.prod(value["shape"]) // 8):
            raise ValueError(f"bits {content!r} that do not fill their shape")
        flat = np.unpackbits(arrays[content], count=math.prod(value["shape"]))
        return flat.astype(np.bool_).reshape(value["shape"])
    if tag == "$items":
        return {_decode(k, arrays): _decode(x, arrays) for k, x in content}
    if tag == "$array":
        return np.array(arrays[content])
    if tag in ("$tuple", "$float"):
        return tuple(_decode(content, arrays)) if tag == "$tuple" else float(content)
    raise ValueError(f"unknown tag {tag!r}")


def _build(name: str, found: dict[str, Any]) -> Any:
    """Make a value of `secateur.core`, after comparing its fields with their annotations."""
    name = RENAMED_TYPES.get(name, name)
    kind = TYPES[name]
    hints = get_type_hints(kind)
    found = {
        RENAMED_FIELDS.get((name, field), field): value
        for field, value in found.items()
        if (name, field) not in RETIRED_FIELDS
    }
    for field in fields(kind):
        if field.name not in found:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{name} has no field {field.name!r}")
        elif not _fits(found[field.name], hints[field.name]):
            given = type(found[field.name]).__name__
            raise ValueError(f"field {field.name!r} of {name} is a {given} that does not fit {field.type}")
    return kind(**found)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, x) for x in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(x, inner[0]) for x in value)
    if origin is Mapping:
        pairs = value.items() if isinstance(value, dict) else ()
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(x, inner[1]) for k, x in pairs)
    if origin is np.ndarray:
        kinds = {np.dtype(get_args(inner[1])[0]).kind, "u" if get_args(inner[1])[0] is np.int64 else ""}
        return isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind in kinds)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _decode_ints(value: Mapping[str, Any]) -> NDArray[np.int64]:
    if not all(isinstance(x, int) for run in value["$ints"] for x in run):
        raise ValueError("runs that are no integers")
    if any(count < 1 for _, count, _ in value["$ints"]) or math.prod(value["shape"]) > LARGEST:
        raise ValueError(f"runs of fewer than 1 or more than {LARGEST} numbers")
    if sum(count for _, count, _ in value["$ints"]) != math.prod(value["shape"]):
        raise ValueError("runs that do not fill their shape")
    parts = [start + step * np.arange(count, dtype=np.int64) for start, count, step in value["$ints"]]
    flat = np.concatenate([np.empty(0, np.int64), *parts])
    return flat.reshape(value["shape"], order=value.get("order", "C")).copy(order="C")


def _inline(x: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(x["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays of {dtype} are not read")
    return np.frombuffer(base64.b64decode(x["base64"], validate=True), dtype).reshape(x["shape"])


__all__ = ["Arrays", "decode", "encode", "plan_from_json", "plan_to_json", "runs"]
