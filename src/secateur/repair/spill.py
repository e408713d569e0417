"""Move the tensors of paused forward passes to disk while other passes run.

A paused pass keeps its tensors in local variables of the model's code, where nobody can replace them.  So the
storage behind a tensor is emptied and later filled again, in place, as FSDP does with parameters.  Only
tensors that were computed from the inputs of the pass are moved: others may be shared with other passes.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from secateur.core import InputError

__all__ = ["Spill"]


class Spill:
    """The tensors of several forward passes, and where they are.

    Args:
        limit: Bytes that may stay in memory; the batch that runs is always there whole.

    Example:
        >>> spill = Spill(limit=0)
        >>> x = torch.ones(4)
        >>> with spill.resident(0):
        ...     spill.start(0, [x])
        ...     y = x + 1
        ...     spill.track(0, [x], y)
        >>> y.untyped_storage().nbytes()
        0
        >>> with spill.resident(0):
        ...     y.tolist()
        [2.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, limit: float) -> None:
        """Start without tensors."""
        self.limit = limit
        self.written = 0  # bytes, in all
        self._tensors: dict[int, WeakIdKeyDictionary] = defaultdict(WeakIdKeyDictionary)
        self._given: set[int] = set()  # storages of the inputs
        self._sizes: dict[int, int] = {}
        self._gone: dict[int, list[tuple[Tensor, int]]] = {}  # batch -> emptied tensors, and their bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self, number: int, inputs: Any) -> None:
        """Record what a pass gets."""
        for x in _tensors(inputs):
            self._tensors[number][x] = None
            self._given.add(_address(x))

    def track(self, number: int, inputs: Any, results: Any) -> None:
        """Record what an operation of a pass made."""
        known = self._tensors[number]
        if any(x in known for x in _tensors(inputs)):
            for x in _tensors(results):
                known[x] = None

    @contextmanager
    def resident(self, number: int, changes: bool = True) -> Iterator[None]:
        """Keep the tensors of a pass in memory inside; then move them to disk if all together are too large.

        Args:
            number: The pass.
            changes: Whether the pass runs inside; else what is on disk stays valid.
        """
        emptied = self._gone.pop(number, [])
        if emptied:
            data = np.memmap(self._file(number), np.uint8, "r")
            offset = 0
            for x, size in emptied:
                x.untyped_storage().resize_(size)
                _bytes(x).copy_(torch.from_numpy(data[offset : offset + size].copy()))
                offset += size
        yield
        storages = self._storages(number)
        self._sizes[number] = sum(size for _, size in storages)
        in_memory = sum(size for n, size in self._sizes.items() if n not in self._gone)
        if in_memory > self.limit and storages:
            if changes or not emptied:
                self._write(number, storages)
            for x, _ in storages:
                x.untyped_storage().resize_(0)
            self._gone[number] = storages

    def _storages(self, number: int) -> list[tuple[Tensor, int]]:
        """Return one tensor for each storage that a pass alone keeps alive, with its bytes."""
        found = {_address(x): x for x in self._tensors[number] if _address(x) not in self._given}
        sizes = ((x, x.untyped_storage().nbytes()) for x in found.values() if x.untyped_storage().resizable())
        return [(x, size) for x, size in sizes if size]

    def _write(self, number: int, storages: list[tuple[Tensor, int]]) -> None:
        try:
            with self._file(number).open("wb") as file:
                for x, _ in storages:
                    _bytes(x).to("cpu", copy=True).numpy().tofile(file)  # numpy pins what it shares
        except OSError as error:
            size = self._sizes[number]
            raise InputError(
                f"cannot write {size} bytes of activations to {self._file(number).parent}: {error}. Free "
                "some space there or set TMPDIR, give fewer calibration batches, or raise the memory limit"
            ) from error
        self.written += sum(size for _, size in storages)

    def _file(self, number: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="secateur-")
        return Path(self._folder.name) / str(number)

    def close(self) -> None:
        """Delete the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _bytes(x: Tensor) -> Tensor:
    """Return the whole storage of a tensor as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
