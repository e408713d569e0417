"""Saved plans that somebody changed who can compute SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the body of a folder's plan.json, and its hash with it."""
    path = folder / "plan.json"
    body = json.loads(path.read_text())["body"]
    change(body)
    text = json.dumps(body, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{{"format": 1,\n"sha256": "{digest}",\n"body": {text}}}')
