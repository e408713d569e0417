"""What a model computes on inputs that can be made anew anywhere, and its modules' settings.

Tensors alone do not say which model they belong to: strides, slopes and what `forward` does have no shape.
So a fingerprint holds outputs, computed on the CPU in float64, where machines agree to many digits.  Its
inputs have the shapes of the traced example inputs; floats are a fixed sequence, integers are kept as they
are (they may be indices).  Where outputs cannot serve (random, not finite, too large, no example inputs),
the settings that the modules print decide, if the same torch printed them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.apply.exactness import deviation, in_float64
from secateur.core import PlanError, StoreError
from secateur.execution import duplicate
from secateur.formats.plan_json import decode, encode

TOLERANCE = 1e-6  # of the largest output
SAMPLES = 64  # numbers kept of each output
KEPT = 2**12  # integers kept of the inputs
LARGEST = {"parameters": 2**28, "inputs": 2**21}  # numbers beyond which outputs would take too long
GOLDEN = 0.6180339887498949


def take(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's fingerprint, as JSON can hold it.

    Args:
        model: Left as it is.
        args: Inputs that it was traced with; their shapes and types count, and integers.
        kwargs: Keyword inputs, likewise.
    """
    found = {"torch": torch.__version__, "settings": _settings(model)}
    try:
        inputs = _describe(args, kwargs)
        outputs = _outputs(model, inputs, 0)
        again = _outputs(model, inputs, 1)
    except Exception:  # whatever a user's forward raises: then there are no outputs to compare
        return found
    if not outputs or not all(bool(t.isfinite().all()) for t in outputs) or deviation(outputs, again) > 1e-9:
        return found
    samples = [[float(f"{x:.10g}") for x in _sample(t).tolist()] for t in outputs]
    return {**found, "inputs": inputs, "shapes": [list(t.shape) for t in outputs], "outputs": samples}


def compare(model: nn.Module, said: Mapping[str, Any], remedy: str) -> None:
    """Compare a model with a fingerprint.

    Raises:
        PlanError: The model computes something else, or its modules have other settings.
        StoreError: This is no fingerprint.
    """
    try:
        saved = [torch.tensor(x, dtype=torch.float64) for x in said.get("outputs", ())]
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"the saved field 'fingerprint/outputs' holds no numbers: {error}") from error
    have = _settings(model)
    unlike = [name for name, words in said["settings"].items() if have.get(name, words) != words]
    hint = "".join(f". {name!r} has {have[name]}; saved: {said['settings'][name]}" for name in unlike[:3])
    if "outputs" not in said:
        if unlike and said["torch"] == torch.__version__:
            raise PlanError(f"the factory's model has other settings than the saved one{hint}. {remedy}")
        return
    try:
        outputs = _outputs(model, said.get("inputs"), 0)
    except Exception as error:
        raise PlanError(
            f"the factory's model does not run on inputs that the saved one took "
            f"({type(error).__name__}: {error}){hint}. {remedy}"
        ) from error
    shapes = [list(t.shape) for t in outputs]
    if shapes != said.get("shapes"):
        raise PlanError(
            f"the factory's model gives outputs of shapes {shapes}, and the saved one "
            f"{said.get('shapes')}{hint}. {remedy}"
        )
    off = deviation(saved, [_sample(t) for t in outputs])
    if off > TOLERANCE:
        raise PlanError(
            f"the factory's model computes something else than the saved one: with its weights, "
            f"outputs differ by {off:.1e} of the largest{hint}. {remedy}"
        )


def _settings(model: nn.Module) -> dict[str, str]:
    """Return what modules print of themselves, where a copy prints the same."""
    try:
        copied = dict(duplicate(model).named_modules())
        printed = {name: (m.extra_repr(), copied[name].extra_repr()) for name, m in model.named_modules()}
    except Exception:  # a model that cannot be copied or printed has no settings to compare
        return {}
    return {name: one for name, (one, other) in printed.items() if one and one == other}


def _describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    exact = sum(t.numel() for t in tensors if not t.is_floating_point())
    if not tensors or exact > KEPT or sum(t.numel() for t in tensors) > LARGEST["inputs"]:
        raise ValueError("inputs that are not kept")

    def tell(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        values = None if leaf.is_floating_point() else leaf.flatten().tolist()
        return {"tensor": str(leaf.dtype).removeprefix("torch."), "shape": list(leaf.shape), "values": values}

    document, beside = encode(tree_map(tell, (tuple(args), dict(kwargs))))
    if beside:
        raise ValueError("arrays among the inputs")
    return document


def _made(told: Any) -> Any:
    if not _is_told(told):
        return told
    if told["values"] is not None:
        return torch.tensor(told["values"], dtype=getattr(torch, told["tensor"])).reshape(told["shape"])
    place = torch.arange(1, math.prod(told["shape"]) + 1, dtype=torch.float64)
    return ((place * GOLDEN % 1 - 0.5) * math.sqrt(12)).reshape(told["shape"])


def _is_told(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"tensor", "shape", "values"}


def _outputs(model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    if sum(p.numel() for p in model.parameters()) > LARGEST["parameters"]:
        raise ValueError("too large")
    args, kwargs = tree_map(_made, decode(inputs, {}), is_leaf=_is_told)
    copied = duplicate(model).to("cpu", torch.float64).eval()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), in_float64():
        warnings.simplefilter("ignore")
        torch.random.default_generator.manual_seed(seed)
        leaves = tree_leaves(copied(*args, **kwargs))
    return [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _sample(output: Tensor) -> Tensor:
    flat = output.flatten()
    at = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), SAMPLES), dtype=torch.float64)
    return flat[at.round().long()].double()


__all__ = ["compare", "take"]
