"""The page of claims: every piece of evidence exists, and docs/claims.md is up to date."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from secateur_studies.claims import VERDICTS, Claim, claims_page, read_claims

ROOT = Path(__file__).parents[2]
ALL = [claim for claims in read_claims().values() for claim in claims]


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: f"{claim.place}: {claim.text}")
def test_what_shows_a_claim_exists(claim: Claim) -> None:
    assert claim.evidence and claim.verdict in VERDICTS
    for evidence in claim.evidence:
        if "::" in evidence:
            file, _, name = evidence.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        else:
            page, _, title = evidence.partition("#")
            lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
            assert any(line.lstrip("#") == f" {title}" for line in lines if line.startswith("#"))


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == claims_page()


def test_every_publication_has_claims_of_every_kind() -> None:
    for claims in read_claims().values():
        assert {"holds", "holds with conditions", "fails"} <= {claim.verdict for claim in claims}
