"""The report of a pruning: what was measured before and after, and how it came about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from secateur.core import InputError
from secateur.core.jsonable import plain, versions
from secateur.core.markdown import markdown_table
from secateur.measure.cost import ModelCost
from secateur.measure.generation import TokenRates
from secateur.measure.latency import Timing, describe_latency
from secateur.measure.metrics import Agreement

__all__ = ["Measurement", "Report"]

OUTCOMES: tuple[Literal["undone", "skipped"], ...] = ("undone", "skipped")
CHANGES = 9  # lines of before and after in a summary
SHORTEST = 0.005  # seconds of a stage that a summary mentions
COSTS = {
    "parameters": "parameters",
    "body": "parameters without embeddings",
    "nonzero": "nonzero parameters",
    "bytes": "bytes",
    "macs": "MACs",
}
# Fields that methods and repairs fill freely; they are made plain so that the report survives JSON.
FREE = (
    "groups",
    "kinds",
    "masks",
    "interface",
    "frozen",
    "notes",
    "folds",
    "steps",
    "finetune",
    "structure",
    "exactness",
    "seconds",
    "versions",
)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        cost: Parameters, bytes, multiply-accumulates.
        metric: The metric on the held-out batches, or None if there were none.
        latency: One entry for each batch size; empty if it was not measured.
        metrics: The metric by name of the held-out batches, for those that have a name.
        rates: Tokens per second of a language model, or None if they were not measured.
    """

    cost: ModelCost
    metric: float | None = None
    latency: tuple[Timing, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    rates: TokenRates | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """Before and after, and how it came about.

    Attributes:
        model: Class of the model.
        method: Name of the method.
        budget: The budget, as written in Python.
        repair: Name of the repairs, or None.
        seed: The seed.
        metric: Name of the metric, or None if nothing was measured on held-out batches.
        before: The original model.
        after: The pruned model.
        agreement: How far the pruned model's outputs are from the original's, if that was measured.
        groups: By group, the units it had ("units") and those that stayed ("kept").
        kinds: By kind of group, the groups, the units they had ("units"), those that stayed ("kept"), and
            the parameters that go if only these units go ("parameters"); a weight between two kinds counts
            in both.  Whole experts come first, as "experts" of so many mixtures ("groups").
        masks: By weight, the single weights it had ("weights") and those that stayed ("kept").
        interface: Which outputs count, if not all do, and what became of the states, line by line.
        frozen: Axes from which nothing was removed, each with its reason.
        notes: The plan's notes.
        folds: What fold and refit report, by weight: errors, and what was undone.
        steps: One entry for each step.
        schedule: The schedule, as written in Python.
        finetune: What the fine-tuning reports.
        structure: Sections on the structure of the method, if `secateur.diagnose` made them.
        exactness: What the check of the removal found, and whether it could also use other inputs and another
            batch size; empty if it was not made.
        seconds: Time of each stage.
        versions: Of Python, secateur, torch, numpy.
        holdout: SHA-256 of the held-out batches by name, of those that can be read again.
        threads: Threads that torch used within an operation.
        device: The model's device.
        dtype: The model's dtype.
        peak_memory: Of the process so far, resident, in bytes; None where the system does not give it.
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
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    masks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    interface: Sequence[str] = ()
    frozen: Sequence[Mapping[str, Any]] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    folds: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    schedule: str = "OneShot()"
    finetune: Mapping[str, Any] = field(default_factory=dict)
    structure: Any = field(default_factory=dict)
    exactness: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    holdout: Mapping[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    dtype: str = "float32"
    peak_memory: int | None = None

    def __post_init__(self) -> None:
        """Make what methods and repairs filled in plain, so that the report survives JSON unchanged."""
        for name in FREE:
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
            raise InputError(
                f"this is not the report of a pruning: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote, or raise `InputError`."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"this is not the report of a pruning: {error}") from error

    def to_markdown(self) -> str:
        """Return the report as Markdown: a table of before and after, then one of what went where."""
        repair = self.repair or "no repair"
        environment = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join(
            [
                f"# {self.model}: {self.method}, {self.budget}, {repair}, seed {self.seed}",
                "",
                self._table_of_changes(),
                "",
                *([] if self.agreement is None else [f"{self._agreement()}.", ""]),
                *(f"{describe_latency(note)}.\n" for note in self.notes.get("latency", ())),
                *([self._table_of_kinds(), ""] if self._has_kinds() else []),
                *([f"{'; '.join(self.interface)}.", ""] if self.interface else []),
                self._table_of_groups(),
                "",
                f"{self.device}, {self.dtype}, {self.threads} threads; {environment}",
                "",
            ]
        )

    def _table_of_changes(self) -> str:
        rows = [
            {"": name, "before": before, "after": after, "ratio": "" if ratio is None else f"{ratio:.2f}x"}
            for name, before, after, ratio in self._changes()
        ]
        return markdown_table(rows, right=("before", "after", "ratio"))

    def _table_of_kinds(self) -> str:
        counted = {"had": "units", "kept": "kept", "parameters with them": "parameters"}
        rows = [
            {"units": kind, **{column: f"{counts[key]:,}" for column, key in counted.items()}}
            for kind, counts in self.kinds.items()
        ]
        return markdown_table(rows, right=tuple(counted))

    def _table_of_groups(self) -> str:
        rows = [
            {"where": name, "had": f"{counts[unit]} {unit}", "kept": counts["kept"]}
            for unit, parts in (("units", self.groups), ("weights", self.masks))
            for name, counts in parts.items()
        ]
        return markdown_table(rows, ("where", "had", "kept"), right=("had", "kept"))

    def failed_repairs(self, outcome: Literal["undone", "skipped"]) -> dict[str, str]:
        """Return the weights of which the fold or the refit was undone or skipped, with the reason."""
        found: dict[str, str] = {}
        notes = {name: note for name, note in self.folds.items() if isinstance(note, Mapping)}
        for name, note in notes.items():
            for step in (note, note.get("refit") or {}):
                if reason := step.get(outcome):
                    why = reason if isinstance(reason, str) else step.get("why")
                    found.setdefault(name, why or "no reason was given")
        return found

    def to_html(self, path: str | Path) -> None:
        """Write the report as one HTML page."""
        from secateur.html import write_html  # jinja2 and plotly take a while to import

        write_html(self, path)

    def __repr__(self) -> str:
        """Return a summary: of at most 15 lines, unless there is more than usual to say."""
        title = f"{self.model} pruned by {self.method} to {self.budget}, repair: {self.repair or 'none'}"
        lines = [
            f"{name}: {before} -> {after}" + ("" if ratio is None else f" ({ratio:.2f}x)")
            for name, before, after, ratio in self._changes()[:CHANGES]
        ]
        if self.agreement is not None:
            lines.append(self._agreement())
        lines += [*self._removed(), *self.interface, *self._predictions(), *self._failures()]
        spent = ", ".join(f"{stage} {_seconds(x)}" for stage, x in self.seconds.items() if x >= SHORTEST)
        memory = "" if self.peak_memory is None else f"; peak memory {self.peak_memory / 2**30:.2f} GiB"
        return "\n  ".join([title, *lines, f"time: {spent}{memory}"])

    def _removed(self) -> Iterator[str]:
        """Describe what went: units, whole blocks, kinds of units."""
        had = sum(group["units"] for group in self.groups.values())
        kept = sum(group["kept"] for group in self.groups.values())
        yield f"units kept: {kept:,} of {had:,} in {len(self.groups)} groups; see result.plan"
        if blocks := self.notes.get("blocks gone"):
            yield f"whole blocks gone: {len(blocks)}; see report.notes"
        if self._has_kinds():
            yield self._kinds()

    def _predictions(self) -> Iterator[str]:
        """Describe what the plan predicted, and what was measured."""
        if "measured loss" in self.notes:
            predicted, measured = (self.notes.get(f"{how} loss") for how in ("predicted", "measured"))
            foreseen = f", predicted {predicted:.3g}" if predicted is not None else ""
            yield f"divergence of the outputs on batches kept apart: {measured:.3g}{foreseen}"
        for note in self.notes.get("latency", ()):
            yield describe_latency(note)

    def _failures(self) -> Iterator[str]:
        """Describe which groups, inputs and repairs failed."""
        if inexact := self.notes.get("inexact groups"):
            yield f"groups whole because they failed the check: {len(inexact)}; see report.notes"
        missing = [what for what in ("other inputs", "other batch size") if self.exactness.get(what) is False]
        if missing:
            yield f"the exactness check could not use: {', '.join(missing)}"
        for outcome in OUTCOMES:
            if count := len(self.failed_repairs(outcome)):
                yield f"repair {outcome} on {count} of {len(self.folds)} weights; see report.folds"

    def _has_kinds(self) -> bool:
        """Return whether the kinds say more than the number of all units."""
        return len(self.kinds) > 1 or "experts" in self.kinds

    def _kinds(self) -> str:
        """Describe what each kind of units gave."""
        total = max(self.before.cost.parameters, 1)
        gave = [
            f"{kind} {x['units'] - x['kept']:,} of {x['units']:,} ({x['parameters'] / total:.1%})"
            for kind, x in self.kinds.items()
        ]
        return f"units gone (parameters with them): {', '.join(gave)}"

    def _changes(self) -> list[tuple[str, str, str, float | None]]:
        """Return what changed: name, before, after, before / after."""
        rows: list[tuple[str, str, str, float | None]] = []
        if self.before.metric is not None and self.after.metric is not None:
            named = self.before.metrics or {"": self.before.metric}
            for where in named:
                a, b = (x.metrics.get(where, x.metric) for x in (self.before, self.after))
                what = f"{self.metric} on {where}" if where else str(self.metric)
                rows.append((what, f"{a:.4f}", f"{b:.4f}", None))
        parameters = self.before.cost.parameters
        for key, name in COSTS.items():
            a, b = getattr(self.before.cost, key), getattr(self.after.cost, key)
            if (key == "nonzero" and not self.masks) or (key == "body" and a in (None, parameters)):
                continue
            rows.append((name, f"{a:,}", f"{b:,}", _ratio(a, b)))
        for x, y in zip(self.before.latency, self.after.latency, strict=True):
            name = f"latency, batch {x.batch_size}, {x.threads} threads, median of {x.repeats} (quartiles)"
            rows.append((name, _milliseconds(x), _milliseconds(y), _ratio(x.median, y.median)))
        before, after = self.before.rates, self.after.rates
        if before is not None and after is not None:
            for what, slow, fast in (
                ("prefill", before.prefill, after.prefill),
                ("decode", before.decode, after.decode),
            ):
                rows.append((f"tokens per second, {what}", _rate(slow), _rate(fast), _ratio(fast, slow)))
        return rows

    def _agreement(self) -> str:
        """Describe how far the outputs are from the original's."""
        if self.agreement is None:
            return "outputs were not compared"
        same, largest = self.agreement.top1, self.agreement.largest
        text = (
            f"largest output difference: {largest:.3g} ({self.agreement.relative:.3g} of the largest output)"
        )
        return text if same is None else f"{text}; same top class: {same:.2%} of {self.agreement.examples}"


def _measurement(values: Mapping[str, Any]) -> Measurement:
    rows = tuple(Timing(**row) for row in values["latency"])
    rates = values.get("rates") and TokenRates(**values["rates"])
    return Measurement(ModelCost(**values["cost"]), values["metric"], rows, values.get("metrics", {}), rates)


def _ratio(before: float, after: float) -> float | None:
    return before / after if after else None


def _rate(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _seconds(x: float) -> str:
    return f"{x:.0f} s" if x >= 10 else f"{x:.2g} s"


def _milliseconds(x: Timing) -> str:
    return f"{1e3 * x.median:.3g} ms ({1e3 * x.lower:.3g} to {1e3 * x.upper:.3g})"
