"""The claims of the four publications, each with a verdict and what shows it: docs/claims.md.

``python -m secateur_studies.claims docs/claims.md`` writes the page from claims.toml.  Evidence is a test,
``FILE::NAME`` below tests/, or a section of a page, ``PAGE#TITLE`` below docs/; a test checks that it exists.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from secateur.core.markdown import markdown_table

__all__ = ["VERDICTS", "Claim", "claims_page", "read_claims"]

VERDICTS = ("holds", "holds with conditions", "fails", "open")
HEAD = """<!-- Written by `python -m secateur_studies.claims docs/claims.md`; changes by hand are lost. -->
# The claims of the four publications

What each document states, whether it holds, and the test or the table that shows it. *Holds with conditions*:
true, but only with what the column beside it adds. *Open*: not decided here, with the reason. Verdicts on
mathematics rest on tests; those on accuracies rest on the studies at their default size, which is smaller
than the papers'.
"""


@dataclass(frozen=True)
class Claim:
    """A statement of a publication.

    Attributes:
        place: Where it is made.
        text: The statement, in short.
        verdict: One of `VERDICTS`.
        finding: What holds, what is missing, or why it fails.
        evidence: Tests and sections of pages.
    """

    place: str
    text: str
    verdict: str
    finding: str
    evidence: tuple[str, ...]


def read_claims() -> dict[str, tuple[Claim, ...]]:
    """Return the claims by the title of their document.

    Example:
        >>> sorted({claim.verdict for claims in read_claims().values() for claim in claims})
        ['fails', 'holds', 'holds with conditions', 'open']
    """
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return {
        document["title"]: tuple(Claim(**{**x, "evidence": tuple(x["evidence"])}) for x in document["claim"])
        for document in tomllib.loads(text)["document"]
    }


def claims_page() -> str:
    """Return the page as Markdown."""
    documents = read_claims()
    counts = Counter(claim.verdict for claims in documents.values() for claim in claims)
    parts = [HEAD, ", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS) + ".\n"]
    for title, claims in documents.items():
        parts += [f"## {title}\n", markdown_table([_row(claim) for claim in claims]) + "\n"]
    return "\n".join(parts)


def _row(claim: Claim) -> dict[str, str]:
    return {
        "claim": f"{claim.place}: {claim.text}",
        "verdict": claim.verdict,
        "what was found": claim.finding,
        "shown by": ", ".join(map(_link, claim.evidence)),
    }


def _link(evidence: str) -> str:
    if "::" in evidence:
        return f"`{evidence.partition('::')[2]}`"
    page, _, title = evidence.partition("#")
    return f"[{title}]({page})"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(claims_page(), encoding="utf-8")
