"""Runs as rows of a table: flat dictionaries, and words for what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from secateur.analysis.plain import plain
from secateur.core import InputError


@runtime_checkable
class Reported(Protocol):
    """What says all that it knows as a dictionary, as `secateur.Report` does."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        ...


Run = Reported | Mapping[str, Any]
Row = dict[str, Any]
IDENTITY = ("data", "model", "method", "budget", "repair", "seed")
ENVIRONMENT = ("threads", "device", "dtype")
USUAL = re.compile(r"(?<=\()(keep|density)=|, scope='layer'|, floor=1(?=[,)])|, round_to=1(?=[,)])")
LABELS = {
    "before": "quality before",
    "after": "quality after",
    "parameters_before": "parameters before",
    "nonzero": "nonzero parameters",
    "macs_before": "MACs before",
    "macs": "MACs",
    "top1": "same top class",
    "largest": "largest difference",
}


def as_dict(run: Run) -> Row:
    """Return a run as JSON can hold it."""
    return run.to_dict() if isinstance(run, Reported) else plain(run)


def as_dicts(runs: Run | Iterable[Run], some: bool = True) -> list[Row]:
    """Return one or many runs as JSON can hold them; if there must be some, raise `InputError` for none."""
    listed: list[Run] = [runs] if isinstance(runs, (Reported, Mapping)) else list(runs)
    if some and not listed:
        raise InputError("there are no runs to report")
    return [as_dict(run) for run in listed]


def is_report(values: Mapping[str, Any]) -> bool:
    """Say whether a dictionary is that of a `Report`, rather than a flat row."""
    return isinstance(values.get("before"), Mapping) and isinstance(values.get("after"), Mapping)


def flatten(run: Run) -> Row:
    """Return the numbers of one run as a flat dictionary; latencies in milliseconds.

    Example:
        >>> flatten({"model": "mlp", "method": "random", "status": "no data", "notes": {"a": 1}})
        {'model': 'mlp', 'method': 'random', 'status': 'no data'}
    """
    values = as_dict(run)
    flat = {key: value for key, value in values.items() if not isinstance(value, (dict, list))}
    if not is_report(values):
        return flat
    row = {key: flat.pop(key) for key in IDENTITY if key in flat}
    row |= {"repair": row["repair"] or "none", "budget": brief(row["budget"])}
    return {**row, **_measured(values), **{key: flat[key] for key in flat if key not in ENVIRONMENT}}


def _measured(values: Row) -> Row:
    before, after = values["before"], values["after"]
    row = {"before": before["metric"], "after": after["metric"]}
    for key in ("parameters", "macs", "bytes"):
        row |= {f"{key}_before": before["cost"][key], key: after["cost"][key]}
    row["nonzero"] = after["cost"]["nonzero"]
    for a, b in zip(before["latency"], after["latency"], strict=True):
        key = f"latency_{b['batch_size']}_ms"
        row |= {f"{key}_before": 1e3 * a["median"], key: 1e3 * b["median"]}
    agreement = values["agreement"] or {}
    row |= {"top1": agreement.get("top1"), "largest": agreement.get("largest")}
    return {**row, "seconds": sum(values["seconds"].values())}


def brief(budget: str) -> str:
    """Word a budget without what goes without saying.

    Example:
        >>> brief("Units(keep=0.5, scope='layer', floor=1, round_to=1)")
        'Units(0.5)'
        >>> brief("Macs(keep=0.3, scope='global', floor=2, round_to=1)")
        "Macs(0.3, scope='global', floor=2)"
    """
    return USUAL.sub("", budget)


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns of rows: what identifies a run first, then in the order of appearance."""
    found = dict.fromkeys(key for row in rows for key in row)
    return [*(key for key in IDENTITY if key in found), *(key for key in found if key not in IDENTITY)]


def varies(rows: Sequence[Row], key: str) -> bool:
    """Say whether a column holds more than one value; rows without it do not count."""
    return len({row[key] for row in rows if row.get(key) is not None}) > 1


def label(key: str) -> str:
    """Return a column's heading.

    Example:
        >>> label("macs"), label("latency_64_ms_before"), label("top_k")
        ('MACs', 'ms at batch 64 before', 'top k')
    """
    if key.startswith("latency_"):
        batch = key.split("_")[1]
        return f"ms at batch {batch}" + (" before" if key.endswith("_before") else "")
    return LABELS.get(key, key.replace("_", " "))


def show(value: Any) -> str:
    """Word a value for a table.

    Example:
        >>> show(1234567), show(0.98765432), show(3e-12), show(None), show(True)
        ('1,234,567', '0.9877', '3e-12', '', 'yes')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = [
    "IDENTITY",
    "Row",
    "Run",
    "as_dict",
    "as_dicts",
    "brief",
    "flatten",
    "is_report",
    "keys_of",
    "label",
    "show",
    "varies",
]
