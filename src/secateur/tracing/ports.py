"""Where the interface of a model meets its exported graph: outputs that count, and states.

The exported graph has the tensors that go in and come out in the same order as the model, but not the
structures that hold them.  So the model runs once.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import CaptureError, InputError, Interface, State, StateAxis, unknown
from secateur.core.interface import part_of, paths_of
from secateur.execution import explain_errors
from secateur.tracing.export import (
    ExportedModel,
    copy_sharing_tensors,
    exporting_flag_set,
    shapes_in,
    without_fused_attention,
)
from secateur.tracing.groups import Owners, UnitFamily
from secateur.tracing.propagate import Propagation, TensorAxes

__all__ = ["Ports", "find_ports", "find_state_axes"]


@dataclass(frozen=True, eq=False)
class Ports:
    """Which values of a model count, and which are states.

    Attributes:
        interface: The interface, one state for each tensor.
        taken: For each state, its number among the values that the model takes.
        returned: For each state, its number among the values that the model returns.
        counted: For each value that the model returns, whether it counts; None if all do.
    """

    interface: Interface
    taken: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    counted: tuple[bool, ...] | None = None

    def label_states(
        self, exported: ExportedModel, propagation: Propagation, zero: bool
    ) -> dict[str, TensorAxes]:
        """Give every axis of the states its own label.

        Args:
            exported: The exported model.
            propagation: What the rules share.
            zero: Whether the values at dead indices are 0.

        Returns:
            Placeholder name -> its axes.
        """
        inputs = exported.user_inputs() if self.taken else []
        states = {}
        for number in self.taken:
            (shape,) = shapes_in(inputs[number].meta["val"])
            labels = tuple(propagation.algebra.label(n) if n > 1 else None for n in shape)
            states[inputs[number].name] = TensorAxes(shape, labels, (zero,) * len(shape))
        return states

    def close(
        self, outputs: Sequence[Any], states: Mapping[str, TensorAxes], propagation: Propagation
    ) -> list[TensorAxes]:
        """Tie what a model returns as a state to what it takes; return the outputs that must stay whole.

        Axes of other lengths than those of the input (the time in a cache that grows) stay whole.

        Args:
            outputs: What the graph returns: buffers that it writes to, then the outputs.
            states: What `label_states` returned.
            propagation: What the rules share.

        Raises:
            CaptureError: If the exported model returns another number of values than the model.
        """
        if self.counted is None:
            return _tensor_axes(outputs)
        first = len(outputs) - len(self.counted)
        if first < 0:
            raise CaptureError(
                f"the exported model returns {len(outputs)} values and the model {len(self.counted)}: "
                "outputs= and states= cannot name them"
            )
        whole = [x for x, counts in zip(outputs, [True] * first + [*self.counted], strict=True) if counts]
        for given, number in zip(states.values(), self.returned, strict=True):
            result = outputs[first + number]
            if not isinstance(result, TensorAxes) or result.ndim != given.ndim:
                raise InputError(
                    "a state must have the same number of axes where it goes in and where it comes out"
                )
            for row in result.rows[1:]:
                propagation.equate(result.rows[0], row)
            for axis in range(given.ndim):
                same = given.shape[axis] == result.shape[axis]
                propagation.equate(given.labels[axis], result.labels[axis] if same else None)
                if not same:
                    propagation.algebra.freeze(result.labels[axis], "an output of the model")
        return _tensor_axes(whole)

    def zero_again(
        self, outputs: Sequence[Any], states: Mapping[str, TensorAxes], propagation: Propagation
    ) -> bool:
        """Return whether states that are 0 at dead indices where they go in are so where they come out."""
        pairs = zip(states.values(), self.returned, strict=True)
        results = [
            (given, outputs[len(outputs) - len(self.counted or ()) + number]) for given, number in pairs
        ]
        return all(
            result.zero[axis]
            for given, result in results
            for axis, label in enumerate(given.labels)
            if propagation.algebra.normal(label) is not None
        )


def find_ports(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    outputs: tuple[str, ...],
    pairs: Sequence[tuple[str, str]],
) -> Ports:
    """Find what counts and what is a state among the values of a model.

    Args:
        model: The model; a copy of it runs.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        outputs: Paths of the outputs that count; empty for all.
        pairs: Paths of states: (input, output).  What holds several tensors stands for all of them.

    Raises:
        InputError: If the model does not run, a path leads nowhere, outputs hold no floating tensor, or a
            state has unequal parts.
    """
    if not outputs and not pairs:
        return Ports(Interface())
    with (
        explain_errors("the example inputs", args, kwargs),
        torch.no_grad(),
        without_fused_attention(),
        exporting_flag_set(),
        torch.random.fork_rng(),
    ):
        output = copy_sharing_tensors(model)(*args, **kwargs)
    # The same tensor may be in several places, of which one counts.
    args, kwargs, output = tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) else x, (args, dict(kwargs), output)
    )
    states, taken, returned = [], [], []
    for pair in pairs:
        for state, x, y in _states(model, args, kwargs, output, *pair):
            states.append(state)
            taken.append(_number(x, (args, kwargs), state.taken))
            returned.append(_number(y, output, state.returned))
    interface = Interface(outputs, tuple(states))
    counted = [x for x in tree_leaves(interface.counted(output)) if isinstance(x, Tensor)]
    if not any(x.is_floating_point() for x in counted):
        raise InputError(f"{', '.join(outputs)}: there is no floating tensor among these outputs")
    counts = [any(x is y for y in counted) for x in tree_leaves(output)]
    whole = tuple(x and number not in returned for number, x in enumerate(counts))
    return Ports(interface, tuple(taken), tuple(returned), whole)


def find_state_axes(
    ports: Ports,
    states: Mapping[str, TensorAxes],
    propagation: Propagation,
    families: Sequence[UnitFamily],
) -> Interface:
    """Return the interface with the units on the axes of its states.

    Args:
        ports: What `find_ports` found.
        states: What `label_states` returned.
        propagation: After all labels have passed through the graph.
        families: The groups.
    """
    owners = Owners(propagation, families)
    found = []
    for state, given in zip(ports.interface.states, states.values(), strict=True):
        axes = []
        for axis, label in enumerate(given.labels):
            names, index = owners.of(label)
            if names:
                axes.append(StateAxis(axis, given.shape[axis], names, index))
        if not axes:
            reasons = ("; ".join(propagation.algebra.reason(label)) or "no units" for label in given.labels)
            warnings.warn(f"the state {state} stays whole. Axis by axis: {' | '.join(reasons)}", stacklevel=5)
        found.append(replace(state, axes=tuple(axes)))
    return replace(ports.interface, states=tuple(found))


def _states(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, taken: str, returned: str
) -> list[tuple[State, Tensor, Tensor]]:
    """Return the states that a pair of paths stands for, each with the tensors that go in and come out."""
    head, _, rest = taken.partition(".")
    name, position = _argument(model, args, kwargs, head)
    value = kwargs[name] if name in kwargs else None if position is None else args[position]
    value = part_of(value, rest, "input") if rest else value
    result = output if isinstance(output, Tensor) and returned == "0" else part_of(output, returned, "output")
    path = f"{name}.{rest}" if rest else name
    inputs, outputs = _tensors(value, path), _tensors(result, returned)
    shapes = [[tuple(x.shape) for x in tensors.values()] for tensors in (inputs, outputs)]
    if not inputs or [len(x) for x in shapes[0]] != [len(x) for x in shapes[1]]:
        raise InputError(
            f"states {{{taken!r}: {returned!r}}}: a state comes out as the floating tensors that went in; "
            f"the input holds shapes {shapes[0]}, the output {shapes[1]}"
        )
    return [(State(a, b, position), inputs[a], outputs[b]) for a, b in zip(inputs, outputs, strict=True)]


def _argument(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], head: str
) -> tuple[str, int | None]:
    """Return the name of an argument of the example inputs, and its position among the positional ones."""
    kinds = inspect.Parameter
    known = inspect.signature(model.forward).parameters.values()
    names = [x.name for x in known if x.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    position = int(head) if head.isdecimal() else names.index(head) if head in names else None
    name = names[position] if position is not None and position < len(names) else head
    given = name in kwargs or (position is not None and position < len(args))
    value = None if not given else kwargs[name] if name in kwargs else args[position or 0]
    if value is None:
        there = [*names[: len(args)], *kwargs]
        raise InputError(f"{unknown('input', head, there)}. The example inputs must hold every state")
    return name, position


def _tensors(value: Any, path: str) -> dict[str, Tensor]:
    """Return the floating tensors in a part of a structure, by path."""
    parts = {path: value} if isinstance(value, Tensor) else {}
    parts |= {f"{path}.{below}": part_of(value, below) for below in paths_of(value)}
    return {name: x for name, x in parts.items() if isinstance(x, Tensor) and x.is_floating_point()}


def _number(x: Tensor, tree: Any, path: str) -> int:
    for number, leaf in enumerate(tree_leaves(tree)):
        if leaf is x:
            return number
    raise InputError(
        f"the state {path!r} is inside an object that torch.export takes apart in its own way (a cache of "
        "Hugging Face); a state is a tensor, or tensors in tuples, lists and dicts"
    )


def _tensor_axes(tree: Any) -> list[TensorAxes]:
    return [x for x in tree_leaves(tree) if isinstance(x, TensorAxes)]
