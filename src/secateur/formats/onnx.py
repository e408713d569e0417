"""ONNX files of pruned models; each is compared with the model before it replaces an older file."""

from __future__ import annotations

import importlib.util
import math
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import CaptureError, ExactnessError, InputError, StoreError
from secateur.core.paths import check_replaceable, to_path
from secateur.execution import check_module
from secateur.tracing.export import copy_sharing_tensors, silenced, user_code_line, without_fused_attention
from secateur.tracing.trace import as_call

__all__ = ["export_any_batch", "export_onnx"]

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword inputs
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STACK = " See the stack trace for more information."
ADVICE = ("For ", "If you suspect", "(Refer to", "The error above", "The following call", "Caused by")
LIMIT = 2**31 - 2**20  # protobuf holds 2 GiB: larger weights go to a second file


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model as an ONNX file after comparing it in onnxruntime with the model.

    Args:
        model: Any module; exported in evaluation mode, and not changed.
        example_inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs.
        path: The file, replaced if it exists; weights beyond 2 GiB go to a file of that name plus ``.data``.
        example_kwargs: Keyword inputs.
        dynamic_shapes: Which axes may vary, as `torch.onnx.export` takes it; none if None.
        tolerance: Largest accepted difference, relative to the largest finite value of the same output.

    Returns:
        The difference.

    Raises:
        InputError: If the packages of the extra ``onnx`` are missing, `model` is not a module, or onnxruntime
            does not support a dtype.
        CaptureError: If torch cannot export the model, or an axis of `dynamic_shapes` cannot vary.
        ExactnessError: If onnxruntime computes something else; nothing is written.
        StoreError: If the file cannot be written.
    """
    args, kwargs = _check_arguments(model, example_inputs, example_kwargs)
    return _write(model, [(args, kwargs)], to_path(path), dynamic_shapes, tolerance)


def export_any_batch(model: nn.Module, example_inputs: Any, path: str | Path) -> bool:
    """Write a model as an ONNX file for any batch size or, if that fails, for the example's.

    The first axis of each input is the batch.  The file is also compared at another batch size, which a shape
    fixed in the code does not divide.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs.
        path: The file.

    Returns:
        Whether the file takes any batch size.

    Raises:
        SecateurError: As `export_onnx`.
    """
    call = _check_arguments(model, example_inputs, None)
    batch = {0: torch.export.Dim("batch")}
    shapes = tree_map(lambda t: batch if isinstance(t, Tensor) and t.ndim else None, call[1] or call[0])

    def repeat(leaf: Any) -> Any:
        """Return 2 n + 1 rows instead of n."""
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        return leaf[torch.arange(2 * len(leaf) + 1, device=leaf.device) % len(leaf)]

    try:
        _write(model, [call, tree_map(repeat, call)], to_path(path), shapes, TOLERANCE)
    except (CaptureError, ExactnessError):
        _write(model, [call], to_path(path), None, TOLERANCE)
        return False
    return True


def _check_arguments(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Call:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}: pip install 'secateur[onnx]'")
    check_module(model)
    args, kwargs = as_call(example_inputs, example_kwargs)
    tensors = [t for t in tree_leaves((args, kwargs, [*model.parameters()])) if isinstance(t, Tensor)]
    if any(t.dtype == torch.bfloat16 for t in tensors):
        raise InputError("onnxruntime cannot check bfloat16: export model.float() with float inputs")
    return args, dict(kwargs)


def _write(model: nn.Module, calls: list[Call], path: Path, shapes: Any, tolerance: float) -> float:
    """Export the model for the first call, compare it on all, and put the file in its place."""
    place, model = path.absolute(), copy_sharing_tensors(model)
    try:
        check_replaceable(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as folder:
            draft = Path(folder) / place.name
            _export(model, *calls[0], draft, shapes)
            difference = max(_difference(model, *call, draft) for call in calls)
            if not difference <= tolerance:
                how = f"by {difference:.1e} of an output's largest value (accepted: {tolerance:g})"
                if not math.isfinite(difference):
                    how = "in the outputs' shapes, or in where they are NaN or infinite"
                raise ExactnessError(f"onnxruntime deviates from the model {how}. {place} was not written")
            for file in sorted(draft.parent.iterdir(), reverse=True):  # .data before the file that names it
                file.replace(place.parent / file.name)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error}") from error
    return difference


def _export(model: nn.Module, args: Any, kwargs: Mapping[str, Any], path: Path, shapes: Any) -> None:
    """Write the file and check that the axes named in `shapes` vary in it."""
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    try:
        with without_fused_attention(), silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
        line = user_code_line(cause)
        raise CaptureError(
            f"torch cannot export {type(model).__name__} to ONNX{f' at {line}' if line else ''}: "
            f"{type(cause).__name__}: {_first_lines(cause)}"
        ) from error
    wanted = {x.__name__ for x in tree_leaves(shapes) if getattr(x, "__name__", None)}
    fixed = wanted - {size for x in _session(path).get_inputs() for size in x.shape}
    if fixed:
        raise CaptureError(
            f"{', '.join(sorted(fixed))} cannot vary, though dynamic_shapes names it: the model's code or "
            "weights fix its length. Leave it out of dynamic_shapes, or change the code"
        )


def _first_lines(error: BaseException) -> str:
    """Return the first lines of an exporter's error without colours, logs and advice for its authors."""
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines()]
    useful = [line.split(" For more info")[0] for line in lines if line and not line.startswith(ADVICE)]
    text, cause = " ".join(useful[:3]) or type(error).__name__, error.__cause__
    if cause is not None and text.endswith(STACK):
        return f"{text.removesuffix(STACK)} ({type(cause).__name__}: {_first_lines(cause)})"
    return text


def _session(path: Path) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CaptureError(f"onnxruntime cannot load the exported model: {_first_lines(error)}") from error


def _run(path: Path, inputs: list[Any]) -> list[Any]:
    session = _session(path)
    try:
        return session.run(None, dict(zip((x.name for x in session.get_inputs()), inputs, strict=True)))
    except Exception as error:
        raise CaptureError(f"onnxruntime cannot run the exported model: {_first_lines(error)}") from error


def _difference(model: nn.Module, args: Any, kwargs: Mapping[str, Any], path: Path) -> float:
    leaves = tree_leaves((args, dict(kwargs)))
    outputs = _run(path, [t.detach().cpu().numpy() for t in leaves if isinstance(t, Tensor)])
    try:
        with torch.no_grad():
            leaves = tree_leaves(model(*args, **kwargs))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptureError(
            f"{type(model).__name__} fails on inputs of another batch size: {reason}"
        ) from error
    expected = [t.cpu().numpy() for t in leaves if isinstance(t, Tensor)]
    if len(expected) != len(outputs):
        return math.inf
    pairs = zip(expected, outputs, strict=True)
    return max((_relative_difference(a, np.asarray(b)) for a, b in pairs), default=0.0)


def _relative_difference(expected: NDArray[Any], output: NDArray[Any]) -> float:
    """Return the largest difference of two arrays, relative to the largest finite value expected.

    Infinite if the shapes differ, or if NaN, inf and -inf are at different places.
    """
    if expected.shape != output.shape:
        return math.inf
    finite = np.isfinite(expected)
    same = np.array_equal(expected[~finite], output[~finite], equal_nan=True)
    if not same or not np.isfinite(output[finite]).all():
        return math.inf
    a, b = expected[finite].astype(np.float64), output[finite].astype(np.float64)
    return float(np.abs(a - b).max(initial=0)) / (float(np.abs(a).max(initial=0)) or 1.0)
