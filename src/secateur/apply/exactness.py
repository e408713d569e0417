"""Exactness: compare a shrunk model with the masked one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.check_inputs import other_inputs, with_one_more_row
from secateur.apply.deviating_operation import find_deviating_operation
from secateur.apply.deviation import are_integers, deviation, differ
from secateur.apply.float64 import computing_in, copy_for_check, run
from secateur.core import ExactnessError, InputError, Plan
from secateur.execution import copy_tensors, duplicate
from secateur.tracing.export import user_code_line
from secateur.tracing.replay import compared_submodules
from secateur.views import as_called, view

__all__ = ["Exactness", "verify", "verify_call"]

# The largest relative deviation that passes.  In float64 rounding stays far below it; in float32, which only
# serves models that do not run in float64, half of the digits must agree.
Inputs = tuple[Any, dict[str, Any]]
BOUNDS = {torch.float64: 1e-10, torch.float32: torch.finfo(torch.float32).eps ** 0.5}


@dataclass(frozen=True, eq=False)
class Exactness:
    """What a comparison of a shrunk model with the masked one found.

    Attributes:
        dtype: The type that both ran in.
        deviation: The largest difference, relative to the largest output.
        error: Why the shrunk model does not run, or None.
        other: Whether they were also compared on inputs of the check's own.  The masked model may refuse
            those, or give values that are not finite.
        other_size: Whether they were also compared on one more row, as far as the masked model takes it.
        reacts: Whether the outputs differ between the inputs, as far as that is known.
        coarse: Whether all outputs are integers, which hide small differences.
    """

    dtype: torch.dtype
    deviation: float
    error: Exception | None = None
    other: bool = False
    other_size: bool = False
    reacts: bool = True
    coarse: bool = False

    @property
    def passes(self) -> bool:
        """Whether the deviation is in the bound of the type."""
        return self.error is None and self.deviation <= BOUNDS[self.dtype]

    def describe(self) -> dict[str, Any]:
        """Return what a report and a certificate say about the comparison."""
        return {
            "type": str(self.dtype).removeprefix("torch."),
            "bound": BOUNDS[self.dtype],
            "deviation": self.deviation,
            "other inputs": self.other,
            "other batch size": self.other_size,
            "reacts": self.reacts,
        }


def verify(
    masked: nn.Module, small: nn.Module, plan: Plan, device: Any = None, explain: bool = True
) -> Exactness:
    """Compare a shrunk model with the masked one on the traced inputs and on further inputs.

    They run in float64, or in float32 if the model has an operation without float64: a copy of each is
    called twice, the second time with other values and one more row if the masked model takes them.  Then a
    copy of the shrunk model runs twice in its own mode and type.

    Raises:
        InputError: If the masked model runs in neither type, or if the device cannot be used.
        ExactnessError: If the deviation exceeds 1e-10 (in float32 3.5e-4) or the shrunk model does not run;
            the message names the operation, unless `explain` is False, which saves the search for it.
    """
    inside = compared_submodules(masked, plan.graph.inside, *_example(plan))
    compared = _compare(*_seen(masked, small, plan), *_example(plan), device, inside)
    kind = str(compared.dtype).removeprefix("torch.")
    if compared.error is not None:
        where = find_deviating_operation(masked, small, plan) if explain else ""
        raise ExactnessError(
            f"the shrunk model does not run: {type(compared.error).__name__}: {compared.error}. {where}. "
            "Your model is unchanged; name the layer in ignored_layers to leave it whole, or keep "
            "counts that the operation takes (round_to=8)"
        ) from compared.error
    if not compared.passes:
        where = find_deviating_operation(masked, small, plan) if explain else ""
        raise ExactnessError(
            f"the shrunk model deviates from the masked one by {compared.deviation:.1e} (relative, "
            f"{kind}; at most {BOUNDS[compared.dtype]:.2g} is accepted). {where}. "
            "Your model is unchanged; name the layer in ignored_layers to leave it whole"
        )
    _check_runs(masked, as_called(small, plan), *_example(plan))
    return compared


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

    The results of the submodules `inside` are compared, too: the rest of the model may ignore them (a
    detector that finds no box).
    """
    device = None if device is None else _check_device(device)
    if any(p.is_meta for p in masked.parameters()):
        raise InputError("a model on the meta device has no values to compare: use check=False")
    refused = None
    attempts = [(dtype, False) for dtype in BOUNDS]
    for dtype, widened in attempts if device is not None else [(torch.float64, True), *attempts]:
        call = partial(_call, device=device, dtype=dtype, widened=widened, inside=inside)
        try:
            calls, expected = _call_masked(call, masked, args, kwargs)
        except Exception as error:  # a user's forward may raise any
            refused = None if widened else refused or error
            continue
        try:
            actual = call(small, calls)
        except Exception as error:
            if widened:
                continue
            return Exactness(dtype, float("inf"), error)
        other, other_size = _how_other(*calls)
        return Exactness(
            dtype,
            max(deviation(a, b) for a, b in zip(expected, actual, strict=True)),
            other=other,
            other_size=other_size,
            reacts=differ(*expected) if other else bool(expected[0]),
            coarse=are_integers(expected[0]),
        )
    raise InputError(
        f"{type(masked).__name__} does not run in float64 or float32 on its example inputs: "
        f"{type(refused).__name__}: {refused}. Check that model(*example_inputs) runs; check=False skips the "
        "comparison"
    ) from refused


def _call(
    model: nn.Module,
    calls: Sequence[Inputs],
    device: Any,
    dtype: torch.dtype,
    widened: bool,
    inside: Sequence[str],
) -> list[list[Tensor]]:
    """Return the outputs of one copy of a model for each of several calls."""
    model = copy_for_check(model, device, dtype, widened)
    with computing_in(dtype, widened):
        return [run(model, *inputs, device, dtype, inside) for inputs in calls]


def _call_masked(
    call: Callable[[nn.Module, Sequence[Inputs]], list[list[Tensor]]],
    masked: nn.Module,
    args: Any,
    kwargs: Any,
) -> tuple[list[Inputs], list[list[Tensor]]]:
    """Return two calls that the masked model takes, and its outputs: the second as different as it can be."""
    first = (args, dict(kwargs))
    others = other_inputs(args, kwargs)
    for second in (with_one_more_row(*others), others):
        try:
            outputs = call(masked, [first, second])
        except Exception:  # a user's forward may refuse values or sizes with any error
            continue
        if not _lost(*outputs):
            return [first, second], outputs
    return [first, first], call(masked, [first, first])


def _lost(first: list[Tensor], second: list[Tensor]) -> bool:
    """Return whether a second call gives fewer outputs, or values that are not finite, unlike the first."""
    return len(first) != len(second) or any(
        a.isfinite().all() and not b.isfinite().all() for a, b in zip(first, second, strict=True)
    )


def _how_other(first: Inputs, second: Inputs) -> tuple[bool, bool]:
    """Return whether a second call has other values, and whether it has another size."""
    pairs = [
        (a, b)
        for a, b in zip(tree_leaves(first), tree_leaves(second), strict=True)
        if isinstance(a, Tensor) and a is not b
    ]
    other = any(not torch.equal(a, b[: len(a)] if a.shape != b.shape else b) for a, b in pairs)
    return other, any(a.shape != b.shape for a, b in pairs)


def _check_runs(masked: nn.Module, small: nn.Module, args: Any, kwargs: Any) -> None:
    """Run a copy of the shrunk model twice in its own mode and type, with its own caches.

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
            "old size, or give its cache another size. Your model is unchanged; set config.use_cache = False "
            "if the model has it, or name the layer in ignored_layers to leave it whole"
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
