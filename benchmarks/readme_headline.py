"""Write what the joint study found: ``python benchmarks/readme_headline.py docs/studies/joint.md README.md``.

Takes from the study's page the statements that say what was compared and who stands first with each repair,
what the first with the fold can be told from, and the mean losses of the criteria that every network allows.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

START, END = "<!-- joint study: benchmarks/readme_headline.py -->\n", "<!-- end of joint study -->\n"
OPENINGS = re.compile(
    r"\d+ criteria on|No repair, \*\*|With the fold, \*\*|After a short fine-tuning, \*\*|"
    r"The best of a block|`matroid` is the default|Not compared here"
)
REPAIRS = {"none": "no repair", "fold": "fold", "finetune": "short fine-tuning"}


def headline(page: str) -> str:
    """Return what was compared, the losses as a table, and what can be said of them as a list."""
    statements = page.split("\n## ")[0].splitlines()
    lost = _lost(page)
    first = min(lost, key=lambda method: lost[method]["fold"])
    told = re.compile(rf"With the fold, over \d+ kinds of .*, {first} is ")
    scope, *words = (said for said in statements if OPENINGS.match(said) or told.match(said))
    items = [textwrap.fill(said, 118, initial_indent="- ", subsequent_indent="  ") for said in words]
    return "\n".join([textwrap.fill(scope, 118), "", *_table(lost), "", *items, ""])


def _lost(page: str) -> dict[str, dict[str, float]]:
    """Return the mean loss by method and repair, of the methods that have a figure for every block."""
    table = page[page.index("| repair | method | behind |") :].partition("\n\n")[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    whole = max(int(row["blocks"]) for row in rows)
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if int(row["blocks"]) == whole:
            found.setdefault(row["method"], {})[row["repair"]] = float(row["lost"])
    return found


def _table(lost: dict[str, dict[str, float]]) -> list[str]:
    least = {repair: min(values[repair] for values in lost.values()) for repair in REPAIRS}
    lines = [f"| points lost, mean | {' | '.join(REPAIRS.values())} |", "|---|---:|---:|---:|"]
    for method in sorted(lost, key=lambda method: lost[method]["fold"]):
        cells = [(lost[method][repair], least[repair]) for repair in REPAIRS]
        shown = [f"**{value:.1f}**" if value == best else f"{value:.1f}" for value, best in cells]
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return lines


def main(study: str, page: str) -> None:
    """Replace what stands between the two marks."""
    text = Path(page).read_text("utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    made = headline(Path(study).read_text("utf-8"))
    Path(page).write_text(before + START + made + END + after, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
