"""The interface of a model for a pruning: which of its outputs count, and which states shrink with units.

A part of what a model takes or returns is named by a path: the name of an argument, the field of a dict, a
dataclass or a `ModelOutput`, the index in a tuple, or several of these, as in ``"logits"``, ``"0"``,
``"past.0"``.

A state is a tensor that a model takes and returns again: the hidden state of a network that runs step by
step, a cache of keys and values.  Units may lie on its axes.  The pruned model then takes and returns a
narrower state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from secateur.core.errors import InputError, brief, unknown
from secateur.core.group import IntArray

__all__ = [
    "Interface",
    "State",
    "StateAxis",
    "check_outputs",
    "check_states",
    "entries_of",
    "part_of",
    "paths_of",
    "with_parts",
]

DEEPEST = 8  # containers within containers


@dataclass(frozen=True, eq=False)
class StateAxis:
    """An axis of a state, and the units on it.

    Attributes:
        axis: The axis.
        value: Its length in the original model.
        groups: Names of the groups on the axis.
        index: For each group, integers [2, m]: unit `index[0, i]` owns position `index[1, i]`.
    """

    axis: int
    value: int
    groups: tuple[str, ...]
    index: tuple[IntArray, ...]


@dataclass(frozen=True, eq=False)
class State:
    """A tensor that a model takes as an input and returns as an output.

    Attributes:
        taken: Path of the input: the name of an argument, and what follows inside it.
        returned: Path of the output.
        position: Position of the argument among the positional ones; None if it goes by name only.
        axes: Its axes that lose indices with units.
    """

    taken: str
    returned: str
    position: int | None = None
    axes: tuple[StateAxis, ...] = ()

    def __str__(self) -> str:
        """Return its paths."""
        return self.taken if self.taken == self.returned else f"{self.taken} -> {self.returned}"


@dataclass(frozen=True)
class Interface:
    """What a model takes and returns, as a pruning sees it.

    Attributes:
        outputs: Paths of the outputs that count; empty if all of them do.  The others may lose units.
        states: States that shrink with their units.  They count as outputs in any case.
    """

    outputs: tuple[str, ...] = ()
    states: tuple[State, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all outputs count, and no state shrinks."""
        return not self.outputs and not self.states

    def counted(self, output: Any) -> Any:
        """Return an output with None in place of everything that does not count.

        Raises:
            InputError: If it does not have a part that counts.

        Example:
            >>> Interface(("logits", "past.0")).counted({"logits": 1, "past": (2, 3), "hidden": 4})
            {'logits': 1, 'past': (2, None), 'hidden': None}
        """
        if not self.outputs:
            return output
        paths = (*self.outputs, *(state.returned for state in self.states))
        for path in paths:
            part_of(output, path, "output")
        return output if isinstance(output, Tensor) else _pruned(output, [path.split(".") for path in paths])

    def with_axes(self, change: Callable[[StateAxis], StateAxis | None]) -> Interface:
        """Return the interface with other axes in the states; None drops an axis."""
        states = []
        for state in self.states:
            axes = (change(axis) for axis in state.axes)
            states.append(replace(state, axes=tuple(x for x in axes if x is not None)))
        return replace(self, states=tuple(states))

    def summary(self, kept: Mapping[tuple[int, int], IntArray] | None = None) -> list[str]:
        """Describe which outputs count, and which units lie on the states or what is left of them.

        Args:
            kept: (number of a state, axis) -> positions that stay, if some have gone.
        """
        lines = [f"outputs that count: {', '.join(self.outputs)}"] if self.outputs else []
        for number, state in enumerate(self.states):
            texts = []
            for axis in state.axes:
                if kept is None:
                    text = f"{axis.value} with {', '.join(axis.groups)}"
                else:
                    text = f"{axis.value} -> {len(kept.get((number, axis.axis), range(axis.value)))}"
                texts.append(f"axis {axis.axis}: {text}")
            lines.append(f"state {state}: {', '.join(texts) or 'stays whole'}")
        return lines


def entries_of(value: Any) -> tuple[Any, ...]:
    """Return the items of an iterable; nothing for other values, such as a tensor without axes.

    Example:
        >>> entries_of(["a"]), entries_of(3)
        (('a',), ())
    """
    try:
        return tuple(value)
    except TypeError:
        return ()


def check_outputs(outputs: Any) -> tuple[str, ...]:
    """Return the outputs that a user names, as paths.

    Args:
        outputs: A path, an index, several of them, or None for all outputs.

    Raises:
        InputError: If they are something else.

    Example:
        >>> check_outputs(None), check_outputs("logits"), check_outputs((0, "past.0"))
        ((), ('logits',), ('0', 'past.0'))
    """
    if outputs is None:
        return ()
    single = isinstance(outputs, (str, int))
    listed = (outputs,) if single else entries_of(outputs)
    if not listed or not all(is_path(x) for x in listed):
        raise InputError(
            "outputs are names of fields, indices, or paths of the outputs that count, as in 'logits', 0 or "
            f"['logits', 'past.0']; got {brief(outputs)}"
        )
    return tuple(map(str, listed))


def check_states(states: Any) -> tuple[tuple[str, str], ...]:
    """Return the states that a user names, as pairs of paths: of the input and of the output.

    Args:
        states: A mapping or a list of pairs: name or index of an argument -> path of the output; or None.

    Raises:
        InputError: If they are something else, or an input or an output is there twice.

    Example:
        >>> check_states({"h": "hidden"}), check_states([(1, 1), ("c", "past.0")])
        ((('h', 'hidden'),), (('1', '1'), ('c', 'past.0')))
    """
    if states is None:
        return ()
    listed = list(states.items()) if isinstance(states, Mapping) else states
    good = isinstance(listed, (list, tuple)) and bool(listed)
    good = good and all(isinstance(x, (tuple, list)) and len(x) == 2 and all(map(is_path, x)) for x in listed)
    if not good:
        raise InputError(
            "states map an input to the output that is its next value, by names, indices or paths, as in "
            f"{{'h': 'hidden'}} or [(1, 1)]; got {brief(states)}"
        )
    pairs = tuple((str(taken), str(returned)) for taken, returned in listed)
    for side in zip(*pairs, strict=True):
        if len(set(side)) < len(side):
            raise InputError(f"each state needs its own input and output; got {brief(states)}")
    return pairs


def is_path(value: Any) -> bool:
    """Return whether a value may name a part: an index, or names and indices joined by dots."""
    if isinstance(value, str):
        return all(value.split("."))
    return isinstance(value, int) and not isinstance(value, bool)


def part_of(value: Any, path: str, what: str = "part") -> Any:
    """Return a part of a structure; messages call it `what`.

    Raises:
        InputError: If it has no such part, or the part is None; the message lists those that there are.

    Example:
        >>> part_of({"past": (1, 2)}, "past.1")
        2
    """
    part = _find(value, path)
    if part is None:
        raise InputError(unknown(what, path, list(paths_of(value)) or ["0"]))
    return part


def paths_of(value: Any, depth: int = DEEPEST) -> Iterator[str]:
    """Yield the paths of the tensors, numbers and other single values in a structure.

    Example:
        >>> list(paths_of({"logits": 1, "past": ((2, 3), 4), "loss": None}))
        ['logits', 'past.0.0', 'past.0.1', 'past.1']
    """
    for name, child in _children(value).items():
        deeper = list(paths_of(child, depth - 1)) if depth else []
        if deeper:
            yield from (f"{name}.{path}" for path in deeper)
        elif child is not None and not isinstance(child, (Mapping, Sequence)):
            yield name


def with_parts(value: Any, parts: Mapping[str, Any]) -> Any:
    """Return a structure with some parts replaced; only what changes is copied.

    Example:
        >>> with_parts((1, {"h": 2, "c": 3}), {"1.h": 5})
        (1, {'h': 5, 'c': 3})
    """
    if isinstance(value, Tensor) and "0" in parts:
        return parts["0"]
    inside: dict[str, dict[str, Any]] = {}
    for path, new in parts.items():
        step, _, rest = path.partition(".")
        key = _key(value, step)
        if key is None:
            raise InputError(unknown("part", path, list(paths_of(value))))
        inside.setdefault(key, {})[rest] = new
    children = _children(value)
    changed = {
        key: below[""] if "" in below else with_parts(children[key], below) for key, below in inside.items()
    }
    return _rebuilt(value, {**children, **changed})


def _find(value: Any, path: str) -> Any:
    """Return a part of a structure, or None; a single tensor is its own part 0."""
    if isinstance(value, Tensor) and path == "0":
        return value
    for step in path.split("."):
        key = _key(value, step)
        value = None if key is None else _children(value)[key]
    return value


def _pruned(value: Any, paths: list[list[str]]) -> Any:
    """Return a structure without the parts that no path leads to."""
    if not all(paths):
        return value  # a path ends here: all of it counts
    inside: dict[str | None, list[list[str]]] = {}
    for step, *rest in paths:
        inside.setdefault(_key(value, step), []).append(rest)
    children = _children(value)
    return _rebuilt(value, {k: _pruned(x, inside[k]) if k in inside else None for k, x in children.items()})


def _children(value: Any) -> dict[str, Any]:
    """Return the parts of a container by name; nothing for a tensor or another single value."""
    if isinstance(value, Mapping):
        return {str(key): x for key, x in value.items()}
    if isinstance(value, (tuple, list)):
        return dict(zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True))
    if isinstance(value, (Tensor, type)) or callable(value):
        return {}
    return dict(getattr(value, "__dict__", {}))


def _key(value: Any, step: str) -> str | None:
    """Return the name of the part that a step of a path leads to, or None."""
    children = _children(value)
    if step in children:
        return step
    index = int(step) if step.removeprefix("-").isdecimal() else None
    if index is None or not isinstance(value, (tuple, list)) or not -len(value) <= index < len(value):
        return None
    return list(children)[index]


def _rebuilt(value: Any, children: Mapping[str, Any]) -> Any:
    """Return a container of the same type with other parts."""
    if isinstance(value, (tuple, list)):
        kind: Any = type(value)
        return kind(*children.values()) if hasattr(value, "_fields") else kind(children.values())
    copied = copy.copy(value)
    for key, new in children.items():
        if isinstance(value, Mapping):
            copied[next(k for k in value if str(k) == key)] = new
        else:
            object.__setattr__(copied, key, new)
    return copied
