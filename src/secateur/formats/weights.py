"""Weights that the user has: safetensors files, files of `torch.save`, and sharded checkpoints.

A checkpoint often holds more than the weights (a step, an optimizer's state, a second copy of the weights),
and wrappers put a prefix before each name (``module.``, ``model.``, ``_orig_mod.``).  So a checkpoint is
searched for every mapping and every prefix whose tensors have the names and shapes of the model's.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.core import InputError, StoreError, shorten, unknown
from secateur.core.paths import read_bounded, to_path
from secateur.formats.model_tensors import tied_names

__all__ = ["load_weights", "split_key"]

DEPTH = 5  # of mappings in mappings that are searched
NEAR = 3  # missing names for which similar ones are searched
LONGEST = 200  # characters of a prefix, and of a name in a message
COMPILED = "_orig_mod."  # torch.compile puts it before the names of a compiled module
OPTIONAL = "num_batches_tracked"  # BatchNorm before torch 0.4.1 did not save it
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class StateDict:
    """A state dict found in a checkpoint.

    Attributes:
        key: Where it is: the keys of the mappings around it and the prefix, joined by ``/``.
        tensors: By the names that the model would use.
    """

    key: str
    tensors: Mapping[str, Tensor]


def split_key(text: str | Path) -> tuple[Path, str | None]:
    """Split ``file:key`` into the file and the key; a name without a key has the key None.

    A file that exists under the whole name wins, so paths may hold colons.

    Example:
        >>> split_key("missing.pt")[1] is None
        True
    """
    path = to_path(text)
    head, key = str(text), None
    while not Path(head).exists() and ":" in head:
        head, _, last = head.rpartition(":")
        key = last if key is None else f"{last}:{key}"
    return (Path(head), key) if head and Path(head).exists() else (path, None)


def load_weights(model: nn.Module, path: str | Path, key: str | None = None, strict: bool = True) -> None:
    """Fill a model in place with the weights of a checkpoint: all of them or, after an error, none.

    The state dict is found by the names and shapes of its tensors; a warning names it unless it is the whole
    file.  Tied tensors may be stored under one name or all.

    Args:
        model: The model.
        path: A safetensors file, a file of `torch.save` that holds only tensors and plain values, the index
            file of a sharded checkpoint, or a folder that transformers saved.
        key: Which state dict of the checkpoint, as in ``"model_state"``; only needed if several fit.
        strict: If False, names that only the model or only the checkpoint has are a warning, not an error.
            Shapes must fit in any case.

    Raises:
        InputError: If the path or the key is not valid, or the model has no weights.
        StoreError: If the file is missing or damaged, or if none or several of its state dicts fit the model.
    """
    file = _find_file(to_path(path))
    if not (key is None or isinstance(key, str)):
        raise InputError(f"key must be a str or None; got {type(key).__name__}")
    wanted = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    if not wanted:
        raise InputError(f"{type(model).__name__} has no weights to load")
    tied = {other: first for other, first in tied_names(model).items() if {other, first} <= set(wanted)}
    found = list(_state_dicts(_read(file), wanted, tied))
    if key is not None:
        named = [s for s in found if s.key == key or s.key.startswith(f"{key}/")]
        if not named:
            raise StoreError(f"{file}: {unknown('state dict', key, [s.key for s in found])}")
        found = named
    state = _choose(found, wanted, strict, file, type(model).__name__)
    if state.key not in (key or "", ""):
        warnings.warn(f"{file}: the weights were found under {state.key!r}", stacklevel=2)
    missing, extra = _missing(state, wanted), [name for name in state.tensors if name not in wanted]
    if missing or extra:
        warnings.warn(f"{file}: {_compare(state.tensors, wanted)}; the rest is loaded", stacklevel=2)
    try:
        model.load_state_dict({n: t for n, t in state.tensors.items() if n in wanted}, strict=False)
    except RuntimeError as error:
        raise StoreError(f"{file} cannot be loaded into {type(model).__name__}: {error}") from error


# --- finding the state dict


def _state_dicts(
    checkpoint: Any, wanted: Mapping[str, Tensor], tied: Mapping[str, str], key: str = "", depth: int = 0
) -> Iterator[StateDict]:
    """Yield the tensors of every mapping in a checkpoint, once for each prefix that leads to wanted names.

    The prefix is what stands before a wanted name: ``module.0.weight`` has the prefix ``module.`` if the
    model has ``0.weight``.  Without any wanted name the prefix is empty.
    """
    if isinstance(checkpoint, (list, tuple)):
        checkpoint = dict(enumerate(checkpoint))
    if not isinstance(checkpoint, Mapping) or depth > DEPTH:
        return
    tensors = {
        name.replace(COMPILED, ""): t
        for name, t in checkpoint.items()
        if isinstance(name, str) and isinstance(t, Tensor)
    }
    prefixes = [p for name in tensors for p in _prefixes(name) if name.removeprefix(p) in wanted]
    for prefix in dict.fromkeys(prefixes or [""] if tensors else []):
        part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        part |= {first: part[other] for other, first in tied.items() if other in part and first not in part}
        part |= {other: part[first] for other, first in tied.items() if first in part and other not in part}
        yield StateDict("/".join(x for x in (key, prefix) if x), part)
    for name, value in checkpoint.items():
        yield from _state_dicts(value, wanted, tied, f"{key}/{name}" if key else str(name), depth + 1)


def _prefixes(name: str) -> list[str]:
    """Return what may stand before a name, up to a limit: a long name must not fill the memory.

    Example:
        >>> _prefixes("module.0.weight")
        ['', 'module.', 'module.0.']
    """
    return [name[:i] for i in range(min(len(name), LONGEST)) if i == 0 or name[i - 1] == "."]


def _choose(
    found: list[StateDict], wanted: Mapping[str, Tensor], strict: bool, file: Path, model: str
) -> StateDict:
    """Return the only state dict that fits.

    Raises:
        StoreError: If none fits, or several do.
    """
    if not found:
        raise StoreError(f"{file} holds no tensors with names, so it is not a state dict")
    shared = {s.key: sum(name in wanted for name in s.tensors) for s in found}
    usable = [s for s in found if shared[s.key] and not _misfits(s.tensors, wanted)]
    fits = [s for s in usable if not _missing(s, wanted) and all(name in wanted for name in s.tensors)]
    if not fits and not strict and usable:
        most = max(shared[s.key] for s in usable)
        fits = [s for s in usable if shared[s.key] == most]
    if len(fits) == 1:
        return fits[0]
    if fits:
        keys = shorten([repr(s.key) for s in fits])
        raise StoreError(
            f"{file} holds {len(fits)} state dicts that fit {model}: {keys}. Choose one: "
            f"{file}:{fits[0].key} on the command line, key={fits[0].key!r} in Python"
        )
    raise StoreError(_describe_misfit(found, shared, wanted, file, model))


def _describe_misfit(
    found: list[StateDict], shared: Mapping[str, int], wanted: Mapping[str, Tensor], file: Path, model: str
) -> str:
    """Return the message that no state dict fits: how the nearest one differs, and what to try.

    `shared` has, for each key of a state dict, how many of the wanted names it holds.
    """
    best = max(found, key=lambda s: (shared[s.key], len(s.tensors)))
    where = f"{file}:{best.key}" if best.key else str(file)
    index = next(iter(file.parent.glob("*.index.json")), None)
    shard = f" If this is one file of several, give {index}." if index and file != index else ""
    others = [repr(s.key or "the whole file") for s in found if s is not best and shared[s.key]]
    also = f" It also holds {shorten(others)}." if others else ""
    return (
        f"{where} does not fit {model}: {_compare(best.tensors, wanted)}.{also}{shard} Give weights that "
        "were saved from this class with the same sizes, or load what fits with strict=False (--no-strict)"
    )


def _missing(state: StateDict, wanted: Mapping[str, Tensor]) -> list[str]:
    return [n for n in wanted if n not in state.tensors and not n.endswith(OPTIONAL)]


def _misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors whose shape or kind of number differs between the file and the model."""
    return [
        f"{name!r} is {_form(t)} in the file and {_form(wanted[name])} in the model"
        for name, t in tensors.items()
        if name in wanted and _form(t) != _form(wanted[name])
    ]


def _form(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = " sparse, quantized or without values"
    else:
        kind = (
            " complex" if tensor.is_complex() else "" if tensor.is_floating_point() else " integer or boolean"
        )
    return f"{tuple(tensor.shape)}{kind}"


def _compare(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Describe how the tensors of a file differ from a model's, with near matches of names."""
    only_file = sorted(name for name in tensors if name not in wanted)
    comparable = [name for name in only_file if len(name) < LONGEST]
    only_model: list[str] = []
    for name in (n for n in wanted if n not in tensors and not n.endswith(OPTIONAL)):
        near = get_close_matches(name, comparable, n=1) if len(only_model) < NEAR else []
        only_model.append(f"{name!r} (the file has {near[0]!r})" if near else repr(name))
    parts = {
        "only the file has": [repr(name[:LONGEST]) for name in only_file],
        "only the model has": only_model,
        "shapes differ:": _misfits(tensors, wanted),
    }
    return "; ".join(f"{what} {shorten(items)}" for what, items in parts.items() if items)


# --- reading files


def _find_file(path: Path) -> Path:
    """Return the file of weights; of a folder, the one that transformers wrote."""
    if path.is_file():
        return path
    if path.is_dir():
        files = [path / name for name in IN_FOLDER if (path / name).is_file()]
        if not files:
            raise StoreError(f"the folder {path} has no weights: none of {', '.join(IN_FOLDER)}")
        return files[0]
    raise StoreError(f"{path} is not a file" if path.exists() else f"{path} does not exist")


def _read(file: Path) -> Any:
    """Return what a checkpoint holds, without running code of it."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_torch(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoreError(
            f"{file} is neither a safetensors file ({error}) nor a file of torch.save: save the weights again"
        ) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(read_bounded(index))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies outside its folder")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise StoreError(f"{index} is not the index of a sharded checkpoint: {error}") from error
    shards = [_read(_find_file(index.parent / name)) for name in names]
    return {name: t for shard in shards if isinstance(shard, Mapping) for name, t in shard.items()}


def _read_torch(file: Path) -> Any:
    target = str(file.with_suffix(".state.pt"))
    if _is_torchscript(file):
        raise StoreError(
            f"{file} is a TorchScript archive: a compiled program with its weights. If you trust it, save "
            "its weights once:\n  import torch\n  torch.save(dict(torch.jit.load("
            f"{str(file)!r}, map_location='cpu').state_dict()), {target!r})"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch names the first class that is not allowed
        if refused is None:
            raise StoreError(
                f"{file} cannot be read: {type(error).__name__}: {str(error)[:LONGEST]}"
            ) from error
        raise StoreError(
            f"{file} holds Python objects besides tensors, which could run code when they are read (the "
            f"first: {refused[1]}). If you trust it, save its weights once:\n  import torch\n"
            f"  content = torch.load({str(file)!r}, map_location='cpu', weights_only=False)\n"
            "  # a whole model: content.state_dict(); a checkpoint: content['state_dict'] or another key\n"
            f"  torch.save(dict(content.state_dict()), {target!r})"
        ) from error


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
