"""Saved results: a folder with safetensors files and plan.json, which names and describes them.

Every save writes its files under new names and then replaces plan.json in one step: before that step
readers find the old result, after it the new one.  Last, the files of the old plan.json are removed.
plan.json holds the SHA-256 of each file and its own.  Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.apply.before_units import before_units
from secateur.apply.kept_tensors import check_shapes
from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PlanError, StoreError
from secateur.core.indices import kept_shapes
from secateur.core.paths import flush, read_bounded, to_path
from secateur.execution import one_at_a_time
from secateur.formats import model_tensors
from secateur.formats.fingerprint import check_fingerprint, take_fingerprint
from secateur.formats.plan_json import decode_value, encode_value
from secateur.views import narrow_example

__all__ = ["DOCUMENT", "REPORT", "load", "load_plan", "read_body", "read_report", "read_tensors", "save"]

FORMAT = 1
DOCUMENT = "plan.json"
REPORT = "report.json"
REMEDY = "copy the folder again, or save again"
FILE_NAME = re.compile(r"(model|plan)-[0-9a-f]{16}\.safetensors")
# The types in the body of a plan.json, by path.
TYPES = {
    ("plan",): dict,
    ("files",): dict,
    ("fingerprint",): dict,
    ("model",): dict,
    ("model", "modules"): dict,
    ("model", "training"): list,
    ("model", "fixed"): list,
    ("model", "ties"): dict,
    ("model", "strides"): dict,
}
DAMAGES = (LookupError, TypeError, ValueError, AttributeError)  # what reading JSON of another form raises
START = re.compile(rb'\{"format": \d+,\s*"sha256": "')
READERS: dict[str, Callable[[Path], dict[str, Any]]] = {"model": load_file, "plan": load_arrays}


@one_at_a_time
def save(
    folder: str | Path,
    model: nn.Module,
    plan: Plan,
    report: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    certificate: Mapping[str, Any] | None = None,
) -> None:
    """Write a pruned model, its plan and its report.

    If saving fails, the folder stays as it was.  If the process is killed, the old result stays, and a file
    ``model-....safetensors`` that plan.json does not name may remain.

    Args:
        folder: Created if missing.  Other files in it stay.
        model: The pruned model.
        plan: The plan that pruned it.
        report: A report as JSON.
        versions: Versions of the software.
        certificate: What `secateur.formats.certificate` made.

    Raises:
        PlanError: If the model is not the one that the plan leaves.
        StoreError: If the folder cannot be written, if it has a plan.json of another origin, or if the model
            has a tensor that safetensors cannot hold.
    """
    place = to_path(folder).resolve()
    expected = kept_shapes(plan.graph, plan.keep)
    check_shapes(model, expected, "the model to save", "Save the model that this plan pruned")
    tensors = model_tensors.gather_tensors(model)
    document, arrays = encode_value(plan)
    body = {
        "about": plan.explain().splitlines(),
        "versions": dict(versions or {}),
        "model": model_tensors.describe_model(model),
        "fingerprint": take_fingerprint(model, *narrow_example(plan.graph, plan.keep)),
        "plan": document,
        "report": report,
        "certificate": certificate,
    }
    written: list[Path] = []
    is_new = not place.exists()
    try:
        old = _replace_result(place, body, tensors, arrays, written)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot save to {place}: {error}. Nothing there has changed; choose a folder that can be "
            "written, with enough space"
        ) from error
    finally:
        if written:
            # After an interrupt, only plan.json says whether this was saved.
            named = _files_of_last_save(place)
            _remove([path for path in written if path not in named])
        if is_new:
            with suppress(OSError):
                place.rmdir()  # if it is empty
    _remove(old)


def _replace_result(
    place: Path, body: Mapping[str, Any], tensors: Any, arrays: Any, written: list[Path]
) -> list[Path]:
    """Write the files of a result, plan.json last; return the files of the result that it replaced.

    `written` gets each file before it is there, so that the caller can remove it after an error.
    """
    _files_of_last_save(place)  # refuses a folder of another origin early
    place.mkdir(parents=True, exist_ok=True)
    files = {"model": _write(place, "model", save_file, tensors, written)}
    if arrays:
        files["plan"] = _write(place, "plan", save_arrays, arrays, written)
    text = _to_json({**body, "files": files})
    digest = hashlib.sha256(text.encode()).hexdigest()
    written.append(draft := place / f".{DOCUMENT}-{uuid4().hex}.tmp")
    draft.write_text(f'{{"format": {FORMAT},\n"sha256": "{digest}",\n"body": {text}}}', encoding="utf-8")
    flush(draft)
    old = _files_of_last_save(place)
    draft.replace(place / DOCUMENT)
    return old


@one_at_a_time
def load(folder: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Return the saved model: the plan is applied to a new instance of the original class.

    Args:
        folder: A folder that `save` wrote.
        factory: Returns the model as it was before pruning; its weights do not matter.

    Returns:
        The model, on the device of the factory's, with the saved weights, buffers, ties and modes.

    Raises:
        StoreError: If the folder is missing, damaged, or of a newer version.
        PlanError: If the factory returns another model: with other tensors, other modules, or with other
            outputs once it has the saved weights.
        InputError: If the factory fails or does not return a model.
    """
    body, files = _read(folder, "model", "plan")
    path = to_path(folder) / DOCUMENT
    plan, fresh = _plan(path, body, files), _call(factory)
    remedy = f"{path} needs a factory that returns the model as it was before pruning"
    fresh = before_units(fresh, plan)
    check_shapes(fresh, plan.graph.shapes, "the factory's model", remedy)
    try:
        _check_sizes(fresh, plan)
        small = shrink(fresh, plan, check=False)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PlanError(
            f"the plan in {path} cannot be applied to the factory's {type(fresh).__name__}: "
            f"{type(error).__name__}: {error}. {remedy}"
        ) from error
    try:
        model_tensors.restore_tensors(small, files["model"], body["model"], remedy)
        settings = model_tensors.different_settings(small, body["model"])
    except DAMAGES as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
    hint = f"the factory's model has other settings than the saved one: {settings}"
    if "outputs" in body["fingerprint"]:
        check_fingerprint(small, body["fingerprint"], f"{hint}. {remedy}" if settings else remedy)
    elif settings:
        warnings.warn(f"{hint}. The outputs of this model cannot be compared", stacklevel=3)
    return small


def load_plan(folder: str | Path) -> Plan:
    """Return the saved plan; its graph holds no example inputs.

    Raises:
        StoreError: If the folder is missing, damaged, or of a newer version.
    """
    return _plan(to_path(folder) / DOCUMENT, *_read(folder, "plan"))


def read_body(folder: str | Path) -> dict[str, Any]:
    """Return what the plan.json of a folder holds, after checking its SHA-256 and its form.

    Raises:
        StoreError: If the folder is missing, damaged, or of a newer version.
    """
    return _read_document(to_path(folder) / DOCUMENT)


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Return the tensors of the saved model by their first names.

    Raises:
        StoreError: If the folder is missing, damaged, or of a newer version.
    """
    return _read(folder, "model")[1]["model"]


def read_report(folder: str | Path) -> dict[str, Any] | None:
    """Return the saved report as JSON, or None if none was saved.

    It is in the document, or in a separate file next to a model that transformers saved.

    Raises:
        StoreError: If the folder is missing, damaged, or of a newer version.
    """
    path = to_path(folder) / REPORT
    if not path.is_file() or (to_path(folder) / DOCUMENT).exists():
        return _read(folder)[0].get("report")
    try:
        return dict(json.loads(read_bounded(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def _call(factory: Callable[[], nn.Module]) -> nn.Module:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputError(
            f"factory must be a function that returns the original model; got a {type(factory).__name__}"
        )
    name = getattr(factory, "__qualname__", type(factory).__name__)
    try:
        model = factory()
    except Exception as error:
        raise InputError(
            f"the factory {name} failed: {type(error).__name__}: {error}. It is called without "
            "arguments and must return the original model"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"the factory {name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_sizes(model: nn.Module, plan: Plan) -> None:
    """Refuse size attributes that would change a class or a Python module instead of the model."""
    for size in plan.graph.sizes:
        holder: Any = model.get_submodule(size.module)
        *path, attribute = size.attribute.split(".")
        for name in path:
            holder = getattr(holder, name)
        if isinstance(holder, (type, ModuleType)) or any(x.startswith("__") for x in (*path, attribute)):
            raise ValueError(f"{size.attribute!r} of {size.module!r} is not an attribute of the model")


# --- writing


def _files_of_last_save(place: Path) -> list[Path]:
    """Return the files that an existing plan.json names.

    Raises:
        StoreError: If `save` did not write that plan.json.
    """
    path = place / DOCUMENT
    if not path.exists():
        return []
    if not path.is_file():
        raise StoreError(f"{path} is not a file: move it, or save to another folder")
    with path.open("rb") as file:
        start = file.read(100)
    if not START.match(start):
        raise StoreError(
            f"{path} was not written by an earlier save and would be overwritten: move it, or save to "
            "another folder"
        )
    try:
        return [_path_of(place, entry) for entry in _read_document(path)["files"].values()]
    except StoreError:
        return []  # damaged: it does not say which files belong to it


def _write(
    place: Path,
    kind: str,
    write: Callable[[Any, Path], None],
    tensors: Mapping[str, Any],
    written: list[Path],
) -> dict[str, Any]:
    """Write tensors to a file with a new name, added to `written`; return its entry for plan.json."""
    path = place / f"{kind}-{uuid4().hex[:16]}.safetensors"
    written.append(path)
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    write(tensors, path)
    path.chmod(mode)  # safetensors creates files that only the owner can read
    flush(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # it is gone, or a reader on Windows has it open
            path.unlink()


def _to_json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, allow_nan=False, separators=(",", ":"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading


def _read(folder: str | Path, *kinds: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the body of a folder's plan.json, and the tensors of the files of these kinds."""
    path = to_path(folder) / DOCUMENT
    body = _read_document(path)
    while True:
        entries = {kind: body["files"][kind] for kind in kinds if kind in body["files"]}
        try:
            return body, {kind: _read_file(path.parent, entries[kind], READERS[kind]) for kind in entries}
        except StoreError:
            before, body = body, _read_document(path)
            if body["files"] == before["files"]:  # else a save has replaced them meanwhile
                raise


def _read_document(path: Path) -> dict[str, Any]:
    """Return the body of a plan.json after checking its format and its SHA-256."""
    if not path.exists():
        raise StoreError(f"{path} does not exist: {path.parent} is not a saved result")
    try:
        document = json.loads(read_bounded(path))
        version, body = document["format"], document["body"]
        intact = hashlib.sha256(_to_json(body).encode()).hexdigest() == document["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
    if version != FORMAT:
        raise StoreError(f"{path} has format {version!r}; this secateur reads {FORMAT}: upgrade secateur")
    if not intact:
        raise StoreError(f"{path} was changed after it was saved: {REMEDY}")
    return _check_body(path, body)


def _check_body(path: Path, body: Any) -> dict[str, Any]:
    """Check the body of a plan.json and return it: a correct digest does not prove who wrote the file."""
    if isinstance(body, dict):
        body.setdefault("fingerprint", {})  # version 0.1 had none
    for names, kind in TYPES.items():
        value = body
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise StoreError(
                f"{path} is damaged: {'.'.join(names)} is a {type(value).__name__}, not a {kind.__name__}: "
                f"{REMEDY}"
            )
    for name, entry in body["files"].items():
        if not isinstance(entry, dict) or set(entry) != {"name", "bytes", "sha256"}:
            raise StoreError(f"{path} is damaged: it does not describe the file {name!r}: {REMEDY}")
    if "model" not in body["files"]:
        raise StoreError(f"{path} is damaged: it names no file of the model: {REMEDY}")
    return body


def _path_of(place: Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of a file that plan.json names; it must lie in the same folder."""
    if not FILE_NAME.fullmatch(str(entry["name"])):
        raise StoreError(f"{place / DOCUMENT} names {entry['name']!r}, which save does not write: {REMEDY}")
    return place / entry["name"]


def _read_file(
    place: Path, entry: Mapping[str, Any], read: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    path = _path_of(place, entry)
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise StoreError(f"{path} has {size} bytes instead of {entry['bytes']}: {REMEDY}")
        if _sha256(path) != entry["sha256"]:
            raise StoreError(f"{path} was changed after it was saved: {REMEDY}")
        return read(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a missing file as RuntimeError
        raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error}): {REMEDY}") from error


def _plan(path: Path, body: Mapping[str, Any], files: Mapping[str, dict[str, Any]]) -> Plan:
    """Return the plan in the body of a plan.json; the files of the folder bound how much it may describe."""
    named = [path, *(_path_of(path.parent, entry) for entry in body["files"].values())]
    size = sum(file.stat().st_size for file in named if file.is_file())
    plan = decode_value(body["plan"], files.get("plan", {}), size)
    if not isinstance(plan, Plan):
        raise PlanError(f"{DOCUMENT} holds a {type(plan).__name__} instead of a plan: {REMEDY}")
    return plan
