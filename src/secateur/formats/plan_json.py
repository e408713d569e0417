"""Plans as JSON without loss: arrays and tuples come back as they were.

Tags mark the values for which JSON has no form: ``{"$type": "Group", ...}`` is a value of `secateur.core`,
``{"$tuple": [...]}`` a tuple, ``{"$float": "inf"}`` a float that is not finite, ``{"$items": [[key, value],
...]}`` a mapping whose keys JSON does not allow, and ``{"$ints": ...}`` an array of integers, as runs [start,
count, step].  ``{"$bits": name}`` and ``{"$array": name}`` refer to a mask or another array of numbers, which
is stored beside the document.
The example inputs of a plan's graph are not stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import (
    Frozen,
    Group,
    Interface,
    Layer,
    Merge,
    Plan,
    PlanError,
    PruningGraph,
    SizeAttribute,
    Slot,
    State,
    StateAxis,
)

__all__ = ["Arrays", "decode_value", "encode_value", "plan_digest", "plan_from_json", "plan_to_json"]

Arrays = dict[str, NDArray[Any]]
TYPES = {
    kind.__name__: kind
    for kind in (
        Frozen,
        Group,
        Interface,
        Layer,
        Merge,
        PruningGraph,
        Plan,
        SizeAttribute,
        Slot,
        State,
        StateAxis,
    )
}
# A short document must not fill the memory: its runs and groups may have this many integers, and more in
# proportion to the bytes that come with it.
INTEGERS, INTEGERS_PER_BYTE = 2**22, 8
DECODING_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
OMITTED = {"PruningGraph": ("example_inputs", "example_kwargs")}
# Names of version 0.1, so that its folders keep loading; retired fields are ignored.
RENAMED_TYPES = {"Network": "PruningGraph", "Size": "SizeAttribute"}
RENAMED_FIELDS = {("Plan", "network"): "graph"}
RETIRED_FIELDS = {("Group", "exact"), ("Group", "note")}


def encode_value(value: Any) -> tuple[Any, Arrays]:
    """Return a value as strict JSON, and by name the arrays to be stored beside it.

    Raises:
        PlanError: If the value holds something that is neither data nor a value of `secateur.core`.

    Example:
        >>> encode_value({"keep": np.arange(2, 9), "note": (1, float("inf"))})[0]["keep"]
        {'$ints': [[2, 7, 1]], 'shape': [7]}
    """
    arrays: Arrays = {}
    return _encode(value, "", arrays), arrays


def decode_value(document: Any, arrays: Mapping[str, NDArray[Any]], size: int = 0) -> Any:
    """Return the value that `encode_value` wrote.

    Args:
        document: The JSON.
        arrays: The arrays beside it.
        size: Bytes of the files that hold them and the model.

    Raises:
        PlanError: If the document has another form, or describes far more units than fits these files.
    """
    most = INTEGERS + INTEGERS_PER_BYTE * size
    try:
        if _count_integers(document) > most:
            raise ValueError(f"its runs and groups hold more than {most} integers")
        return _decode(document, arrays)
    except DECODING_ERRORS as error:
        raise PlanError(f"this is not a plan: {type(error).__name__}: {error}") from error


def plan_to_json(plan: Plan) -> str:
    """Return a plan as one JSON document with its arrays in base64.

    Example:
        >>> graph = PruningGraph((Group("fc", 6, ()),), (), (), {}, ())
        >>> plan = Plan(graph, "random", keep={"fc": np.array([0, 1, 2, 5])})
        >>> plan_from_json(plan_to_json(plan)).keep
        {'fc': array([0, 1, 2, 5])}
    """
    document, arrays = encode_value(plan)
    inline = {
        name: {"dtype": x.dtype.str, "shape": list(x.shape), "base64": base64.b64encode(x.tobytes()).decode()}
        for name, x in arrays.items()
    }
    return json.dumps({"plan": document, "arrays": inline}, allow_nan=False)


def plan_digest(plan: Plan) -> str:
    """Return the SHA-256 of a plan's JSON, which identifies the plan."""
    return hashlib.sha256(plan_to_json(plan).encode()).hexdigest()


def plan_from_json(text: str) -> Plan:
    """Return the plan that `plan_to_json` wrote.

    Raises:
        PlanError: If the text is not such a document, or names units that the graph does not have.
    """
    try:
        document = json.loads(text)
        arrays = {name: _inline(x) for name, x in document["arrays"].items()}
        plan = decode_value(document["plan"], arrays, len(text))
    except DECODING_ERRORS as error:
        raise PlanError(f"this is not a plan: {type(error).__name__}: {error}") from error
    if not isinstance(plan, Plan):
        raise PlanError(f"this is not a plan: it holds a {type(plan).__name__}")
    return plan


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
    raise PlanError(f"a plan must hold data only; {path or 'the value'} is a {type(value).__name__}")


def _encode_mapping(value: Mapping[Any, Any], path: str, arrays: Arrays) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(x, f"{path}/{key}", arrays) for key, x in value.items()}
    pairs = [[_encode(key, path, arrays), _encode(x, f"{path}/{key}", arrays)] for key, x in value.items()]
    return {"$items": pairs}


def _encode_array(value: NDArray[Any], path: str, arrays: Arrays) -> Any:
    if value.dtype == np.int64:
        by_row, by_column = _runs(value.ravel()), _runs(value.ravel(order="F"))
        short = min(by_row, by_column, key=len)
        if 2 * len(short) <= value.size + 8:
            order = {} if short is by_row else {"order": "F"}
            return {"$ints": short, "shape": list(value.shape), **order}
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise PlanError(f"a plan must hold numbers; {path or 'the value'} is an array of {value.dtype}")
    while path in arrays:
        path += "'"
    bits = value.dtype == np.bool_
    arrays[path] = np.packbits(value) if bits else value.copy(order="C")
    return {"$bits": path, "shape": list(value.shape)} if bits else {"$array": path}


def _runs(values: NDArray[np.int64]) -> list[list[int]]:
    """Split a vector into arithmetic runs [start, count, step], each as long as possible.

    Example:
        >>> _runs(np.array([0, 1, 2, 3, 10, 12, 14, 7]))
        [[0, 4, 1], [10, 3, 2], [7, 1, 1]]
    """
    steps = np.diff(values)
    breaks = np.append(np.flatnonzero(steps[1:] != steps[:-1]) + 1, len(steps))
    runs, i = [], 0
    while i < len(values):
        last = int(breaks[np.searchsorted(breaks, i, "right")]) if i < len(steps) else i
        runs.append([int(values[i]), last - i + 1, int(steps[i]) if last > i else 1])
        i = last + 1
    return runs


def _count_integers(value: Any) -> int:
    """Return how many integers the runs of a document hold, and the units of its groups."""
    if isinstance(value, dict) and "$ints" in value:
        return sum(abs(count) for _, count, _ in value["$ints"])
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    units = abs(value["size"]) if isinstance(value, dict) and value.get("$type") == "Group" else 0
    return units + sum(map(_count_integers, items))


def _decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_decode(x, arrays) for x in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: _decode(x, arrays) for key, x in value.items()}
    content = value[tag]
    match tag:
        case "$type":
            return _build(content, {k: _decode(x, arrays) for k, x in value.items() if k != tag})
        case "$tuple":
            return tuple(_decode(content, arrays))
        case "$float":
            return float(content)
        case "$items":
            return {_decode(k, arrays): _decode(x, arrays) for k, x in content}
        case "$ints":
            return _decode_ints(value)
        case "$bits":
            shape, packed = value["shape"], arrays[content]
            if len(packed) != -(-math.prod(shape) // 8):
                raise ValueError(f"the bits of {content!r} do not fill the shape {shape}")
            return np.unpackbits(packed, count=math.prod(shape)).astype(np.bool_).reshape(shape)
        case "$array":
            return np.array(arrays[content])
    raise ValueError(f"unknown tag {tag!r}")


def _build(name: str, values: dict[str, Any]) -> Any:
    """Return a value of `secateur.core` from its fields."""
    name = RENAMED_TYPES.get(name, name)
    current = {key: x for key, x in values.items() if (name, key) not in RETIRED_FIELDS}
    return TYPES[name](**{RENAMED_FIELDS.get((name, key), key): x for key, x in current.items()})


def _decode_ints(value: Mapping[str, Any]) -> NDArray[np.int64]:
    runs, shape = value["$ints"], value["shape"]
    counts = [count for _, count, _ in runs]
    if min(counts, default=1) < 1 or sum(counts) != math.prod(shape):
        raise ValueError(f"runs must fill the shape {shape}")
    parts = [start + step * np.arange(count, dtype=np.int64) for start, count, step in runs]
    flat = np.concatenate([np.empty(0, np.int64), *parts])
    return flat.reshape(shape, order=value.get("order", "C")).copy(order="C")


def _inline(x: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(x["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} does not hold numbers")
    return np.frombuffer(base64.b64decode(x["base64"], validate=True), dtype).reshape(x["shape"])
