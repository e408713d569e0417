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
import stat
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
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PlanError, StoreError
from secateur.core.indices import kept_shapes
from secateur.formats import fingerprint, weights
from secateur.formats.plan_json import decode, encode

FORMAT = 1
DOCUMENT = "plan.json"
REMEDY = "copy the folder anew, or save again"
ABANDONED = 86400.0  # seconds after which what a killed save left is removed
OURS = re.compile(r"(model|plan)-[0-9a-f]{16}\.safetensors")
MARK = re.compile(rb'\{"format": \d+,\s*"sha256": "')
FIELDS: dict[str, type | tuple[type, ...]] = {
    "files": dict,
    "files/model": dict,
    "model": dict,
    "model/class": str,
    "model/modules": dict,
    "model/training": list,
    "model/fixed": list,
    "model/ties": dict,
    "model/strides": dict,
    "plan": dict,
    "report": (dict, type(None)),
}
FILE_FIELDS = {"name": str, "bytes": int, "sha256": str}
FINGERPRINT_FIELDS = {"torch": str, "settings": dict}


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
        StoreError: The folder cannot be written or has a plan.json that is not ours, or the model holds
            what safetensors cannot.
    """
    place = weights.place_of(folder).resolve()
    with _writing(place):
        _refuse_foreign(place / DOCUMENT)
    left = kept_shapes(plan.graph, plan.keep)
    weights.check(model, left, "the model to be saved", "Save the model that this plan pruned")
    document, arrays = encode(plan)
    with _writing(place), _beside(place) as draft:
        files = {"model": _write(draft / "model", save_file, weights.collect_statistics(model))}
        if arrays:
            files["plan"] = _write(draft / "plan", save_arrays, arrays)
        body = {
            "about": plan.explain().splitlines(),
            "versions": dict(versions or {}),
            "files": files,
            "model": weights.describe(model),
            "fingerprint": fingerprint.take(model, plan.graph.example_inputs, plan.graph.example_kwargs),
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
        PlanError: The factory makes another model: other tensors, other modules, or with the saved
            weights other outputs.
        InputError: The factory fails, or makes no model.
    """
    place, body = weights.place_of(folder), _read(folder, "model", "plan")
    plan, fresh = _plan(place, body), _call(factory)
    remedy = f"{place / DOCUMENT} needs a factory that makes the model as it was before the pruning"
    weights.check(fresh, plan.graph.shapes, "the factory's model", remedy)
    try:
        small = shrink(fresh, plan, check=False)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PlanError(
            f"the plan in {place / DOCUMENT} cannot be replayed on {type(fresh).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error
    weights.fill(small, _opened(place, body["files"]["model"], load_file), body["model"], remedy)
    if "fingerprint" in body:
        fingerprint.compare(small, body["fingerprint"], remedy)
    return small


def load_plan(folder: str | Path) -> Plan:
    """Return the saved plan; its network holds no example inputs.

    Raises:
        StoreError: The folder is missing, damaged, or of a newer version.
    """
    return _plan(weights.place_of(folder), _read(folder, "plan"))


def load_report(folder: str | Path) -> dict[str, Any] | None:
    """Return the saved report as JSON holds it, or None where none was saved.

    Raises:
        StoreError: The folder is missing, damaged, or of a newer version.
    """
    return _read(folder)["report"]


def _call(factory: Callable[[], nn.Module]) -> nn.Module:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(f"factory must make the original model when called; got a {type(factory).__name__}")
    name = getattr(factory, "__qualname__", type(factory).__name__)
    try:
        made = factory()
    except Exception as error:
        raise InputError(
            f"the factory {name} failed: {type(error).__name__}: {error}. It is called without "
            "arguments and must return the original model"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"the factory {name} returned a {type(made).__name__}, not a torch.nn.Module")
    return made


# --- writing


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise StoreError(f"{path} is no file: move it, or save to another folder")
    with path.open("rb") as file:
        head = file.read(100)
    if not MARK.match(head):
        raise StoreError(
            f"{path} is not of an earlier save, and would be overwritten: move it, or save to another folder"
        )


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
    path.touch()
    usual = stat.S_IMODE(path.stat().st_mode)
    write(tensors, path)  # safetensors makes a file anew, for its owner alone
    path.chmod(usual)
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
    path = weights.place_of(folder) / DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        written, body = document["format"], document["body"]
        intact = hashlib.sha256(_canonical(body).encode()).hexdigest() == document["sha256"]
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: {folder} is no saved result") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
    if written != FORMAT:
        raise StoreError(f"{path} has format {written!r}, and this secateur reads {FORMAT}: upgrade secateur")
    if not intact:
        raise StoreError(f"{path} was changed since it was saved: {REMEDY}")
    _check_fields(path, body)
    for kind in kinds:
        if kind in body["files"]:
            _check_file(path.parent, body["files"][kind])
    return body


def _check_fields(path: Path, body: Any) -> None:
    _check_kinds(path, body, FIELDS)
    for name in body["files"]:
        _check_kinds(path, body, {f"files/{name}/{key}": kind for key, kind in FILE_FIELDS.items()})
    for name in ("training", "fixed"):
        for i, entry in enumerate(body["model"][name]):
            if not isinstance(entry, str):
                raise StoreError(f"{path}: field 'model/{name}/{i}' is no name: {REMEDY}")
    if "fingerprint" in body:
        found = {f"fingerprint/{key}": kind for key, kind in FINGERPRINT_FIELDS.items()}
        _check_kinds(path, body, {"fingerprint": dict, **found})


def _check_kinds(path: Path, body: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in fields.items():
        value = body
        for key in name.split("/"):
            if not isinstance(value, dict) or key not in value:
                raise StoreError(f"{path} has no field {name!r}: {REMEDY}")
            value = value[key]
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise StoreError(f"{path}: field {name!r} is a {type(value).__name__}, not a {wanted}: {REMEDY}")


def _check_file(place: Path, said: Mapping[str, Any]) -> None:
    path = place / said["name"]
    if not OURS.fullmatch(said["name"]):
        raise StoreError(f"{place / DOCUMENT} names {said['name']!r}, which no save writes: {REMEDY}")
    try:
        size = path.stat().st_size
        if size != said["bytes"]:
            raise StoreError(f"{path} has {size} bytes instead of {said['bytes']}: {REMEDY}")
        if _sha256(path) != said["sha256"]:
            raise StoreError(f"{path} was changed since it was saved: {REMEDY}")
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}): {REMEDY}") from error


def _plan(place: Path, body: Mapping[str, Any]) -> Plan:
    file = body["files"].get("plan")
    plan = decode(body["plan"], _opened(place, file, load_arrays) if file else {})
    if not isinstance(plan, Plan):
        raise StoreError(f"{place / DOCUMENT}: field 'plan' holds no plan: {REMEDY}")
    return plan


def _opened(place: Path, file: Mapping[str, Any], read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    path = place / file["name"]
    try:
        return read(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error}): {REMEDY}") from error


__all__ = ["load", "load_plan", "load_report", "save"]
