"""Gradients of a loss, and synaptic flow; the model is not changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from secateur.core import InputError, PruningGraph
from secateur.execution import tensors_of, untouched
from secateur.outputs import logits
from secateur.statistics.loss import Loss, check_loss

__all__ = ["SynapticFlow", "gradients"]


def gradients(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any, loss: Loss
) -> dict[str, Tensor]:
    """Return the gradient of one batch's loss for every floating parameter; zero where there is none."""
    floating = ((k, p) for k, p in model.named_parameters() if p.is_floating_point())
    parameters = {k: p.detach().requires_grad_() for k, p in floating}
    with torch.enable_grad():
        value = loss(functional_call(model, parameters, args, dict(kwargs)), targets)
        check_loss(value)
        derivatives = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), derivatives, strict=True)
    return {k: torch.zeros_like(p) if g is None else g.detach() for (k, p), g in pairs}


class SynapticFlow:
    """SynFlow's scores |theta * dR/dtheta| of a network with parameters |theta|, any of them masked.

    Tanaka et al. (arXiv:2006.05467).  R is the sum of the outputs for inputs of ones, in evaluation mode
    and float64: 30 layers of 256 units give R = 8e51, more than float32 can represent.  Integer inputs
    (tokens) are not changed.  All parameters are made positive, biases and normalisation too; running
    statistics are not changed.

    Args:
        model: The model; its parameters are copied now.
        graph: Its trace, for the example inputs.
    """

    def __init__(self, model: nn.Module, graph: PruningGraph) -> None:
        """Copy the parameters."""
        self._model = model
        self._example = (graph.example_inputs, dict(graph.example_kwargs))
        self._parameters = [name for name, _ in model.named_parameters()]
        self._tensors = {k: t.double() if t.is_floating_point() else t for k, t in tensors_of(model).items()}
        for name in self._parameters:
            self._tensors[name] = self._tensors[name].abs()

    def __call__(self, masks: Mapping[str, Tensor], *, neutral_bn: bool = False) -> dict[str, Tensor]:
        """Return the scores of every parameter, float64.

        Args:
            masks: Parameter name -> mask of its shape, zero or False where it is pruned.
            neutral_bn: Treat BatchNorm as at initialisation.

        Raises:
            InputError: If R overflows, or a mask does not fit.
        """
        tensors = self._neutral() if neutral_bn else dict(self._tensors)
        for name, mask in masks.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                raise InputError(f"a mask for {name!r} of shape {tuple(mask.shape)} fits no parameter")
            tensors[name] = tensors[name] * mask.to(tensors[name].device)
        theta = {k: tensors[k].detach().requires_grad_() for k in self._parameters}
        with untouched(self._model), _float64(), torch.enable_grad():
            args, kwargs = tree_map(self._ones, self._example)
            R = logits(functional_call(self._model, {**tensors, **theta}, args, kwargs)).sum()
            if not torch.isfinite(R):
                raise InputError("the synaptic flow overflows float64: the network is too deep for SynFlow")
            derivatives = torch.autograd.grad(R, list(theta.values()), allow_unused=True)
        pairs = zip(theta.items(), derivatives, strict=True)
        return {k: torch.zeros_like(t) if g is None else (t * g).abs().detach() for (k, t), g in pairs}

    def _ones(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.to(next(iter(self._tensors.values())).device)
        return torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x

    def _neutral(self) -> dict[str, Tensor]:
        tensors = dict(self._tensors)
        initial = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for prefix, module in self._model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, value in initial.items():
                    key = f"{prefix}.{name}" if prefix else name
                    if key in tensors:
                        tensors[key] = torch.full_like(tensors[key], value)
        return tensors


@contextmanager
def _float64() -> Iterator[None]:
    """Make tensors that the model creates itself, such as initial states, float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
