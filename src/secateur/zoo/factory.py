"""The decorator of the factories: seeded weights and example inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn

__all__ = ["factory"]

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)


def factory(*shape: int) -> Callable[[Callable[P, M]], Callable[P, M]]:
    """Return a decorator that seeds a network's weights by its `seed` and adds example inputs.

    The global random generator is not changed.

    Args:
        shape: Shape of one example with the default arguments.

    Example:
        >>> @factory(3)
        ... def line(*, seed: int = 0) -> nn.Linear:
        ...     return nn.Linear(3, 1)
        >>> line.example_inputs[0].shape, torch.equal(line(seed=1).weight, line(seed=1).weight)
        (torch.Size([2, 3]), True)
    """

    def decorate(build: Callable[P, M]) -> Callable[P, M]:
        @functools.wraps(build)
        def seeded(*args: P.args, **kwargs: P.kwargs) -> M:
            seed = kwargs.get("seed", 0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # type: ignore[arg-type]  # a ParamSpec hides the type of `seed`
                return build(*args, **kwargs)

        seeded.example_inputs = (torch.zeros(2, *shape),)  # type: ignore[attr-defined]
        return seeded

    return decorate
