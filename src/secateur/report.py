"""The report of a pruning: everything measured before and after, and how it came about, as one value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from secateur.core import InputError
from secateur.core.jsonable import plain, versions
from secateur.measure.cost import Cost
from secateur.measure.latency import Latency
from secateur.measure.metrics import Agreement


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        cost: Parameters, bytes, multiply-accumulates.
        metric: The metric on the held-out batches, or None where there were none.
        latency: One entry for each batch size.
    """

    cost: Cost
    metric: float | None = None
    latency: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class Report:
    """Before and after of everything, and how it came about.

    Attributes:
        model: Class of the model.
        method: Name of the method.
        budget: The budget, in words.
        repair: None, or a name of `secateur.pruning.Repair`.
        seed: The seed.
        metric: Name of the metric.
        before: The original model.
        after: The pruned model.
        agreement: How far the pruned model's outputs are from the original's.
        groups: By group, the units it had ("units") and those that stayed ("kept").
        masks: By weight, the single weights it had ("weights") and those that stayed ("kept").
        frozen: Axes from which nothing was removed, each with its reason.
        notes: The plan's notes.
        folds: What the fold reports, by weight or group: residuals, undone folds.
        steps: One entry for each step taken.
        finetune: What the fine-tuning reports.
        structure: Portrait along the structure of the method, where `secateur.portray` made one.
        seconds: Time that each stage took.
        versions: Of Python, secateur, torch, numpy.
        threads: Threads that torch used within an operation.
        device: The model's device.
        dtype: The model's dtype.
    """

    model: str
    method: str
    budget: str
    repair: str | None
    seed: int
    metric: str | None
    before: Measurement
    after: Measurement
    agreement: Agreement | None = None
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    frozen: Sequence[Mapping[str, Any]] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    folds: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    finetune: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Make what came from methods and repairs plain, so that the report survives JSON unchanged."""
        for name in _FREE:
            object.__setattr__(self, name, plain(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return plain(asdict(self))

    def to_json(self) -> str:
        """Return the report as strict JSON; `from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` wrote, or raise `InputError`."""
        try:
            given = dict(values)
            compared = given.pop("agreement")
            before, after = _measurement(given.pop("before")), _measurement(given.pop("after"))
            return cls(before=before, after=after, agreement=compared and Agreement(**compared), **given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no report of a pruning: {type(error).__name__}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote, or raise `InputError`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise InputError(f"this is no report of a pruning: {error}") from error

    def to_markdown(self) -> str:
        """Return the report as Markdown: a table of before and after, then one of what went where."""
        repair = self.repair or "no repair"
        lines = [f"# {self.model}: {self.method}, {self.budget}, {repair}, seed {self.seed}", ""]
        lines += ["| | before | after | ratio |", "|---|---:|---:|---:|", *map(_row, self._rows()), ""]
        lines += self._compared()
        lines += ["| where | had | kept |", "|---|---:|---:|"]
        for key, parts in (("units", self.groups), ("weights", self.masks)):
            lines += [f"| {_cell(name)} | {x[key]} {key} | {x['kept']} |" for name, x in parts.items()]
        environment = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines += ["", f"{self.device}, {self.dtype}, {self.threads} threads; {environment}", ""]
        return "\n".join(lines)

    def to_html(self, path: str | Path) -> None:
        """Write the report as one HTML page."""
        from secateur.html import write_html  # plotly takes a while to import

        write_html(self, path)

    def _rows(self) -> list[tuple[str, str, str, float | None]]:
        rows: list[tuple[str, str, str, float | None]] = []
        for key, name in _COSTS.items():
            a, b = getattr(self.before.cost, key), getattr(self.after.cost, key)
            rows.append((name, f"{a:,}", f"{b:,}", _ratio(a, b)))
        for a, b in zip(self.before.latency, self.after.latency, strict=True):
            name = f"latency, batch {a.batch_size}, {a.threads} threads, median of {a.repeats} (quartiles)"
            rows.append((name, _milliseconds(a), _milliseconds(b), _ratio(a.median, b.median)))
        if self.before.metric is not None and self.after.metric is not None:
            rows.append((str(self.metric), f"{self.before.metric:.4f}", f"{self.after.metric:.4f}", None))
        return rows

    def _compared(self) -> list[str]:
        if self.agreement is None:
            return []
        same, far = self.agreement.top1, self.agreement.largest
        words = f"Largest output difference {far:.3g} ({self.agreement.relative:.3g} of the largest output)"
        top1 = "" if same is None else f"; same top class on {same:.2%} of {self.agreement.examples}"
        return [words + top1 + ".", ""]


_COSTS = {"parameters": "parameters", "nonzero": "nonzero parameters", "bytes": "bytes", "macs": "MACs"}
_FREE = (
    "groups",
    "masks",
    "frozen",
    "notes",
    "folds",
    "steps",
    "finetune",
    "structure",
    "seconds",
    "versions",
)


def _measurement(values: Mapping[str, Any]) -> Measurement:
    rows = tuple(Latency(**row) for row in values["latency"])
    return Measurement(Cost(**values["cost"]), values["metric"], rows)


def _ratio(before: float, after: float) -> float | None:
    return before / after if after else None


def _milliseconds(x: Latency) -> str:
    return f"{1e3 * x.median:.3g} ms ({1e3 * x.lower:.3g} to {1e3 * x.upper:.3g})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(row: tuple[str, str, str, float | None]) -> str:
    name, before, after, ratio = row
    return f"| {name} | {before} | {after} | {'' if ratio is None else f'{ratio:.2f}x'} |"


__all__ = ["Measurement", "Report", "plain", "versions"]
