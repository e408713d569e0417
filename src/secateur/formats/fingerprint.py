"""What a saved model computes, so that a factory of another model with the same shapes is noticed.

Strides, slopes and the code of `forward` have no tensors.  So a fingerprint holds a sample of the outputs,
computed on the CPU in float64, where machines agree to many digits.  Its inputs have the shapes and dtypes of
the example inputs; their floats are replaced by a fixed sequence, other numbers are stored (they may be
indices).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.apply.deviation import deviation
from secateur.apply.float64 import in_float64
from secateur.core import PlanError
from secateur.execution import duplicate
from secateur.formats.plan_json import decode_value, encode_value

__all__ = ["MOST_PARAMETERS", "check_fingerprint", "describe_inputs", "make_inputs", "take_fingerprint"]

TOLERANCE = 1e-6  # of the largest output
SAMPLES = 64  # stored numbers of each output
STORED = 2**12  # stored numbers of the inputs
MOST_PARAMETERS, MOST_INPUTS = 2**28, 2**21  # above these, outputs would take too long
GOLDEN = 0.6180339887498949


def take_fingerprint(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's fingerprint as JSON; empty if its outputs are random, not finite or too large.

    Args:
        model: Not changed.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
    """
    try:
        inputs = describe_inputs(args, kwargs)
        outputs, again = _outputs(model, inputs), _outputs(model, inputs)
    except Exception:  # a user's forward may raise anything; then there are no outputs to compare
        return {}
    if not outputs or not all(bool(t.isfinite().all()) for t in outputs) or deviation(outputs, again) > 1e-9:
        return {}
    samples = [[float(f"{x:.10g}") for x in _sample(t).tolist()] for t in outputs]
    return {"inputs": inputs, "shapes": [list(t.shape) for t in outputs], "outputs": samples}


def check_fingerprint(model: nn.Module, saved: Mapping[str, Any], remedy: str) -> None:
    """Compare a model with a fingerprint that is not empty.

    Raises:
        PlanError: If the model does not run or computes something else; `remedy` ends the message.
    """
    try:
        outputs = _outputs(model, saved["inputs"])
    except Exception as error:
        raise PlanError(
            f"the factory's model fails on inputs that the saved model accepted "
            f"({type(error).__name__}: {error}). {remedy}"
        ) from error
    shapes = [list(t.shape) for t in outputs]
    if shapes != saved["shapes"]:
        raise PlanError(
            f"the factory's model returns outputs of shapes {shapes}, the saved model {saved['shapes']}"
            f". {remedy}"
        )
    expected = [torch.tensor(x, dtype=torch.float64) for x in saved["outputs"]]
    difference = deviation(expected, [_sample(t) for t in outputs])
    if difference > TOLERANCE:
        raise PlanError(
            f"the factory's model computes something else than the saved model: with the saved weights, "
            f"outputs differ by {difference:.1e} of the largest output. {remedy}"
        )


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a model's inputs as JSON: the shapes and types of floating tensors, the values of others.

    Raises:
        ValueError: If there are none, or they are too large.
    """
    tensors = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    stored = sum(t.numel() for t in tensors if not t.is_floating_point())
    if not tensors or stored > STORED or sum(t.numel() for t in tensors) > MOST_INPUTS:
        raise ValueError("these inputs cannot be stored")

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        values = None if leaf.is_floating_point() else leaf.flatten().tolist()
        return {"tensor": str(leaf.dtype).removeprefix("torch."), "shape": list(leaf.shape), "values": values}

    document, arrays = encode_value(tree_map(describe, (tuple(args), dict(kwargs))))
    if arrays:
        raise ValueError("arrays among the inputs are not stored")
    return document


def make_inputs(document: Any, floating: torch.dtype | None = None) -> tuple[Any, dict[str, Any]]:
    """Return inputs of a model that `describe_inputs` described, the same on every machine.

    Args:
        document: The description.
        floating: Type of the floating tensors; by default their own.

    Raises:
        ValueError: If they are too large, or have no known type.
    """
    described = decode_value(document, {})
    leaves = [x for x in tree_leaves(described, is_leaf=_is_described) if _is_described(x)]
    if sum(abs(math.prod(x["shape"])) for x in leaves) > MOST_INPUTS:
        raise ValueError(f"inputs of more than {MOST_INPUTS} numbers")
    args, kwargs = tree_map(lambda x: _make_input(x, floating), described, is_leaf=_is_described)
    return tuple(args), dict(kwargs)


def _make_input(described: Any, floating: torch.dtype | None) -> Any:
    if not _is_described(described):
        return described
    shape, values = described["shape"], described["values"]
    dtype = getattr(torch, str(described["tensor"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{described['tensor']!r} is not a type of torch")
    if values is not None:
        try:
            return torch.tensor(values, dtype=dtype).reshape(shape)
        except RuntimeError as error:
            raise ValueError(f"these are not {shape} values of type {dtype}: {error}") from error
    # Multiples of the golden ratio modulo 1 are spread evenly; scaled to mean 0 and variance 1.
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ((steps * GOLDEN % 1 - 0.5) * math.sqrt(12)).reshape(shape).to(floating or dtype)


def _is_described(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"tensor", "shape", "values"}


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    if sum(p.numel() for p in model.parameters()) > MOST_PARAMETERS:
        raise ValueError("the model is too large")
    args, kwargs = make_inputs(inputs, torch.float64)
    copied = duplicate(model).to("cpu", torch.float64).eval()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), in_float64():
        warnings.simplefilter("ignore")
        torch.random.default_generator.manual_seed(0)
        leaves = tree_leaves(copied(*args, **kwargs))
    return [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _sample(output: Tensor) -> Tensor:
    flat = output.flatten()
    index = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), SAMPLES), dtype=torch.float64)
    return flat[index.round().long()].double()
