"""Write what the joint study found: ``python benchmarks/readme_headline.py docs/studies/joint.md README.md``.

Takes the sentences of the study's page that say what was compared and who stands first with each repair.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

START, END = "<!-- joint study: benchmarks/readme_headline.py -->\n", "<!-- end of joint study -->\n"
OPENINGS = re.compile(r"\d+ criteria on|No repair, \*\*|With the fold, \*\*|After a short fine-tuning, \*\*")


def headline(page: str) -> str:
    """Return the sentences as one Markdown paragraph."""
    paragraph = next(line for line in page.splitlines() if OPENINGS.match(line))
    sentences = re.split(r"(?<=\.) (?=[A-Z])", paragraph)
    return textwrap.fill(" ".join(s for s in sentences if OPENINGS.match(s)), 118) + "\n"


def main(study: str, page: str) -> None:
    """Replace what stands between the two marks."""
    text = Path(page).read_text("utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    made = headline(Path(study).read_text("utf-8"))
    Path(page).write_text(before + START + made + END + after, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
