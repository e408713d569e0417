"""Views: a model as a pruning sees it, for everything that calls or compares models.

A view of a model is another module that shares everything with the model: children, parameters and
buffers, under the same names.  It returns only the outputs that count (`Interface`).  The view of a shrunk
model is called like the original: it takes the states that the original takes, and keeps what is left of
them.  The model itself is not changed.

States of the two are compared at the positions that stay: `as_returned_by`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import IntArray, Interface, Plan, PruningGraph
from secateur.core.indices import kept_states
from secateur.core.interface import part_of, with_parts

__all__ = ["as_called", "as_returned_by", "narrow_example", "view", "without_view"]

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@dataclass(frozen=True, eq=False)
class _Kept:
    """What stays of an axis of a state.

    Attributes:
        taken: Path of the input.
        position: Position of its argument.
        returned: Path of the output.
        axis: The axis.
        length: Its length before.
        index: The positions that stay.
        masked: Whether the others become 0 instead of going.
    """

    taken: str
    position: int | None
    returned: str
    axis: int
    length: int
    index: IntArray
    masked: bool = False

    def __call__(self, x: Any) -> Any:
        """Return what stays of a tensor; one of another length is narrow already and comes back as it is."""
        if not isinstance(x, Tensor) or x.ndim <= self.axis or x.shape[self.axis] != self.length:
            return x
        index = torch.from_numpy(self.index).to(x.device)
        if not self.masked:
            return x.index_select(self.axis, index)
        alive = torch.zeros(self.length, dtype=torch.bool, device=x.device)
        alive[index] = True
        return torch.where(alive.reshape([-1] + [1] * (x.ndim - 1 - self.axis)), x, 0)


class _View:
    """What a view does to the inputs and outputs of its model."""

    def __init__(self, interface: Interface, taken: Sequence[_Kept], returned: Sequence[_Kept]) -> None:
        self.interface, self.taken, self.kept = interface, taken, returned

    def take(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the inputs with what is left of the states."""
        return _narrowed(self.taken, args, kwargs)

    def give(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the outputs that count, with what is left of the states."""
        return self.narrow(self.interface.counted(output))

    def narrow(self, output: Any) -> Any:
        """Return an output with what is left of the states."""
        for kept in self.kept:
            output = with_parts(output, {kept.returned: kept(part_of(output, kept.returned, "output"))})
        return output


def view(
    model: nn.Module,
    interface: Interface,
    shrunk: Plan | None = None,
    masked: Plan | None = None,
    compared: Plan | None = None,
) -> nn.Module:
    """Return a view of a model: a module that shares its tensors and is called like the original.

    A copy of a view is a view, too; `without_view` makes it an ordinary module again.

    Args:
        model: The model, or a view of it; it is not changed.
        interface: Which outputs count.  If all do and there are no states, the view is the model itself.
        shrunk: The plan that the model was shrunk by; states that it takes are narrowed.
        masked: The plan that the model was masked by, after that; what it removes from states becomes 0.
        compared: The plan after which states are compared, on the network that returns them; by default the
            other one.

    Example:
        >>> class Twice(nn.Module):
        ...     def forward(self, x):
        ...         return x, 2 * x
        >>> view(Twice(), Interface(("1",)))(torch.ones(1))
        (None, tensor([2.]))
    """
    if interface.is_whole:
        return model
    before = _view_of(model)
    taken = [*(before.taken if before else ()), *_kept(shrunk), *_kept(masked, masked=True)]
    return _with_hooks(model, _View(interface, taken, _kept(compared or masked or shrunk)))


def as_called(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a shrunk model as it is called with inputs of the original; it returns everything."""
    return view(model, Interface(states=plan.graph.interface.states), plan)


def without_view(model: nn.Module) -> nn.Module:
    """Remove what `view` added from a copy of a view, in place, and return it."""
    for hooks in (model._forward_hooks, model._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if _is_of_view(hook)]:
            for name in HOOKS:
                vars(model)[name].pop(key, None)
    vars(model).pop("__deepcopy__", None)
    return model


def as_returned_by(model: nn.Module, output: Any) -> Any:
    """Return an output of the original with its states as a view of a shrunk model returns them."""
    seen = _view_of(model)
    return output if seen is None else seen.narrow(output)


def narrow_example(
    graph: PruningGraph, keep: Mapping[str, IntArray], masked: bool = False
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the example inputs, positional and by keyword, as a model that keeps these units takes them.

    Args:
        graph: The traced network.
        keep: Group name -> units that stay.
        masked: Whether what goes becomes 0 in the states instead.
    """
    return _narrowed(_kept(Plan(graph, "", keep), masked), graph.example_inputs, graph.example_kwargs)


def _with_hooks(model: nn.Module, hooks: _View) -> nn.Module:
    """Return a module that shares everything with the model and has these hooks."""
    shown: nn.Module = object.__new__(type(model))
    vars(shown).update(vars(model))
    for name in HOOKS:
        vars(shown)[name] = vars(model)[name].copy()
    without_view(shown)
    shown.register_forward_pre_hook(hooks.take, with_kwargs=True)
    shown.register_forward_hook(hooks.give, with_kwargs=True)
    copier: Any = getattr(type(model), "__deepcopy__", None)
    if copier is not None:  # that of torch.fx drops hooks
        vars(shown)["__deepcopy__"] = lambda memo: _with_hooks(copier(model, memo), hooks)
    return shown


def _kept(plan: Plan | None, masked: bool = False) -> list[_Kept]:
    if plan is None:
        return []
    states = plan.graph.interface.states
    kept = []
    for (number, axis), index in kept_states(plan.graph, plan.keep).items():
        state = states[number]
        length = next(x.value for x in state.axes if x.axis == axis)
        kept.append(_Kept(state.taken, state.position, state.returned, axis, length, index, masked))
    return kept


def _narrowed(
    states: Sequence[_Kept], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the inputs of a call with what is left of the states; a state that is not given is left out."""
    for kept in states:
        name, _, rest = kept.taken.partition(".")
        place: Any = name if name in kwargs else kept.position
        given: Any = kwargs if name in kwargs else args
        if place is None or (given is args and place >= len(args)) or given[place] is None:
            continue
        value = given[place]
        new = with_parts(value, {rest: kept(part_of(value, rest, "input"))}) if rest else kept(value)
        if given is kwargs:
            kwargs = {**kwargs, name: new}
        else:
            args = (*args[:place], new, *args[place + 1 :])
    return args, kwargs


def _is_of_view(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), _View)


def _view_of(model: nn.Module) -> _View | None:
    hooks: Any = model._forward_hooks.values()
    return next((hook.__self__ for hook in hooks if _is_of_view(hook)), None)
