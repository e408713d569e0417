"""Write the demonstration's table into README.md: ``python benchmarks/readme_table.py RUNS.json README.md``.

One row a method, one column a network: accuracy on held-out data after pruning, without and with fold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from secateur.cli.demo import pivot

START, END = "<!-- demo table: make table -->\n", "<!-- end of demo table -->\n"


def table(runs: list[dict[str, Any]]) -> str:
    """Return the table, the shares that stay, and why there are gaps, as Markdown."""
    rows = pivot(runs)
    networks = list(dict.fromkeys((row["data"], row["model"]) for row in rows))
    found = {(row["data"], row["model"], row["method"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        "| | " + " | ".join(f"{data}<br>{model}" for data, model in networks) + " |",
        "|---|" + "---:|" * len(networks),
        _line("before pruning", [_before(rows, network) for network in networks]),
    ]
    lines += [_line(method, [_pair(found[*network, method]) for network in networks]) for method in methods]
    for key, name in (("parameters", "parameters left"), ("macs", "MACs left"), ("speed", "speed, batch 64")):
        lines.append(_line(name, [_spread(rows, network, key) for network in networks]))
    return "\n".join([*lines, "", *_reasons(rows)]).rstrip() + "\n"


def _line(head: str, cells: list[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _of(rows: list[dict[str, Any]], network: tuple[str, str]) -> list[dict[str, Any]]:
    return [row for row in rows if (row["data"], row["model"]) == network and "before" in row]


def _before(rows: list[dict[str, Any]], network: tuple[str, str]) -> str:
    return f"{_of(rows, network)[0]['before']:.3f}"


def _pair(row: dict[str, Any]) -> str:
    values = [f"{row[key]:.3f}" if key in row else "-" for key in ("none", "fold")]
    return " / ".join(values) if "before" in row else "-"


def _spread(rows: list[dict[str, Any]], network: tuple[str, str], key: str) -> str:
    values = sorted(row[key] for row in _of(rows, network))
    if key == "speed":
        return f"{values[len(values) // 2]:.1f}x"
    words = list(dict.fromkeys(f"{value:.0%}" for value in (values[0], values[-1])))
    return " to ".join(words)


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "status" in row:
            why = row["status"].partition(":")[0]
            reasons.setdefault((row["method"], why), []).append(f"{row['model']} ({row['data']})")
    return [f"{method} on {', '.join(where)}: {why}." for (method, why), where in reasons.items()]


def replace_between(page: Path, start: str, end: str, made: str) -> None:
    """Replace what a page has between two marks."""
    before, rest = page.read_text("utf-8").split(start)
    page.write_text(before + start + made + end + rest.split(end)[1], "utf-8")


def main(runs: str, page: str) -> None:
    """Write the table between the two marks."""
    replace_between(Path(page), START, END, table(json.loads(Path(runs).read_text("utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
