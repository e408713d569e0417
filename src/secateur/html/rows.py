"""Runs as rows of a table: flat dictionaries, with headings for their columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from secateur.core import InputError
from secateur.core.jsonable import plain

__all__ = [
    "IDENTITY",
    "Row",
    "Run",
    "SavedRuns",
    "as_dicts",
    "column_label",
    "columns_of",
    "flatten",
    "has_several_values",
    "is_report",
    "key_before",
    "metric_of",
    "network_of",
    "run_label",
    "short_budget",
]


@runtime_checkable
class HasDict(Protocol):
    """A `Report`.  Named by what is asked of it, so that a report can write itself as a page."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        ...


Run = HasDict | Mapping[str, Any]
Row = dict[str, Any]
IDENTITY = ("data", "model", "method", "budget", "repair", "seed")
ENVIRONMENT = ("threads", "device", "dtype")
DEFAULTS = re.compile(r"(?<=\()(keep|density)=|, scope='layer'|, floor=1(?=[,)])|, round_to=1(?=[,)])")
ON = "on "  # before the name of a text, in columns of its metric
LABELS = {
    "body": "parameters without embeddings",
    "body_before": "parameters without embeddings before",
    "decode": "tokens per second, decode",
    "decode_before": "tokens per second, decode, before",
    "peak_memory": "peak memory, bytes",
    "prefill": "tokens per second, prefill",
    "prefill_before": "tokens per second, prefill, before",
    "parameters_before": "parameters before",
    "nonzero": "nonzero parameters",
    "macs_before": "MACs before",
    "macs": "MACs",
    "top1": "same top class",
    "largest": "largest difference",
}


class SavedRuns(list[Row]):
    """Runs that were read from files.

    Attributes:
        skipped: By file, why it was skipped.
    """

    def __init__(self, runs: Iterable[Row] = (), skipped: Mapping[str, str] | None = None) -> None:
        """Start with runs and skipped files."""
        super().__init__(runs)
        self.skipped = dict(skipped or {})


def as_dicts(runs: Run | Iterable[Run], *, allow_none: bool = False) -> list[Row]:
    """Return one or many runs as JSON can hold them.

    Raises:
        InputError: If there are no runs and `allow_none` is False.
    """
    many = [runs] if isinstance(runs, (HasDict, Mapping)) else list(runs)
    if not many and not allow_none:
        raise InputError("there are no runs to report")
    return [_as_dict(run) for run in many]


def _as_dict(run: Run) -> Row:
    return run.to_dict() if isinstance(run, HasDict) else plain(run)


def is_report(values: Mapping[str, Any]) -> bool:
    """Return whether a dictionary is that of a `Report`, rather than a flat row."""
    return isinstance(values.get("before"), Mapping) and isinstance(values.get("after"), Mapping)


def flatten(run: Run) -> Row:
    """Return the numbers of one run as a flat dictionary; latencies in milliseconds.

    Example:
        >>> flatten({"model": "mlp", "method": "random", "status": "no data", "notes": {"a": 1}})
        {'model': 'mlp', 'method': 'random', 'status': 'no data'}
    """
    values = _as_dict(run)
    flat = {key: value for key, value in values.items() if not isinstance(value, (dict, list))}
    if isinstance(flat.get("budget"), str):
        flat["budget"] = short_budget(flat["budget"])
    if not is_report(values):
        return flat
    row = {key: flat.pop(key) for key in IDENTITY if key in flat}
    row["repair"] = row["repair"] or "none"
    return {**row, **_measured(values), **{key: flat[key] for key in flat if key not in ENVIRONMENT}}


def _measured(values: Row) -> Row:
    before, after = values["before"], values["after"]
    row = {"before": before["metric"], "after": after["metric"]}
    for name, value in after.get("metrics", {}).items():
        row |= {f"{ON}{name}_before": before["metrics"].get(name), f"{ON}{name}": value}
    for key in ("parameters", "body", "macs", "bytes"):
        if before["cost"].get(key) is not None:
            row |= {f"{key}_before": before["cost"][key], key: after["cost"][key]}
    for key in ("prefill", "decode") if before.get("rates") and after.get("rates") else ():
        row |= {f"{key}_before": before["rates"][key], key: after["rates"][key]}
    row["nonzero"] = after["cost"]["nonzero"]
    for a, b in zip(before["latency"], after["latency"], strict=True):
        key = f"latency_{b['batch_size']}_ms"
        row |= {f"{key}_before": 1e3 * a["median"], key: 1e3 * b["median"]}
    agreement = values["agreement"] or {}
    row |= {"top1": agreement.get("top1"), "largest": agreement.get("largest")}
    return {**row, "seconds": sum(values["seconds"].values())}


def short_budget(budget: str) -> str:
    """Shorten the text of a budget: options with their default values are omitted.

    Example:
        >>> short_budget("Units(keep=0.5, scope='layer', floor=1, round_to=1)")
        'Units(0.5)'
        >>> short_budget("Macs(keep=0.3, scope='global', floor=2, round_to=1)")
        "Macs(0.3, scope='global', floor=2)"
    """
    return DEFAULTS.sub("", budget)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns of rows: what identifies a run first, the others in the order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [*(key for key in IDENTITY if key in keys), *(key for key in keys if key not in IDENTITY)]


def key_before(key: str) -> str:
    """Return the column with the value before pruning."""
    return "before" if key == "after" else f"{key}_before"


def has_several_values(rows: Sequence[Row], key: str) -> bool:
    """Return whether a column has more than one value; missing values do not count."""
    return len({row[key] for row in rows if row.get(key) is not None}) > 1


def metric_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the name of the metric if all rows that name one agree, else ``"quality"``."""
    names = {str(row["metric"]) for row in rows if row.get("metric") is not None}
    return names.pop() if len(names) == 1 else "quality"


def network_of(row: Mapping[str, Any]) -> str:
    """Return the name of a run's network, with its data."""
    return ", ".join(str(row[key]) for key in ("data", "model") if row.get(key) is not None)


def run_label(row: Mapping[str, Any]) -> str:
    """Return network, method, budget, repair and seed of a run as text.

    Example:
        >>> run_label({"data": "digits", "model": "mlp", "method": "mip", "budget": "Units(0.5)", "seed": 3})
        'digits, mlp: mip, Units(0.5), repair none, seed 3'
    """
    parts = [str(row[key]) for key in ("method", "budget") if row.get(key) is not None]
    parts += [f"{key} {row.get(key, missing)}" for key, missing in (("repair", "none"), ("seed", "unknown"))]
    return f"{network_of(row)}: {', '.join(parts)}"


def column_label(key: str, metric: str = "quality") -> str:
    """Return the heading of a column.

    Example:
        >>> column_label("macs"), column_label("latency_64_ms_before"), column_label("after", "accuracy")
        ('MACs', 'ms at batch 64 before', 'accuracy after')
    """
    if key in ("before", "after"):
        return f"{metric} {key}"
    if key.startswith(ON):
        return f"{metric} {key.removesuffix('_before')}" + (" before" if key.endswith("_before") else "")
    if key.startswith("latency_"):
        batch = key.split("_")[1]
        return f"ms at batch {batch}" + (" before" if key.endswith("_before") else "")
    return LABELS.get(key, key.replace("_", " "))
