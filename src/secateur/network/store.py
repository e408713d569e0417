"""Saved results: a folder with safetensors files and one plan.json that says what belongs to it.

plan.json is the commit: it names the other files by content and holds their SHA-256, and its own.  A
new folder is prepared beside its place and moved there whole; in a folder that exists, the new files
are added under new names, plan.json is replaced, and only then what the old one named is removed.
So a reader finds the old result or the new one, whenever the writer dies.  Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.core import InputError, Plan, PlanError, StoreError
from secateur.network import weights
from secateur.network.codec import decode, encode
from secateur.network.compose import shapes
from secateur.network.surgery import shrink

FORMAT = 1
DOCUMENT = "plan.json"
REMEDY = "copy the folder anew, or save again"
ABANDONED = 86400.0  # seconds after which what a killed save left is removed
OURS = re.compile(r"(model|plan)-[0-9a-f]{16}\.safetensors")


def save(
    folder: str | Path,
    model: nn.Module,
    plan: Plan,
    report: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write a pruned model, its plan and its report; after a failure the folder is as it was.

    Args:
        folder: Made if need be.  Files in it that are not of an earlier save stay.
        model: The pruned model.
        plan: The plan that it was shrunk by.
        report: What JSON can hold, kept beside the plan.
        versions: Of the software, for the reader.

    Raises:
        PlanError: The model is not what the plan leaves.
        StoreError: The folder cannot be written, or the model holds what safetensors cannot.
    """
    place = Path(folder).resolve()
    left = shapes(plan.network, plan.keep)
    weights.check(model, left, "the model to be saved", "Save the model that this plan pruned")
    document, arrays = encode(plan)
    with _writing(place), _beside(place) as draft:
        files = {"model": _write(draft / "model", save_file, weights.collect(model))}
        if arrays:
            files["plan"] = _write(draft / "plan", save_arrays, arrays)
        body = {
            "about": plan.explain().splitlines(),
            "versions": dict(versions or {}),
            "files": files,
            "model": weights.describe(model),
            "plan": document,
            "report": report,
        }
        _write_document(draft / DOCUMENT, body)
        _commit(draft, place)


def load(folder: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Return the saved model, built by replaying the plan on a fresh instance of the original class.

    Args:
        folder: A folder that `save` wrote.
        factory: Makes the model as it was before the pruning; its weights do not matter.

    Returns:
        The model, on the device of the factory's, with the saved weights, buffers, ties and mode.

    Raises:
        StoreError: The folder is missing, damaged, or of a newer version.
        PlanError: The factory makes another model.
    """
    place, body = Path(folder), _read(folder, "model", "plan")
    plan = _plan(place, body)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(f"factory must make the original model when called; got a {type(factory).__name__}")
    fresh = factory()
    if not isinstance(fresh, nn.Module):
        raise PlanError(f"the factory returned a {type(fresh).__name__}, not a torch.nn.Module")
    remedy = f"{place / DOCUMENT} needs a factory that makes the model as it was before the pruning"
    weights.check(fresh, plan.network.shapes, "the factory's model", remedy)
    small = shrink(fresh, plan, check=False)
    weights.fill(small, _tensors(place, body), body["model"], remedy)
    return small


def load_plan(folder: str | Path) -> Plan:
    """Return the saved plan; its network holds no example inputs.

    Raises:
        StoreError: The folder is missing, damaged, or of a newer version.
    """
    return _plan(Path(folder), _read(folder, "plan"))


def load_report(folder: str | Path) -> dict[str, Any] | None:
    """Return the saved report as JSON holds it, or None where none was saved.

    Raises:
        StoreError: The folder is missing, damaged, or of a newer version.
    """
    return _read(folder)["report"]


# --- writing


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{place} is a file")
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot save to {place}: {error}. What was there is as it was; choose a folder that can be "
            "written, with enough space"
        ) from error


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    where = place if place.is_dir() else place.parent
    for left in where.glob(f".{escape(place.name)}-*.tmp"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    draft = where / f".{place.name}-{uuid4().hex}.tmp"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, write: Callable[[Any, Path], None], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Write tensors to a file whose name follows from its content, so that no other content takes it."""
    write(tensors, path)
    digest = _sha256(path)
    named = path.rename(path.with_name(f"{path.name}-{digest[:16]}.safetensors"))
    _flush(named)
    return {"name": named.name, "bytes": named.stat().st_size, "sha256": digest}


def _write_document(path: Path, body: Mapping[str, Any]) -> None:
    text = _canonical(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{{"format": {FORMAT},\n"sha256": "{digest}",\n"body": {text}}}', encoding="utf-8")
    _flush(path)


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, allow_nan=False, separators=(",", ":"))


def _commit(draft: Path, place: Path) -> None:
    if not place.exists():
        _flush(draft)
        draft.replace(place)
        _flush(place.parent)
        return
    stale, current = _stale(place), {file.name for file in draft.iterdir()}
    for name in sorted(current - {DOCUMENT}):
        (draft / name).replace(place / name)
    _flush(place)
    (draft / DOCUMENT).replace(place / DOCUMENT)
    _flush(place)
    for name in stale - current:
        (place / name).unlink(missing_ok=True)


def _stale(place: Path) -> set[str]:
    """Return the files of earlier saves: those that plan.json names, and older ones that it does not.

    Younger ones may belong to a save that is under way.
    """
    path = place / DOCUMENT
    if not path.exists():
        return set()
    try:
        named = {file["name"] for file in json.loads(path.read_text("utf-8"))["body"]["files"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        named = set()
    limit = path.stat().st_mtime_ns
    ours = [file for file in place.iterdir() if OURS.fullmatch(file.name)]
    return {file.name for file in ours if file.name in named or file.stat().st_mtime_ns <= limit}


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading


def _read(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """Return the body of a folder's plan.json, after checking it and the files of these kinds."""
    path = Path(folder) / DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        written, body = document["format"], document["body"]
        intact = hashlib.sha256(_canonical(body).encode()).hexdigest() == document["sha256"]
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: {folder} is no saved result") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
    if written != FORMAT:
        raise StoreError(f"{path} has format {written!r}, and this secateur reads {FORMAT}: upgrade secateur")
    if not intact:
        raise StoreError(f"{path} was changed since it was saved: {REMEDY}")
    for kind in kinds:
        if kind in body["files"]:
            _check_file(path.parent, body["files"][kind])
    return body


def _check_file(place: Path, said: Mapping[str, Any]) -> None:
    path = place / said["name"]
    try:
        size = path.stat().st_size
        if size != said["bytes"]:
            raise StoreError(f"{path} has {size} bytes instead of {said['bytes']}: {REMEDY}")
        if not OURS.fullmatch(path.name) or _sha256(path) != said["sha256"]:
            raise StoreError(f"{path} was changed since it was saved: {REMEDY}")
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}): {REMEDY}") from error


def _plan(place: Path, body: Mapping[str, Any]) -> Plan:
    file = body["files"].get("plan")
    plan = decode(body["plan"], load_arrays(place / file["name"]) if file else {})
    if not isinstance(plan, Plan):
        raise StoreError(f"{place / DOCUMENT} holds no plan")
    return plan


def _tensors(place: Path, body: Mapping[str, Any]) -> dict[str, Tensor]:
    return load_file(place / body["files"]["model"]["name"])


__all__ = ["load", "load_plan", "load_report", "save"]
