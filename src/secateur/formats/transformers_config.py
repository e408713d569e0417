"""Configs of transformers that state the sizes of a pruned model, found by trial.

Which integer of a config states which axis of which tensor depends on the family.  Instead of a table of
families, the class is built on the meta device, which takes no memory for weights, with one integer changed:
the axes that change with it are those that it states.  So the config is found for every family whose config
can state the sizes, and only for those.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from secateur.core import InputError
from secateur.tracing.export import silenced

__all__ = ["ConfigSearch", "build_on_meta"]

Shapes = Mapping[str, tuple[int, ...]]
Axis = tuple[str, int]
# Integers that do not state the length of an axis that can be pruned.
OTHER_INTEGERS = re.compile(r"_ids?$|^num_hidden_layers$|^n_layers?$|^max_|_positions$|^torchscript$|_range$")
# Read by classes whose config does not list it; without it, a head has width / heads features.
OPTIONAL = ("head_dim",)
# Lengths that may be None, which stands for a multiple of another length.
MAY_BE_NONE = re.compile(r"(_size|_dim|_heads|_inner|_width)$")


def build_on_meta(cls: Any, config: Any) -> Any:
    """Return a new instance of a class of models for a config, with tensors that hold no values."""
    with silenced(), torch.device("meta"):
        return cls(copy.deepcopy(config))


class ConfigSearch:
    """Search for configs with which the class of a model has given shapes.

    Args:
        model: A pruned model of transformers; its config is that of the original.
        shapes: The shape of each tensor of the state dict.

    Attributes:
        unstated: An axis that no integer of the config states without stating others that have kept their
            length, or None.
        refused: Why the class of the config does not accept the sizes together, or None.
    """

    def __init__(self, model: nn.Module, shapes: Shapes) -> None:
        """Read the integers of the config."""
        self.model, self.shapes = model, shapes
        self.config: Any = model.config
        self.unstated: Axis | None = None
        self.refused: str | None = None
        self._built: dict[tuple[Any, ...], Shapes | None] = {}
        self._names = _integers(self.config)

    def configs(self) -> Iterator[Any]:
        """Yield the configs, those that change few axes per integer first.

        Several integers may state an axis (the number of heads and their length), so the shapes alone do not
        decide: the caller compares the outputs.
        """
        self._names = [name for name in self._names if self._effect({}, name)]
        implied = self._implied()
        for values in chain(self._solve({}), self._solve(implied) if implied else ()):
            config = self._with(values)
            self.refused = _refusal(config)
            if self.refused is None:
                yield config

    def _implied(self) -> dict[str, int]:
        """Return the optional integers that the class reads and the config omits, at their present values.

        With the length of a head fixed, the number of heads changes the queries alone (Qwen 2).
        """
        listed = self.config.to_dict()
        return {x: self._value({}, x) for x in OPTIONAL if x in self._names and x not in listed}

    def explain(self) -> str:
        """Describe which axis no config states, after a search without result."""
        kind = type(self.config).__name__
        if self.refused is not None:
            return f"{kind} does not accept the sizes: {self.refused}"
        if self.unstated is None:
            return f"no {kind} states all sizes of the pruned {type(self.model).__name__}"
        (tensor, axis), length = self.unstated, self.shapes[self.unstated[0]][self.unstated[1]]
        stating = [name for name in self._names if self.unstated in self._effect({}, name)]
        others = f": {' or '.join(stating)} would change others that keep their length" if stating else ""
        return f"{kind} cannot state the length {length} of axis {axis} of {tensor!r}{others}"

    def _with(self, values: Mapping[str, int]) -> Any:
        config = copy.deepcopy(self.config)
        for name, value in values.items():
            setattr(config, name, value)
        return config

    def _shapes_with(self, values: Mapping[str, int]) -> Shapes | None:
        """Return the shapes of the class, or None if it cannot be built with these values."""
        key = tuple(sorted(values.items()))
        if key not in self._built:
            try:
                built = build_on_meta(type(self.model), self._with(values))
                self._built[key] = {name: tuple(t.shape) for name, t in built.state_dict().items()}
            except Exception:  # a config or a model may raise anything if integers do not fit together
                self._built[key] = None
        return self._built[key]

    def _solve(self, values: dict[str, int]) -> Iterator[dict[str, int]]:
        """Yield assignments of integers: settle one axis that differs, and go on with the others."""
        shapes = self._shapes_with(values)
        if shapes is None or shapes.keys() != self.shapes.keys():
            return
        wrong = _different_axes(shapes, self.shapes)
        if wrong is None:
            return
        if not wrong:
            yield values
            return
        effects = {name: self._effect(values, name) for name in self._names if name not in values}
        axis = min(wrong, key=lambda x: (sum(x in effect for effect in effects.values()), x))
        useful = [name for name, effect in effects.items() if axis in effect]
        # How many axes an integer would spoil, and how many it changes.
        cost = {name: (sum(x not in wrong for x in e), len(e)) for name, e in effects.items()}
        if not values:
            harmless = {x for name, effect in effects.items() if cost[name][0] == 0 for x in effect}
            self.unstated = next((x for x in wrong if x not in harmless), None)
        for name in sorted(useful, key=cost.__getitem__):
            step = (self.shapes[axis[0]][axis[1]] - shapes[axis[0]][axis[1]]) / effects[name][axis]
            value = self._value(values, name) + step
            if value == int(value) and value >= 1:
                yield from self._solve({**values, name: int(value)})

    def _value(self, values: Mapping[str, int], name: str) -> int:
        """Return an integer of the config; where it is None, the one that it stands for."""
        value = values.get(name, getattr(self.config, name, None))
        if value is not None:
            return value
        before, trial = self._shapes_with(values), self._shapes_with({**values, name: 16})
        axis, slope = next(iter(self._effect(values, name).items()))
        if before is None or trial is None:
            raise InputError(f"{type(self.model).__name__} cannot be built from its own config")
        return 16 + int((before[axis[0]][axis[1]] - trial[axis[0]][axis[1]]) / slope)

    def _effect(self, values: Mapping[str, int], name: str) -> dict[Axis, float]:
        """Return how much longer each axis gets for each unit of an integer."""
        value = values.get(name, getattr(self.config, name, None))
        pairs = [(value, 2 * value), (value, value + 1), (value, value // 2)] if value else [(16, 32)]
        for low, high in pairs:
            # An integer that is None is compared at two values.
            shapes = self._shapes_with(values if value else {**values, name: low})
            other = self._shapes_with({**values, name: high})
            if high < 1 or shapes is None or other is None or shapes.keys() != other.keys():
                continue
            axes = _different_axes(shapes, other)
            if axes is not None:
                return {a: (other[a[0]][a[1]] - shapes[a[0]][a[1]]) / (high - low) for a in axes}
        return {}


def _refusal(config: Any) -> str | None:
    """Return why a config is not valid, or None."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception as error:  # validators of configs may raise anything
        return str(error.__cause__ or error).rstrip(".")
    return None


def _integers(config: Any) -> list[str]:
    """Return the names of the integers of a config that may state the length of an axis."""
    names = []
    for name, value in config.to_dict().items():
        if OTHER_INTEGERS.search(name) or isinstance(value, bool) or not hasattr(config, name):
            continue
        if (isinstance(value, int) and value > 0) or (value is None and MAY_BE_NONE.search(name)):
            names.append(name)
    return [*names, *(name for name in OPTIONAL if name not in config.to_dict())]


def _different_axes(shapes: Shapes, others: Shapes) -> list[Axis] | None:
    """Return the axes of different lengths; None if a tensor has another number of axes."""
    found = []
    for name, shape in shapes.items():
        if len(shape) != len(others[name]):
            return None
        found += [(name, i) for i, (a, b) in enumerate(zip(shape, others[name], strict=True)) if a != b]
    return found
