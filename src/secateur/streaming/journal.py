"""The folder of an unfinished run: it holds finished parts only, so another run can continue from it.

Every file and folder is written under another name and then renamed.  The record of a block is written last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateur.core import StoreError
from secateur.core.jsonable import plain
from secateur.core.paths import flush
from secateur.formats.transformers import check_place, publish

__all__ = ["Journal", "sizes_of"]

RUN, RESULT, MODEL = "run.json", "result.json", "model"


class Journal:
    """What a run has finished.

    Args:
        place: The folder that the model gets in the end.
        identity: What decides the result: files, options, seeds, versions.  A run with another identity does
            not go on here.

    Attributes:
        folder: Where unfinished work is, next to `place`.
        model: Where the files of the model are written.

    Raises:
        StoreError: If the place is taken, or the folder is that of another run.
    """

    def __init__(self, place: Path, identity: Mapping[str, Any]) -> None:
        """Check what is there; write nothing."""
        self.place, self._identity = place, plain(identity)
        self.folder = place.with_name(f"{place.name}.unfinished")
        self.model = self.folder / MODEL
        before = self._read(RUN)
        if self.folder.exists() and before is None and any(self.folder.iterdir()):
            raise StoreError(f"{self.folder} holds other files: remove it, or give another --out")
        if before is not None and before != self._identity:
            changed = [k for k in {**before, **self._identity} if before.get(k) != self._identity.get(k)]
            raise StoreError(
                f"{self.folder} is of a run with another {', '.join(changed)} (there: "
                f"{', '.join(str(before.get(k))[:80] for k in changed)}): repeat that command, remove the "
                "folder, or give another --out"
            )
        if self.result() is None:
            check_place(place)

    def start(self) -> None:
        """Make the folder, if this run has none yet."""
        with self.writing():
            self.model.mkdir(parents=True, exist_ok=True)
            if self._read(RUN) is None:
                self._write_json(self.folder / RUN, self._identity)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Explain an error of the disk."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"cannot write into {self.folder}: {error}. What was finished stays there: make space, and "
                "give the same command again"
            ) from error

    # --- what is finished

    def done(self) -> int:
        """Return how many blocks are finished."""
        return len(list(self.folder.glob("block-*.json")))

    def record(self, number: int) -> dict[str, Any]:
        """Return what `finish` was given for a block."""
        return json.loads(self._record(number).read_text())

    def result(self) -> dict[str, Any] | None:
        """Return what `complete` was given, or None."""
        return self._read(RESULT)

    def hidden(self, number: int) -> list[Path]:
        """Return the files of the hidden states before a block, one for each batch, if there are any."""
        return sorted(self._hidden(number).glob("*.safetensors"))

    # --- writing

    def write_shard(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file of the model, unless it is there."""
        if not (self.model / name).exists():
            _write_tensors(self.model / name, tensors)

    def write_hidden(self, number: int, batches: Iterator[Mapping[str, Tensor]]) -> None:
        """Write the hidden states before a block."""
        draft = self.folder / "hidden.tmp"
        for old in (draft, self._hidden(number)):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir()
        for batch, tensors in enumerate(batches):
            _write_tensors(draft / f"{batch:05d}.safetensors", tensors)
        draft.rename(self._hidden(number))

    def finish(self, number: int, record: Mapping[str, Any]) -> None:
        """Note that a block is finished, and drop what only it needed."""
        self._write_json(self._record(number), plain(record))
        shutil.rmtree(self._hidden(number), ignore_errors=True)

    def complete(self, result: Mapping[str, Any]) -> None:
        """Note the result, give the model its place, and remove the folder."""
        if self.result() is None:
            self._write_json(self.folder / RESULT, plain(result))
        if self.model.exists():
            publish(self.model, self.place)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hidden(self, number: int) -> Path:
        return self.folder / f"hidden-{number:05d}"

    def _record(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}.json"

    def _read(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error}. Remove {self.folder}") from error

    @staticmethod
    def _write_json(path: Path, value: Any) -> None:
        draft = path.with_name(f"{path.name}.tmp")
        draft.write_text(json.dumps(value), encoding="utf-8")
        flush(draft)
        draft.replace(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    save_file({name: x.contiguous() for name, x in tensors.items()}, draft, {"format": "pt"})
    flush(draft)
    draft.replace(path)


def sizes_of(files: Sequence[Path]) -> dict[str, list[int]]:
    """Return the size and the time of each file, which say whether it is the same file."""
    return {file.name: [(x := file.stat()).st_size, x.st_mtime_ns] for file in files}
