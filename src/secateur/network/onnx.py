"""ONNX files of pruned models, each compared with the model before it takes its place."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import CaptureError, ExactnessError, InputError, StoreError
from secateur.network.capture import slow_paths, twin
from secateur.network.trace import as_call

Args = tuple[Any, ...]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
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
        tolerance: Largest difference accepted, relative to the largest output.

    Returns:
        The difference that was found.

    Raises:
        InputError: The packages of the extra ``onnx`` are missing, or a dtype that onnxruntime cannot take.
        CaptureError: torch cannot export the model; its reason is in the message.
        ExactnessError: onnxruntime computes something else; nothing is written.
        StoreError: The file cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}: pip install 'secateur[onnx]'")
    args, kwargs = as_call(example_inputs, example_kwargs)
    tensors = [t for t in tree_leaves((args, kwargs, [*model.parameters()])) if isinstance(t, Tensor)]
    if any(t.dtype == torch.bfloat16 for t in tensors):
        raise InputError("onnxruntime cannot check bfloat16: export model.float() with float inputs")
    still = twin(model)
    place = Path(path).absolute()
    draft = place.parent / f".{place.name}-{uuid4().hex}.tmp"
    try:
        draft.mkdir(parents=True)
        _export(still, args, kwargs, draft / place.name, dynamic_shapes)
        difference = _difference(still, args, kwargs, draft / place.name)
        if not difference <= tolerance:
            raise ExactnessError(f"onnxruntime deviates from the model by {difference:.1e} of its largest "
                                 f"output; at most {tolerance:g} is accepted. {place} was not written")
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
    shapes = tree_map(lambda leaf: free if isinstance(leaf, Tensor) and leaf.ndim else None, (args, kwargs))
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "model.onnx"
        try:
            export_onnx(model, args, draft, kwargs, dynamic_shapes=shapes[1] if kwargs else shapes[0])
            varies = all(_agrees(twin(model), args, kwargs, draft, rows) for rows in OTHER_BATCHES)
        except (CaptureError, ExactnessError):
            varies = False
    shapes = (shapes[1] if kwargs else shapes[0]) if varies else None
    export_onnx(model, args, path, kwargs, dynamic_shapes=shapes)
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
        with slow_paths(), _quiet():
            torch.onnx.export(
                model, args, path, kwargs=dict(kwargs), dynamo=True, verbose=False,
                external_data=size > LIMIT, dynamic_shapes=shapes,
            )
    except OSError:
        raise
    except Exception as error:
        raise CaptureError(f"torch cannot export {type(model).__name__} to ONNX: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter logs of packages that are not there."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _run(path: Path, given: list[Any]) -> list[Any]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip((x.name for x in session.get_inputs()), given, strict=True)))
    except Exception as error:
        raise CaptureError(f"onnxruntime cannot run the exported model: {error}") from error


def _difference(model: nn.Module, args: Args, kwargs: Mapping[str, Any], path: Path) -> float:
    leaves = tree_leaves((args, dict(kwargs)))
    found = _run(path, [t.detach().cpu().numpy() for t in leaves if isinstance(t, Tensor)])
    with torch.no_grad():
        wanted = [t.cpu().numpy() for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
    if [a.shape for a in wanted] != [b.shape for b in found]:
        return float("inf")
    scale = max(float(np.abs(a).max(initial=0)) for a in wanted) or 1.0
    pairs = zip(wanted, found, strict=True)
    return max(float(np.abs(a.astype(np.float64) - b).max(initial=0)) for a, b in pairs) / scale


__all__ = ["export_any_batch", "export_onnx"]
