"""Runs as rows of a table: flat dictionaries, and words for what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from secateur.core import InputError
from secateur.core.jsonable import plain


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
    "parameters_before": "parameters before",
    "nonzero": "nonzero parameters",
    "macs_before": "MACs before",
    "macs": "MACs",
    "top1": "same top class",
    "largest": "largest difference",
}


class Found(list[Row]):
    """Runs that were read from files.

    Attributes:
        skipped: By file, why it is left out.
    """

    def __init__(self, runs: Iterable[Row] = (), skipped: Mapping[str, str] | None = None) -> None:
        """Start with runs and what was skipped."""
        super().__init__(runs)
        self.skipped = dict(skipped or {})


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
        return {**flat, "budget": brief(flat["budget"])} if isinstance(flat.get("budget"), str) else flat
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


def network_of(row: Mapping[str, Any]) -> str:
    """Name the network of a run, with its data."""
    return ", ".join(str(row[key]) for key in ("data", "model") if row.get(key) is not None)


def metric_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the name of the metric, if it is the same in all rows that have one; else ``"quality"``."""
    found = {str(row["metric"]) for row in rows if row.get("metric") is not None}
    return found.pop() if len(found) == 1 else "quality"


def label(key: str, metric: str = "quality") -> str:
    """Return a column's heading.

    Example:
        >>> label("macs"), label("latency_64_ms_before"), label("top_k"), label("after", "accuracy")
        ('MACs', 'ms at batch 64 before', 'top k', 'accuracy after')
    """
    if key in ("before", "after"):
        return f"{metric} {key}"
    if key.startswith("latency_"):
        batch = key.split("_")[1]
        return f"ms at batch {batch}" + (" before" if key.endswith("_before") else "")
    return LABELS.get(key, key.replace("_", " "))


__all__ = [
    "IDENTITY",
    "Found",
    "Row",
    "Run",
    "as_dict",
    "as_dicts",
    "brief",
    "flatten",
    "is_report",
    "keys_of",
    "label",
    "metric_of",
    "network_of",
    "varies",
]
