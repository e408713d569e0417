"""A fresh working folder for every test of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import NET

from secateur.cli import printing


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working folder with net.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(printing.out, "width", printing.WIDTH)  # xdist sets COLUMNS to 80
    (tmp_path / "net.py").write_text(NET)
    return tmp_path
