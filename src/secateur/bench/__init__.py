"""The bench: grids of cells that run in worker processes or on a cluster, resume, and lose nothing."""

from secateur.bench.cells import Cell, Record
from secateur.bench.grid import run_grid
from secateur.bench.worker import EngineError

__all__ = ["Cell", "EngineError", "Record", "run_grid"]
