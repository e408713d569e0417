"""Exactness: compare a shrunk model with the masked one, and find the operation that deviates."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.check_inputs import other_inputs
from secateur.apply.float64 import computing_in, copy_for_check, run
from secateur.core import BoolArray, CaptureError, ExactnessError, Group, InputError, Plan
from secateur.execution import copy_tensors, duplicate, tensors_by_name
from secateur.tracing.export import (
    ExportedModel,
    export_model,
    source_line,
    user_code_line,
)
from secateur.tracing.inside import record_calls
from secateur.tracing.propagate import TensorAxes
from secateur.tracing.trace import LabelledExport, export_with_labels
from secateur.views import as_called, narrow_example, view

__all__ = ["Exactness", "deviation", "is_exact", "verify", "verify_call"]

# The largest relative deviation that passes.  In float64 rounding stays far below it; in float32, which only
# serves models that do not run in float64, half of the digits must agree.
BOUNDS = {torch.float64: 1e-10, torch.float32: torch.finfo(torch.float32).eps ** 0.5}


def deviation(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest difference relative to the largest output.

    It is infinite if shapes or NaNs differ, or outputs that are not floating.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return float("inf")
            continue
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        finite = a.isfinite() & b.isfinite()
        if not torch.equal(a[~finite], b[~finite]) and not a[~finite].isnan().all():
            return float("inf")
        if finite.any():
            scale = a[finite].abs().max().clamp_min(torch.finfo(a.dtype).tiny)
            worst = max(worst, float((a[finite] - b[finite]).abs().max() / scale))
    return worst


@dataclass(frozen=True, eq=False)
class Exactness:
    """What a comparison of a shrunk model with the masked one found.

    Attributes:
        dtype: The type that both ran in.
        deviation: The largest difference, relative to the largest output.
        error: Why the shrunk model does not run, or None.
        other: Whether they were also compared on inputs of the check's own.  The masked model may refuse
            those, or give values that are not finite.
        reacts: Whether its outputs differ between the inputs, as far as that is known.
    """

    dtype: torch.dtype
    deviation: float
    error: Exception | None = None
    other: bool = False
    reacts: bool = True

    @property
    def passes(self) -> bool:
        """Whether the deviation is in the bound of the type."""
        return self.error is None and self.deviation <= BOUNDS[self.dtype]


def verify(masked: nn.Module, small: nn.Module, plan: Plan, device: Any = None) -> Exactness:
    """Compare a shrunk model with the masked one on the traced inputs, and on inputs of the check's own.

    They run in float64, or in float32 if the model has an operation without float64.  Then a copy of the
    shrunk model runs twice as it is.

    Raises:
        InputError: If the masked model runs in neither type, or if the device cannot be used.
        ExactnessError: If the deviation exceeds 1e-10 (in float32 3.5e-4) or the shrunk model does not run;
            the message names the operation.
    """
    compared = _compare(*_seen(masked, small, plan), *_example(plan), device, plan.graph.inside)
    kind = str(compared.dtype).removeprefix("torch.")
    if compared.error is not None:
        where = _diagnose(masked, small, plan)
        raise ExactnessError(
            f"the shrunk model does not run: {type(compared.error).__name__}: {compared.error}. {where}. "
            "Your model is unchanged; name the layer in ignored_layers to leave it whole, or keep "
            "counts that the operation takes (round_to=8)"
        ) from compared.error
    if not compared.passes:
        raise ExactnessError(
            f"the shrunk model deviates from the masked one by {compared.deviation:.1e} (relative, "
            f"{kind}; at most {BOUNDS[compared.dtype]:.2g} is accepted). {_diagnose(masked, small, plan)}. "
            "Your model is unchanged; name the layer in ignored_layers to leave it whole"
        )
    _check_runs(masked, as_called(small, plan), *_example(plan))
    return compared


def is_exact(masked: nn.Module, small: nn.Module, plan: Plan, device: Any = None) -> bool:
    """Return whether `verify` accepts a shrunk model, without a search for the cause if it does not."""
    try:
        if not _compare(*_seen(masked, small, plan), *_example(plan), device, plan.graph.inside).passes:
            return False
        _check_runs(masked, as_called(small, plan), *_example(plan))
    except ExactnessError:
        return False
    return True


def verify_call(
    masked: nn.Module,
    small: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    what: str,
    device: Any = None,
    expected: str = "the one in which their tensors are zero",
) -> float:
    """Compare two models on some inputs as `verify` does; `what` and `expected` name them in the message.

    Raises:
        InputError: If the masked model runs in neither type, or if the device cannot be used.
        ExactnessError: If the deviation exceeds the bound or the second model does not run.
    """
    compared = _compare(masked, small, args, kwargs, device)
    if not compared.passes:
        error = compared.error
        kind = str(compared.dtype).removeprefix("torch.")
        how = (
            f"deviates by {compared.deviation:.1e} (relative, {kind}; at most {BOUNDS[compared.dtype]:.2g} "
            f"is accepted) from {expected}"
            if error is None
            else f"does not run: {type(error).__name__}: {error}"
        )
        raise ExactnessError(f"{what} {how}. Your model is unchanged") from error
    _check_runs(masked, small, args, kwargs)
    return compared.deviation


def _seen(masked: nn.Module, small: nn.Module, plan: Plan) -> tuple[nn.Module, nn.Module]:
    """Return views of both models, which take the same inputs and give what must be equal."""
    interface = plan.graph.interface
    return view(masked, interface, masked=plan), view(small, interface, plan)


def _example(plan: Plan) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    return plan.graph.example_inputs, plan.graph.example_kwargs


def _compare(
    masked: nn.Module, small: nn.Module, args: Any, kwargs: Any, device: Any, inside: Sequence[str] = ()
) -> Exactness:
    """Run both models in the first type that the masked one runs in.

    What the submodules `inside` return is compared, too: the rest of the model may pass nothing of it on (a
    detector that finds no box).
    """
    device = None if device is None else _check_device(device)
    if any(p.is_meta for p in masked.parameters()):
        raise InputError("a model on the meta device has no values to compare: use check=False")
    refused = None
    attempts = [(dtype, False) for dtype in BOUNDS]
    for dtype, widened in attempts if device is not None else [(torch.float64, True), *attempts]:
        try:
            model = copy_for_check(masked, device, dtype, widened)
            with computing_in(dtype, widened):
                expected = run(model, args, kwargs, device, dtype, inside)
        except Exception as error:
            refused = None if widened else refused or error
            continue
        with computing_in(dtype, widened):
            others = other_inputs(args, kwargs)
            changed = any(
                a is not b for a, b in zip(*map(tree_leaves, (others, (args, dict(kwargs)))), strict=True)
            )
            other = _run_other(model, others, device, dtype, expected, inside) if changed else None
        del model
        try:
            model = copy_for_check(small, device, dtype, widened)
            with computing_in(dtype, widened):
                actual = run(model, args, kwargs, device, dtype, inside)
                actual += [] if other is None else run(model, *others, device, dtype, inside)
        except Exception as error:
            if widened:
                continue
            return Exactness(dtype, float("inf"), error)
        found = deviation(expected + (other or []), actual)
        return Exactness(dtype, found, None, other is not None, other is None or _differ(expected, other))
    raise InputError(
        f"{type(masked).__name__} does not run in float64 or float32 on its example inputs: "
        f"{type(refused).__name__}: {refused}. Check that model(*example_inputs) runs; check=False skips the "
        "comparison"
    ) from refused


def _run_other(
    model: nn.Module,
    inputs: tuple[Any, Mapping[str, Any]],
    device: Any,
    dtype: torch.dtype,
    expected: list[Tensor],
    inside: Sequence[str],
) -> list[Tensor] | None:
    """Return the outputs on inputs of the check's own, or None if the model cannot take them."""
    try:
        outputs = run(model, inputs[0], inputs[1], device, dtype, inside)
    except Exception:  # a user's forward may refuse values with any error
        return None
    if len(outputs) != len(expected):
        return None
    lost = any(a.isfinite().all() and not b.isfinite().all() for a, b in zip(expected, outputs, strict=True))
    return None if lost else outputs


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether floating outputs differ; True if there are none."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.is_floating_point()]
    return not pairs or any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


def _check_runs(masked: nn.Module, small: nn.Module, args: Any, kwargs: Any) -> None:
    """Run a copy of the shrunk model twice as it is: in its own mode and type, with its own caches.

    The comparison sets evaluation mode and switches caches off.  That may hide values of the old size
    which the model stored in an earlier call.
    """

    def run_twice(model: nn.Module) -> None:
        model = duplicate(model)
        with torch.no_grad(), torch.random.fork_rng():
            for _ in range(2):
                inputs, named = copy_tensors((args, dict(kwargs)))
                model(*inputs, **named)

    try:
        run_twice(small)
    except Exception as error:
        try:
            run_twice(masked)
        except Exception:
            return  # the inputs do not fit the model's own mode or type, whatever its size
        where = user_code_line(error)
        raise ExactnessError(
            "the shrunk model is exact in evaluation mode without a cache, but it does not run as it is: "
            f"{type(error).__name__}: {error}{' at ' + where if where else ''}. It may store values of the "
            "old size, or size its cache otherwise. Your model is unchanged; set config.use_cache = False if "
            "the model has it, or name the layer in ignored_layers to leave it whole"
        ) from error


def _check_device(device: Any) -> torch.device:
    try:
        usable = torch.ones((), device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"check_device {device!r} cannot be used: {reason}") from error
    if usable.type == "meta":
        raise InputError("check_device must be one that computes, such as 'cpu'; got 'meta'")
    return usable


def _diagnose(masked: nn.Module, small: nn.Module, plan: Plan) -> str:
    """Run both graphs side by side and name the first operation with an unexpected result."""
    args, kwargs = narrow_example(plan.graph, plan.keep, masked=True)
    narrow = narrow_example(plan.graph, plan.keep)
    try:
        if plan.graph.inside:
            masked, calls = record_calls(masked, plan.graph.inside, args, kwargs)
            small, narrow_calls = record_calls(small, plan.graph.inside, *narrow)
            args, kwargs, narrow = (calls,), {}, ((narrow_calls,), {})
        shrunk = export_model(small, *narrow)
    except (CaptureError, InputError) as error:
        return f"It fails at {user_code_line(error.__cause__ or error) or 'a line that is not known'}"
    labelled = export_with_labels(masked, args, kwargs, plan.graph.interface)
    whole, dead = labelled.exported, _dead_atoms(labelled, plan)
    expected = _values(whole, masked, args, kwargs)
    actual = _values(shrunk, small, *narrow)
    for node, other in zip(whole.graph_module.graph.nodes, shrunk.graph_module.graph.nodes, strict=False):
        if node.target != other.target and node.op == "call_function":
            return f"From {node.target} at {source_line(node)} on, it takes another path"
        a, b, state = expected.get(node.name), actual.get(other.name), labelled.states.get(node.name)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(state, TensorAxes):
            a = _alive(a, state, dead)
            name = whole.parameters.get(node.name)
            what = f"{node.target} at {source_line(node)}" if name is None else f"the parameter {name!r}"
            if a.shape != b.shape:
                return f"{what} gives {tuple(b.shape)} instead of {tuple(a.shape)}"
            if a.is_floating_point() and deviation([a.double()], [b.double()]) > 1e-3:
                return f"{what} gives other values"
    return "No single operation deviates by more than 1e-3 in the model's own precision"


def _values(exported: ExportedModel, model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Run an exported graph with a model's tensors; return every node's value up to a failure."""
    tensors = tensors_by_name(model)
    leaves = iter(tree_leaves((args, dict(kwargs))))
    interpreter = torch.fx.Interpreter(exported.graph_module)
    inputs = []
    for node in exported.graph_module.graph.nodes:
        if node.op == "placeholder":
            name = exported.parameters.get(node.name)
            if name in tensors:
                inputs.append(tensors[name])
            else:
                constant = node.name in exported.constants
                inputs.append(exported.constants[node.name] if constant else next(leaves))
    interpreter.garbage_collect_values = False
    with contextlib.suppress(RuntimeError, IndexError, TypeError, ValueError), torch.no_grad():
        interpreter.run(*inputs)
    return {n.name: v.detach() if isinstance(v, Tensor) else v for n, v in interpreter.env.items()}


def _alive(value: Tensor, state: TensorAxes, dead: BoolArray) -> Tensor:
    """Return the entries of a result of the masked model that the shrunk model still computes."""
    if state.rows:
        each = [replace(state, labels=(*state.labels[1:-1], label), rows=()) for label in state.rows]
        return torch.stack([_alive(x, row, dead) for x, row in zip(value, each, strict=True)])
    for axis, label in enumerate(state.labels):
        if label is not None and len(label) == value.shape[axis]:
            stays = np.flatnonzero(~dead[label].any(1))
            value = value.index_select(axis, torch.from_numpy(stays).to(value.device))
    return value


def _dead_atoms(labelled: LabelledExport, plan: Plan) -> BoolArray:
    """Mark the atoms of the units that the plan removes.

    The masked model is labelled without `ignored_layers`, so its groups may have other names than the plan's.
    They are the same if they own the same indices of the same axis.
    """

    def key(group: Group) -> tuple[Any, ...]:
        return tuple((s.tensor, s.axis, s.index.tobytes()) for s in group.slots[:1])

    roots = {key(family.group): family.roots for family in labelled.families}
    dead = np.zeros(labelled.atoms, dtype=bool)
    for group in plan.graph.groups:
        if key(group) in roots:
            dead[roots[key(group)][plan.removed(group.name)]] = True
    return dead
