"""The page and the README's table of `benchmarks/real.py`, from the lines of its trials."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from readme_table import replace_between
from real_networks import NETWORKS, Network

from secateur.core.markdown import markdown_table

__all__ = ["read_rows", "write_page", "write_readme"]

Row = dict[str, Any]
Rows = Mapping[tuple[str, str, float], list[Row]]  # by label, repair and share that stays
IDENTITY = ("network", "method", "scope", "repair", "keep", "seed")
KEEPS = (0.9, 0.8, 0.7, 0.5)
COMPARED = 0.7  # the share at which the page shows costs, and compares criteria and allocations
LABELS = {
    ("torch-pruning", "local"): "Torch-Pruning, local",
    ("torch-pruning", "global"): "Torch-Pruning, global",
    ("random", "layer"): "random units",
    ("default", "default"): "Secateur",
}
OURS, PEERS = "Secateur", ("Torch-Pruning, local", "Torch-Pruning, global")
REPAIRS = {
    "none": "no repair",
    "batchnorm": "BatchNorm taken anew",
    "fold": "fold",
    "refit": "refit",
    "teacher": "refit and teacher",
}
START, END = "<!-- table of real networks: benchmarks/real.py -->\n", "<!-- end of real networks -->\n"
LESS = {"error", "kl"}  # metrics of which less is better
INTRODUCTION = """# Real networks

Networks with the weights that people use, and two that are trained here, with fewer multiply-accumulates.
Each is pruned by `secateur.prune(model, example, Macs(share), data)` with the library's defaults of
method and allocation, and the one plan is repaired in several ways. Beside it stand units removed at
random, the same share in every group, and Torch-Pruning 1.6.1 with its magnitude importance, in its local
and its global setting, with the share of channels that leaves the same multiply-accumulates.

- **No repair**, **fold**, **refit**: no training; calibration data without labels.
- **BatchNorm taken anew**: `secateur.update_bn` on the calibration data, for Torch-Pruning's networks.
- **Refit and teacher** (Torch-Pruning: BatchNorm taken anew, and teacher): then a fixed number of optimiser
  steps towards the original's outputs (`secateur.finetune(teacher=)`), the same for both tools, also
  without labels.
- Calibration and test data are different photographs, texts or words. A cell is the mean over draws of
  the calibration data, with the smallest and the largest value; without them there is one draw.
  Torch-Pruning's choice draws nothing.
- Costs are processor seconds of one thread on a machine that other work shares. The peak of the memory is
  that of the process, original and data included. Torch-Pruning's seconds are those of the last of the
  prunings that look for the share.

`python benchmarks/real.py --out build/real` runs what is missing;
`--write docs/real-networks.md` makes this page.
"""

CHOICES = """## Which criterion, and which allocation

All with the refit, at {} multiply-accumulates: what orders the units of a group, and what decides how many of
each group go. The defaults with data are the criterion "matroid" and the scope "loss".

"""


def read_rows(path: Path) -> list[Row]:
    """Return the newest result of each trial in a file of results."""
    found: dict[tuple[Any, ...], Row] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        values = json.loads(line)
        row = {**values["params"], "status": values["status"], "error": values["error"]}
        row |= {"memory": values["memory"], **(values["rows"][0] if values["rows"] else {})}
        found[tuple(row[key] for key in IDENTITY)] = row
    return list(found.values())


def write_page(page: Path, rows: list[Row]) -> None:
    """Write the page."""
    sections = [INTRODUCTION, _before(rows)]
    for name, network in NETWORKS.items():
        own = [row for row in rows if row["network"] == name]
        if own:
            sections.append(_section(network, own))
    page.write_text("\n".join([*sections, _choices(rows), _not_run(rows)]).rstrip() + "\n", "utf-8")


def write_readme(page: Path, rows: list[Row]) -> None:
    """Write the short table between its marks."""
    lines = []
    for name, network in NETWORKS.items():
        own = [row for row in rows if row["network"] == name]
        cells, metric = _by_cell(own), next(iter(network.metrics))
        title = f"{network.title}: {network.metrics[metric]}{_original(own, metric)}"
        plain, taught = (("none", "batchnorm"), "refit", ""), (("teacher",), "teacher", ", with a teacher")
        for theirs, ours, how in (plain, taught):
            pairs = [_pair(cells, keep, theirs, ours, metric) for keep in KEEPS]
            if any(mine != "-" for _, mine in pairs):
                values = map(" / ".join, pairs)
                lines.append({"": f"{title}{how}", **dict(zip(map(_percent, KEEPS), values, strict=True))})
    made = markdown_table(lines, right=[_percent(keep) for keep in KEEPS])
    replace_between(page, START, END, made + "\n")


def _pair(cells: Rows, keep: float, peer_repairs: Iterable[str], repair: str, metric: str) -> tuple[str, str]:
    """Return the best of Torch-Pruning's values, and ours."""
    peers = [row for key in product(PEERS, peer_repairs, [keep]) for row in cells.get(key, [])]
    best = min if metric in LESS else max
    theirs = best((row[metric] for row in _good(peers)), default=None)
    ours = _value(cells.get((OURS, repair, keep), []), metric)
    return "failed" if peers and theirs is None else _number(theirs), _number(ours)


def _original(rows: list[Row], metric: str) -> str:
    values = {row["original"][metric] for row in _good(rows) if row["original"]}
    return f" (original {_number(values.pop())})" if len(values) == 1 else ""


def _section(network: Network, rows: list[Row]) -> str:
    cells = _by_cell(rows)
    lines = [f"## {network.title}\n", f"{network.about}\n"]
    for metric, title in network.metrics.items():
        less = ", less is better" if metric in LESS else ""
        lines += [
            f"**{title[0].upper()}{title[1:]}**{less}{_original(rows, metric)}:\n",
            _metric_table(cells, metric),
            "",
        ]
    if costs := _cost_table(cells):
        lines += [f"Costs at {_percent(COMPARED)} multiply-accumulates:\n", markdown_table(costs), ""]
    return "\n".join(lines)


def _choices(rows: list[Row]) -> str:
    """Return the table of criteria and allocations, which the defaults were chosen by."""
    refitted: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["repair"] == "refit" and row["keep"] == COMPARED and row["method"] != "torch-pruning":
            default = {"method": "matroid", "scope": "loss"}
            method, scope = (default[key] if row[key] == "default" else row[key] for key in default)
            refitted[method, scope].append(row)
    table = []
    for (method, scope), found in sorted(refitted.items()):
        line = {"criterion": method, "scope": scope}
        for name, network in NETWORKS.items():
            metric = next(iter(network.metrics))
            given = [row for row in found if row["network"] == name]
            line[f"{network.title}, {network.metrics[metric]}"] = _spread(given, metric)
        table.append(line)
    return CHOICES.format(_percent(COMPARED)) + markdown_table(table) + "\n"


def _metric_table(cells: Rows, metric: str) -> str:
    table = []
    for label in LABELS.values():
        for repair, title in REPAIRS.items():
            line = {"": _name(label, repair, title)}
            line |= {_percent(keep): _spread(cells.get((label, repair, keep), []), metric) for keep in KEEPS}
            if any(value != "-" for value in list(line.values())[1:]):
                table.append(line)
    return markdown_table(table, right=[_percent(keep) for keep in KEEPS])


def _cost_table(cells: Rows) -> list[Row]:
    table = []
    for label in LABELS.values():
        for repair, title in REPAIRS.items():
            if rows := _good(cells.get((label, repair, COMPARED), [])):
                mean = {
                    key: fmean(row[key] for row in rows)
                    for key in (
                        "prune seconds",
                        "repair seconds",
                        "teacher seconds",
                        "memory",
                        "parameters",
                        "macs",
                    )
                }
                table.append(
                    {
                        "": _name(label, repair, title),
                        "prune, s": f"{mean['prune seconds']:.1f}",
                        "repair, s": f"{mean['repair seconds']:.1f}",
                        "teacher, s": f"{mean['teacher seconds']:.0f}",
                        "peak memory, MiB": f"{mean['memory']:.0f}",
                        "parameters left": f"{mean['parameters']:.0%}",
                        "MACs left": f"{mean['macs']:.1%}",
                    }
                )
    return table


def _before(rows: list[Row]) -> str:
    commits = sorted({row["commit"] for row in rows if "commit" in row})
    return f"The rows were run at {'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}.\n"


def _not_run(rows: list[Row]) -> str:
    """Return what failed, and what of the usual grid was not run."""
    lines = ["## What is missing\n"]
    errors: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] != "ok":
            label = _name(_label(row), row["repair"], REPAIRS[row["repair"]])
            error = " ".join(row["error"].split()).replace("|", "/")[:160]
            errors[NETWORKS[row["network"]].title, label, error].append(_percent(row["keep"]))
    for (network, label, error), keeps in errors.items():
        lines.append(f"- {network}, {label}, {', '.join(sorted(set(keeps)))}: failed with `{error}`")
    for name, network in NETWORKS.items():
        cells = _by_cell(row for row in rows if row["network"] == name)
        if not cells:
            lines.append(f"- {network.title}: not run.")
            continue
        absent = _absent(network, cells)
        if absent:
            lines.append(f"- {network.title}, not run: {'; '.join(absent)}.")
    return "\n".join(lines) + "\n"


def _absent(network: Network, cells: Rows) -> list[str]:
    absent = []
    for label in (*PEERS, "random units", OURS):
        for repair, title in REPAIRS.items():
            if repair in (("fold", "refit") if label in PEERS else ("batchnorm",)):
                continue
            if repair == "batchnorm" and not network.batchnorm:
                continue
            keeps = [keep for keep in KEEPS if (label, repair, keep) not in cells]
            if keeps:
                which = "" if len(keeps) == len(KEEPS) else f" at {', '.join(map(_percent, keeps))}"
                absent.append(f"{_name(label, repair, title)}{which}")
    return absent


def _by_cell(rows: Iterable[Row]) -> Rows:
    cells = defaultdict(list)
    for row in rows:
        cells[_label(row), row["repair"], row["keep"]].append(row)
    return dict(cells)


def _label(row: Row) -> str:
    known = LABELS.get((row["method"], row["scope"]))
    return known or f"{row['method']}, scope {row['scope']}"


def _name(label: str, repair: str, title: str) -> str:
    return f"{label}, {'teacher' if label in PEERS and repair == 'teacher' else title}"


def _good(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def _value(rows: list[Row], metric: str) -> float | None:
    values = [row[metric] for row in _good(rows)]
    return fmean(values) if values else None


def _spread(rows: list[Row], metric: str) -> str:
    if rows and not _good(rows):
        return "failed"
    values = [row[metric] for row in _good(rows)]
    if not values:
        return "-"
    spread = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
    return f"{_number(fmean(values))}{spread}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(keep: float) -> str:
    return f"{1 - keep:.0%} fewer"
