"""What the table of real networks asks of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.core import InputError

__all__ = ["Network", "choose"]


class Network(ABC):
    """A trained network, data to calibrate on, and a measure on other data.

    Attributes:
        name: Name on the command line.
        title: Name in tables.
        about: One paragraph for the page: weights, data, metrics.
        packages: Module that is imported -> package to install.
        metrics: Key -> title of each number that `measure` returns; the first is the main one.
        absolute: Whether the metrics also say something about the original, as an accuracy does.
        batchnorm: Whether it has BatchNorm layers.
        steps: Optimiser steps with the teacher.
        lr: Learning rate of these steps.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    packages: ClassVar[Mapping[str, str]] = {}
    metrics: ClassVar[Mapping[str, str]]
    absolute: ClassVar[bool] = False
    batchnorm: ClassVar[bool] = False
    steps: ClassVar[int]
    lr: ClassVar[float] = 1e-3

    def check_packages(self) -> None:
        """Raise `InputError` if a package is missing."""
        missing = [package for module, package in self.packages.items() if find_spec(module) is None]
        if missing:
            raise InputError(f"{self.title} needs packages: pip install --no-deps {' '.join(missing)}")

    @abstractmethod
    def model(self, folder: Path) -> nn.Module:
        """Return the trained network in evaluation mode; what has to be trained is kept in `folder`."""

    @abstractmethod
    def calibration(self, seed: int) -> list[Any]:
        """Return batches without labels, drawn by the seed."""

    @abstractmethod
    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return batches for the steps with the teacher, from where the calibration comes from."""

    @abstractmethod
    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Return a function that measures a pruned network on data that nothing else has seen."""

    def outputs(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the layers whose outputs Torch-Pruning must leave whole; by default the last linear one."""
        return [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]

    def heads(self, model: nn.Module) -> dict[nn.Module, int]:
        """Return the numbers of heads that Torch-Pruning must know, by projection."""
        return {}

    def after_torch_pruning(  # noqa: B027 (most networks need nothing)
        self, model: nn.Module, heads: Mapping[nn.Module, int]
    ) -> None:
        """Set attributes of the model that Torch-Pruning leaves to its user."""


def choose(count: int, of: int, seed: int) -> Tensor:
    """Return different numbers below `of`, drawn by a seed."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]
