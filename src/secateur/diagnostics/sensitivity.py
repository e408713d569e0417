"""What each group would cost at the output, and what it would save, if a part of it went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.allocation.amounts import Amounts
from secateur.batches import as_batches, split_off_guard
from secateur.core import (
    Budget,
    Bytes,
    InputError,
    LossCurve,
    Macs,
    NothingToPrune,
    Params,
    PruningGraph,
    StoreError,
    Units,
    brief,
)
from secateur.core.budget import as_budget
from secateur.core.jsonable import plain, versions
from secateur.core.paths import read_bounded
from secateur.diagnostics.figures import Json, figure, lines, palette_colour, section
from secateur.execution import check_seed
from secateur.latency_budget import with_tables
from secateur.methods import Method, find_method
from secateur.methods.base import SetMethod
from secateur.methods.contract import needs_of
from secateur.repair.checkpoint import fingerprint, hash_tensors
from secateur.repair.loss_curves import with_loss_curves
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace

__all__ = ["FILE", "SHARES", "GroupSensitivity", "Sensitivities", "measure_sensitivity"]

FILE = "sensitivity.json"
SHARES = (0.1, 0.25, 0.5, 0.75)  # of a group's units that go
SHOWN = 10  # groups in a repr
NAMES = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "milliseconds": "ms"}
TEXT = (
    "Each group is pruned alone, its readers are folded, and the outputs are compared with the original's on "
    "batches kept apart: the divergence is what the group costs. Beside it stands the share of the whole "
    "network's cost that goes with it. A weight between two groups counts for both, and costs of several "
    "groups about add up while they are small."
)


@dataclass(frozen=True)
class GroupSensitivity:
    """What it costs and saves to lose units of one group, all other groups whole.

    Attributes:
        size: Number of units.
        counts: Numbers of units kept in the trials, falling.
        losses: Divergence of the outputs from the original's at each.
        saved: ``"macs"``, ``"params"``, ``"bytes"``, ... -> the share of the whole network's that goes.
        together: Groups that must keep equally many units, and went with it.
    """

    size: int
    counts: tuple[int, ...]
    losses: tuple[float, ...]
    saved: Mapping[str, tuple[float, ...]]
    together: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Sensitivities:
    """What each group costs and saves; it prints as a table.

    Attributes:
        model: Class of the model.
        method: Name of the method whose order of units decides which go.
        groups: By group name (of groups that must keep equal counts, the first).
        whole: ``"macs"``, ``"params"``, ``"bytes"``, ... -> amount of the whole network.
        versions: Of Python, secateur, torch, numpy.
    """

    model: str
    method: str
    groups: Mapping[str, GroupSensitivity]
    whole: Mapping[str, float]
    versions: Mapping[str, str] = field(default_factory=versions)

    def within(self, loss: float) -> Units:
        """Return the budget that removes of each group the most that costs at most this divergence alone.

        Raises:
            InputError: If the divergence is not a number, or every removal that was tried costs more.
        """
        if isinstance(loss, bool) or not isinstance(loss, Real):
            raise InputError(f"a divergence is a number, such as 0.05; got {brief(loss)}")
        keep = {}
        for name, group in self.groups.items():
            fitting = [n for n, x in zip(group.counts, group.losses, strict=True) if x <= loss]
            if fitting:
                keep[name] = min(fitting) / group.size
        if not keep:
            least = min(x for group in self.groups.values() for x in group.losses)
            raise InputError(
                f"no group loses units within a divergence of {loss:g}; the least is {least:.3g}"
            )
        return Units(keep)

    def rows(self) -> list[Json]:
        """Return a row for each group and each share of it: units that go, the divergence, what it saves."""
        return [
            {
                "group": name,
                "units": group.size,
                "kept": count,
                "divergence": loss,
                **{f"{NAMES.get(unit, unit)} saved": shares[i] for unit, shares in group.saved.items()},
            }
            for name, group in self.groups.items()
            for i, (count, loss) in enumerate(zip(group.counts, group.losses, strict=True))
        ]

    def table(self) -> list[Json]:
        """Return a row for each group: the divergence at each share, and what half of the group saves."""
        rows = []
        for name, group in self.groups.items():
            gone = [1 - count / group.size for count in group.counts]
            half = int(np.argmin([abs(x - 0.5) for x in gone]))
            losses = dict(zip(SHARES, group.losses, strict=False))
            if len(group.counts) < len(SHARES):  # few units: several shares are one count
                nearest = [int(np.argmin([abs(x - share) for x in gone])) for share in SHARES]
                losses = {share: group.losses[i] for share, i in zip(SHARES, nearest, strict=True)}
            rows.append(
                {
                    "group": name,
                    "units": group.size,
                    **{f"-{share:.0%}": float(f"{losses[share]:.3g}") for share in SHARES},
                    **{f"{NAMES.get(u, u)}, -50%": f"{x[half]:.1%}" for u, x in group.saved.items()},
                }
            )
        return rows

    def to_dict(self) -> Json:
        """Return the sensitivities as JSON can hold them, with the section of a report page."""
        return plain({**asdict(self), "section": self.section()})

    def to_json(self) -> str:
        """Return the sensitivities as strict JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def section(self) -> Json:
        """Return the section of a report page: a line for each group, and the table."""
        unit = next(iter(self.whole))
        traces = [
            lines(
                [100 * x for x in group.saved[unit]],
                [max(x, 1e-9) for x in group.losses],
                name,
                palette_colour(i),
                mode="lines+markers",
            )
            for i, (name, group) in enumerate(self.groups.items())
        ]
        saved = f"{NAMES.get(unit, unit)} saved, % of the network"
        drawn = figure(traces, saved, "divergence of the outputs", yaxis={"type": "log"})
        return section(f"Sensitivity of {self.model}: what each group costs", TEXT, self.rows(), drawn)

    def to_html(self, path: str | Path) -> None:
        """Write the sensitivities as one HTML page."""
        from secateur.html import Section, write_html  # jinja2 and plotly take a while to import

        write_html((), path, title="What each group costs", sections=[Section(**self.section())])

    def __repr__(self) -> str:
        """Return the groups that cost least at half their units, at most 15 lines."""
        rows = sorted(self.table(), key=lambda row: row["-50%"])
        lines = [f"Sensitivity of {self.model}, {len(rows)} groups, units by {self.method}; least at half:"]
        lines += [
            "  " + ", ".join(f"{key} {value}" if key != "group" else str(value) for key, value in row.items())
            for row in rows[:SHOWN]
        ]
        return "\n".join([*lines, "rows(), table(), to_html(path) give all"])


def measure_sensitivity(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    method: str | Method | type = "matroid",
    costs: Sequence[Budget] = (),
    ignored_layers: Iterable[str | nn.Module] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Sensitivities:
    """Measure what it costs to lose 10, 25, 50 and 75 % of each group alone, and what it saves.

    It takes four forward passes of the batches kept apart for each group.

    Args:
        model: Any module that `torch.export` can export; it is not changed.
        example_inputs: What the model is called with.
        data: Batches, without labels if you like; the last fifth is kept apart to judge.
        method: The method whose order of units decides which go first.
        costs: More budgets, to show what they count besides multiply-accumulates, parameters and bytes:
            ``[Latency(0.5, batch=32)]`` measures the layers and shows milliseconds.
        ignored_layers: Modules, or names or patterns of modules, parameters or groups, whose units all stay.
        example_kwargs: More keyword arguments of the model.
        folder: Where ``sensitivity.json`` is kept; after an interruption, the groups that it has are not
            measured again.
        progress: Whether to show progress on a terminal.
        seed: Seed of every random choice.

    Raises:
        InputError: If an argument is invalid.
        NothingToPrune: If there are no groups.
        StoreError: If the folder cannot be written.

    Example:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = list(torch.randn(64, 4).split(16))
        >>> found = measure_sensitivity(mlp, torch.ones(2, 4), batches, progress=False)
        >>> found.groups["0"].counts, [round(x, 2) for x in found.groups["0"].saved["params"]]
        ((7, 6, 4, 2), [0.12, 0.24, 0.48, 0.72])
    """
    check_seed(seed)
    batches = as_batches(data)
    chosen = find_method(method)
    if not (isinstance(chosen, SetMethod) and chosen.orders_units()):
        raise InputError(
            f"{chosen.name!r} gives no order of units to remove them by: use 'matroid' or 'taylor'"
        )
    graph = trace(model, example_inputs, ignored_layers, example_kwargs)
    if not graph.groups:
        raise NothingToPrune("no group of units can be removed\n" + graph.describe_frozen())
    fitting, guard = split_off_guard(batches)
    cache = None if folder is None else _Cache(Path(folder), _key(model, chosen, batches, seed))
    needs = needs_of(chosen, Units(0.5)) | {"gram"}
    statistics = collect_statistics(model, graph, fitting, needs, seed)
    scores = chosen.unit_scores(graph, statistics)
    where = model, graph, fitting, guard
    known = {} if cache is None else cache.curves
    kept = [1 - share for share in SHARES]
    each = None if cache is None else cache.add
    curves = with_loss_curves(statistics, scores, *where, progress, kept=kept, known=known, each=each).losses
    budget = with_tables(as_budget([Macs(1.0), Params(1.0), Bytes(1.0), *costs]), model, graph)
    found = _sensitivity(type(model).__name__, chosen.name, graph, curves, budget)
    if cache is not None:
        cache.write(found)
    return found


def _sensitivity(
    model: str, method: str, graph: PruningGraph, curves: Mapping[str, LossCurve], budget: Budget
) -> Sensitivities:
    """Add the costs of each removal to its loss."""
    amounts = Amounts(graph, budget)
    units = [part.unit for part, x in zip(budget.parts, amounts.whole, strict=True) if x > 0]
    groups = {}
    for tied in graph.counted_together():
        curve = curves[tied[0].name]
        left = [amounts({g.name: np.arange(count) for g in tied}) for count in curve.counts]
        saved = {
            part.unit: tuple(float(1 - x[i] / amounts.whole[i]) for x in left)
            for i, part in enumerate(budget.parts)
            if part.unit in units
        }
        others = tuple(group.name for group in tied[1:])
        groups[tied[0].name] = GroupSensitivity(curve.size, curve.counts, curve.losses, saved, others)
    whole = {
        part.unit: float(x) for part, x in zip(budget.parts, amounts.whole, strict=True) if part.unit in units
    }
    return Sensitivities(model, method, groups, whole)


def _key(model: nn.Module, method: Method, batches: Sequence[Any], seed: int) -> str:
    """Return what a measurement depends on: the model, the method, the seed, the first batch of the data."""
    tensors = {str(i): x for i, x in enumerate(tree_leaves(next(iter(batches)))) if isinstance(x, Tensor)}
    return (
        f"{fingerprint(model)}, {method!r}, {len(batches)} batches, {hash_tensors(tensors)}, {seed}, {SHARES}"
    )


class _Cache:
    """The curves measured so far, in a file that is replaced whole after each group."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path, self._key = folder / FILE, key
        self.curves: dict[str, LossCurve] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stored = json.loads(read_bounded(self._path)) if self._path.exists() else {}
        except OSError as error:
            raise StoreError(f"{folder} cannot hold the sensitivities: {error}") from error
        except ValueError:
            stored = {}  # cut off while it was written: measured again
        if isinstance(stored, Mapping) and stored.get("key") == key:
            self.curves = {
                name: LossCurve(x["size"], tuple(x["counts"]), tuple(x["losses"]))
                for name, x in stored["curves"].items()
            }

    def add(self, name: str, curve: LossCurve) -> None:
        """Add a curve."""
        self.curves[name] = curve
        self.write()

    def write(self, found: Sensitivities | None = None) -> None:
        """Write the curves, and the sensitivities once all are there."""
        rest = {} if found is None else found.to_dict()
        curves = {name: asdict(curve) for name, curve in self.curves.items()}
        text = json.dumps(plain({"key": self._key, "curves": curves, **rest}), indent=1, allow_nan=False)
        draft = self._path.with_suffix(".tmp")
        try:
            draft.write_text(text, "utf-8")
            draft.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error
