"""Intermediate features: outputs of chosen modules of a model that should follow those of its teacher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import InputError, brief, unknown
from secateur.outputs import floating_outputs
from secateur.statistics.loss import relative_square

__all__ = ["Features", "check_features", "following"]

Outputs = dict[str, list[Tensor]]


class Features:
    """What chosen modules of a model and of its teacher returned in the last pass of both.

    Attributes:
        names: The modules that are compared; known after the first pass.
    """

    def __init__(self, patterns: Sequence[str], model: nn.Module, teacher: nn.Module) -> None:
        """Find the modules.

        Args:
            patterns: Names of modules, or patterns of them such as ``"layer4.*"``.
            model: The model in training.
            teacher: Its teacher.

        Raises:
            InputError: If a name or a pattern fits no module of both.
        """
        inside = dict(teacher.named_modules(remove_duplicate=False))
        known = [name for name, _ in model.named_modules(remove_duplicate=False) if name and name in inside]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise InputError(unknown("module of the model and its teacher", pattern, known))
        self.names = tuple(name for name in known if any(fnmatchcase(name, p) for p in patterns))
        self._required = {pattern for pattern in patterns if pattern in known}
        self._outputs: tuple[Outputs, Outputs] = (defaultdict(list), defaultdict(list))
        self._chosen = False

    def record(self, model: nn.Module, of_teacher: bool) -> ExitStack:
        """Return a context in which the outputs of the model's modules are recorded."""
        stack = ExitStack()
        for name in self.names:
            hook = self._hook(self._outputs[of_teacher], name)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        return stack

    @staticmethod
    def _hook(outputs: Outputs, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            try:
                outputs[name] += floating_outputs(output)
            except InputError:  # not a floating output: nothing to compare
                return

        return record

    def loss(self) -> Tensor:
        """Return the mean over the modules of their relative squared differences, and forget the outputs.

        A module that is called several times, or returns several tensors, gives the sum; one that is not
        called for a batch gives nothing.

        Raises:
            InputError: If the shapes of a module's outputs differ, or no module is left.
        """
        of_model, of_teacher = self._outputs
        if not self._chosen:
            self.names, self._chosen = self._choose(), True
        losses = []
        for name in self.names:
            if _shapes(of_model[name]) != _shapes(of_teacher[name]):
                raise InputError(self._differ(name))
            pairs = list(zip(of_model[name], of_teacher[name], strict=True))
            losses += (
                [torch.stack([relative_square(a, b.to(a.device)) for a, b in pairs]).sum()] if pairs else []
            )
        for outputs in self._outputs:
            outputs.clear()
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _choose(self) -> tuple[str, ...]:
        """Return the modules whose outputs have one shape in both; those that were named must have it."""
        of_model, of_teacher = self._outputs
        equal = []
        for name in self.names:
            if of_model[name] and _shapes(of_model[name]) == _shapes(of_teacher[name]):
                equal.append(name)
            elif name in self._required:
                raise InputError(self._differ(name))
        if not equal:
            raise InputError(f"features: no module keeps the shape of its outputs; {self._differ(name)}")
        return tuple(equal)

    def _differ(self, name: str) -> str:
        shapes = [_shapes(outputs[name]) for outputs in self._outputs]
        if shapes == [[], []]:
            return f"{name!r} returned no floating tensor for the first batch"
        return (
            f"the outputs of {name!r} have shapes {shapes[0]}, those of the teacher {shapes[1]}: name a "
            "module that keeps its width, for instance one that reads the pruned units"
        )


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tensors]


@contextmanager
def following(
    patterns: Sequence[str], model: nn.Module, teacher: nn.Module | None
) -> Iterator[Features | None]:
    """Record the features of a model and its teacher, if any are asked for."""
    if not patterns or teacher is None:
        yield None
        return
    features = Features(patterns, model, teacher)
    with features.record(model, False), features.record(teacher, True):
        yield features


def check_features(features: Any, with_teacher: bool) -> tuple[str, ...]:
    """Return features as a tuple; raise `InputError` unless they are names of modules, with a teacher."""
    listed = isinstance(features, Iterable) and not isinstance(features, str)
    listed = listed and getattr(features, "ndim", 1) > 0  # a tensor without axes claims to be iterable
    names = tuple(features) if listed else ()
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"features are a list of names or patterns of modules, as in ['layer4']; got {brief(features)}"
        )
    if names and not with_teacher:
        raise InputError("features are compared with those of a teacher: pass teacher=the original model")
    return names
