"""ONNX files of pruned models, each compared with the model before it takes its place."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import CaptureError, ExactnessError, InputError, StoreError
from secateur.formats.weights import place_of
from secateur.tracing.export import copy_sharing_tensors, user_code_line, without_fused_attention
from secateur.tracing.trace import as_call

Args = tuple[Any, ...]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STACK = " See the stack trace for more information."
DULL = ("For ", "If you suspect", "(Refer to", "The error above", "The following call", "Caused by")
OTHER_BATCHES = (lambda n: 1, lambda n: n + 1, lambda n: 2 * n + 1)
LIMIT = 2**31 - 2**20  # protobuf holds 2 GiB: beyond it the weights lie in a file beside


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model as an ONNX file, after comparing it in onnxruntime with the model.

    Args:
        model: Any module; exported in evaluation mode, and left as it is.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keywords.
        path: The file, replaced if it exists; weights beyond 2 GiB go to a file of that name plus ``.data``.
        example_kwargs: Keyword inputs.
        dynamic_shapes: Which axes may vary, as `torch.onnx.export` takes it; none if None.
        tolerance: Largest difference accepted, relative to the largest finite value of the same output.

    Returns:
        The difference that was found.

    Raises:
        InputError: The packages of the extra ``onnx`` are missing, what was given is no model, or has a
            dtype that onnxruntime cannot take.
        CaptureError: torch cannot export the model, its reason is in the message; or not with an axis free
            that `dynamic_shapes` lets vary.
        ExactnessError: onnxruntime computes something else; nothing is written.
        StoreError: The file cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}: pip install 'secateur[onnx]'")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    args, kwargs = as_call(example_inputs, example_kwargs)
    tensors = [t for t in tree_leaves((args, kwargs, [*model.parameters()])) if isinstance(t, Tensor)]
    if any(t.dtype == torch.bfloat16 for t in tensors):
        raise InputError("onnxruntime cannot check bfloat16: export model.float() with float inputs")
    still = copy_sharing_tensors(model)
    place = place_of(path).absolute()
    draft = place.parent / f".{place.name}-{uuid4().hex}.tmp"
    try:
        draft.mkdir(parents=True)
        _export(still, args, kwargs, draft / place.name, dynamic_shapes)
        if dynamic_shapes is not None:
            _check_free(still, args, kwargs, draft / place.name, dynamic_shapes)
        difference = _difference(still, args, kwargs, draft / place.name)
        if not difference <= tolerance:
            how = f"by {difference:.1e} of an output's largest value; at most {tolerance:g} is accepted"
            other = "in the outputs' shapes, or in where they are NaN or infinite"
            raise ExactnessError(
                f"onnxruntime deviates from the model "
                f"{how if math.isfinite(difference) else other}. {place} was not written"
            )
        for file in sorted(draft.iterdir(), reverse=True):  # the .data file before the one that names it
            file.replace(place.parent / file.name)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return difference


def export_any_batch(model: nn.Module, example_inputs: Any, path: str | Path) -> bool:
    """Write a model as an ONNX file that takes any batch size, or if it cannot be, the one of the example.

    The first axis of each input is the batch.  The file is compared with the model at batches of one, of
    one more than the example's, and of one more than twice that: a shape that the code fixes divides none
    but multiples of the example's batch.

    Args:
        model: Any module.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keywords.
        path: The file.

    Returns:
        Whether it takes any batch size.

    Raises:
        SecateurError: As `export_onnx`.
    """
    args, kwargs = as_call(example_inputs)
    free = {0: torch.export.Dim("batch")}
    shapes = tree_map(lambda t: free if isinstance(t, Tensor) and t.ndim else None, kwargs or args)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "model.onnx"
        try:
            export_onnx(model, args, draft, kwargs, dynamic_shapes=shapes)
            varies = all(
                _agrees(copy_sharing_tensors(model), args, kwargs, draft, rows) for rows in OTHER_BATCHES
            )
        except (CaptureError, ExactnessError):
            varies = False
    export_onnx(model, args, path, kwargs, dynamic_shapes=shapes if varies else None)
    return varies


def _agrees(
    model: nn.Module, args: Args, kwargs: Mapping[str, Any], path: Path, rows: Callable[[int], int]
) -> bool:
    """Say whether file and model agree at another batch size; not where the model cannot take it."""

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        return leaf[torch.arange(rows(len(leaf)), device=leaf.device) % len(leaf)]

    more, keywords = tree_map(other, (args, dict(kwargs)))
    try:
        with torch.no_grad():
            model(*more, **keywords)
    except Exception:
        return False
    return _difference(model, more, keywords, path) <= TOLERANCE


def _export(model: nn.Module, args: Args, kwargs: Mapping[str, Any], path: Path, shapes: Any) -> None:
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    try:
        with without_fused_attention(), _quiet():
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=dict(kwargs),
                dynamo=True,
                verbose=False,
                external_data=size > LIMIT,
                dynamic_shapes=shapes,
            )
    except OSError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        place = user_code_line(cause)
        where = f" at {place}" if place else ""
        raise CaptureError(
            f"torch cannot export {type(model).__name__} to ONNX{where}: "
            f"{type(cause).__name__}: {_first_lines(cause)}"
        ) from error


def _first_lines(error: BaseException) -> str:
    """Return what an error of torch's says first, without colours, logs and advice for its authors."""
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines()]
    telling = [line.split(" For more info")[0] for line in lines if line and not line.startswith(DULL)]
    said, cause = " ".join(telling[:3]) or type(error).__name__, error.__cause__
    if cause is not None and said.endswith(STACK):
        return f"{said.removesuffix(STACK)} ({type(cause).__name__}: {_first_lines(cause)})"
    return said


def _check_free(model: nn.Module, args: Args, kwargs: Mapping[str, Any], path: Path, shapes: Any) -> None:
    """Refuse a file in which an axis has a fixed length that was to vary."""
    import onnx

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    free: dict[int, set[int]] = {}
    named = shapes if isinstance(shapes, Mapping) else dict(zip(bound, shapes, strict=False))
    _gather_free(dict(bound), named, free)
    tensors = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    inputs = onnx.load(path, load_external_data=False).graph.input
    for found, tensor in zip(inputs, tensors, strict=False):
        for axis in sorted(free.get(id(tensor), ())):
            size = found.type.tensor_type.shape.dim[axis]
            if size.HasField("dim_value"):
                raise CaptureError(
                    f"axis {axis} of input {found.name!r} is {size.dim_value} in the file, "
                    "though dynamic_shapes lets it vary: the model's code or weights fix it. "
                    "Leave it out of dynamic_shapes, or change the code"
                )


def _gather_free(value: Any, shapes: Any, free: dict[int, set[int]]) -> None:
    """Add, by the id of each tensor, the axes that dynamic shapes name."""
    if isinstance(value, Tensor):
        pairs = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes or ())
        fixed = (None, torch.export.Dim.AUTO, torch.export.Dim.STATIC)
        axes = {axis for axis, size in pairs if size not in fixed and not isinstance(size, int)}
        free[id(value)] = free.get(id(value), axes) & axes
    elif isinstance(value, Mapping) and isinstance(shapes, Mapping):
        for key in value:
            _gather_free(value[key], shapes.get(key), free)
    elif isinstance(value, (list, tuple)) and isinstance(shapes, (list, tuple)):
        for inner, said in zip(value, shapes, strict=False):
            _gather_free(inner, said, free)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and the exporter log and print; errors say what matters of it."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _run(path: Path, given: list[Any]) -> list[Any]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip((x.name for x in session.get_inputs()), given, strict=True)))
    except Exception as error:
        raise CaptureError(f"onnxruntime cannot run the exported model: {_first_lines(error)}") from error


def _difference(model: nn.Module, args: Args, kwargs: Mapping[str, Any], path: Path) -> float:
    leaves = tree_leaves((args, dict(kwargs)))
    found = _run(path, [t.detach().cpu().numpy() for t in leaves if isinstance(t, Tensor)])
    with torch.no_grad():
        wanted = [t.cpu().numpy() for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
    if len(wanted) != len(found):
        return math.inf
    return max((_apart(a, np.asarray(b)) for a, b in zip(wanted, found, strict=True)), default=0.0)


def _apart(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest difference of two arrays, relative to the largest finite value wanted.

    Infinite where shapes differ, or where NaN, inf and -inf are elsewhere.
    """
    if wanted.shape != found.shape:
        return math.inf
    finite = np.isfinite(wanted)
    alike = np.array_equal(wanted[~finite], found[~finite], equal_nan=True)
    if not alike or not np.isfinite(found[finite]).all():
        return math.inf
    a, b = wanted[finite].astype(np.float64), found[finite].astype(np.float64)
    return float(np.abs(a - b).max(initial=0)) / (float(np.abs(a).max(initial=0)) or 1.0)


__all__ = ["export_any_batch", "export_onnx"]
