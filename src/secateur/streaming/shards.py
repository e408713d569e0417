"""The tensors of a transformers folder, read when they are needed.

Files are mapped into memory: a tensor takes memory when it is read, and frees it when it is dropped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.core import InputError, StoreError, shorten
from secateur.formats.model_tensors import tied_names
from secateur.pretrained import INDEX, ONE_FILE

__all__ = ["ShardReader"]


class ShardReader:
    """The safetensors files of a folder, as the model names their tensors.

    Args:
        folder: What `save_pretrained` wrote, in one file or in shards.
        model: The model that they belong to; its parameters may be on the meta device.

    Raises:
        StoreError: If a file is damaged.
        InputError: If a tensor is missing or has another shape than in the model.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Read the names and the shapes, but no values."""
        self.folder = folder
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        shapes, places = self._read_headers()
        tied = tied_names(model)
        self._places = dict[str, tuple[str, str]]()  # name -> file, and name there
        missing, misfits = [], []
        for name, tensor in model.state_dict().items():
            first = tied.get(name, name)
            names = [name, first, *(other for other, x in tied.items() if x == first)]
            there = next((x for x in names if x in shapes), None)
            if there is None:
                missing.append(name)
            elif shapes[there] != tuple(tensor.shape):
                misfits.append(f"{name} is {shapes[there]} there and {tuple(tensor.shape)} by the config")
            else:
                self._places[name] = places[there], there
        if missing or misfits:
            what = f"lacks {shorten(missing)}" if missing else shorten(misfits, "; ")
            raise InputError(
                f"{folder} does not fit {type(model).__name__}: {what}. Load and save it with transformers "
                "(save_pretrained)"
            )

    def _read_headers(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        shapes, places = dict[str, tuple[int, ...]](), dict[str, str]()
        for file in self.files():
            try:
                with safe_open(self.folder / file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  (it is not a mapping)
                        shapes[name], places[name] = tuple(opened.get_slice(name).get_shape()), file
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{self.folder / file} is damaged: {error}. Get this file again") from error
        return shapes, places

    def files(self) -> list[str]:
        """Return the names of the files."""
        if (self.folder / ONE_FILE).is_file():
            return [ONE_FILE]
        return sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors, in the model's types."""
        by_file = defaultdict(list)
        for name in names:
            by_file[self._places[name][0]].append(name)
        found = dict[str, Tensor]()
        for file, wanted in by_file.items():
            with safe_open(self.folder / file, "pt") as opened:
                for name in wanted:
                    found[name] = opened.get_tensor(self._places[name][1]).to(self._dtypes[name])
        return found

    @staticmethod
    def read_file(path: Path) -> dict[str, Tensor]:
        """Return all tensors of a file."""
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
