"""Gradients of a loss, and synaptic flow; the model's own parameters are not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from secateur.core import InputError, PruningGraph
from secateur.execution import logits, tensors_of, untouched

__all__ = ["Loss", "SynapticFlow", "check_loss", "cross_entropy", "gradients"]

Loss = Callable[[Any, Any], Tensor]


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Return the mean cross-entropy of logits.

    Args:
        outputs: Logits [B, C] with targets [B]; [B, T, V] with [B, T]; [B, C, *space] with [B, *space];
            or an object with `.logits`.
        targets: Class numbers (-100: left out), or probabilities of the logits' shape.

    Raises:
        InputError: Shapes that do not match, one class only, or class numbers out of range.
    """
    scores = logits(outputs)
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor for cross-entropy; got {type(targets).__name__}")
    if scores.ndim > 2 and targets.shape == scores.shape[:-1]:
        scores, targets = scores.reshape(-1, scores.shape[-1]), targets.reshape(-1)
    soft = targets.is_floating_point() and targets.shape == scores.shape
    if (
        scores.ndim < 2
        or scores.shape[1] < 2
        or not (
            soft
            or (not targets.is_floating_point() and targets.shape == (scores.shape[0], *scores.shape[2:]))
        )
    ):
        raise InputError(
            f"cross-entropy cannot compare outputs {tuple(scores.shape)} with {targets.dtype} targets "
            f"{tuple(targets.shape)}; pass loss=callable(outputs, targets)"
        )
    if not soft:
        targets = targets.long()
        _check_classes(targets, scores.shape[1])
    return F.cross_entropy(scores, targets)


def _check_classes(targets: Tensor, classes: int) -> None:
    # Inside a transform of torch.func no branch may depend on values.
    if torch._C._functorch.is_functorch_wrapped_tensor(targets):
        return
    wrong = targets[(targets >= classes) | ((targets < 0) & (targets != -100))]
    if wrong.numel():
        raise InputError(f"targets go from 0 to {classes - 1} for {classes} classes; got {int(wrong[0])}")


def gradients(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any, loss: Loss
) -> dict[str, Tensor]:
    """Return the gradient of the loss of one batch by every floating parameter, zero where it has none."""
    floating = ((k, p) for k, p in model.named_parameters() if p.is_floating_point())
    parameters = {k: p.detach().requires_grad_() for k, p in floating}
    with torch.enable_grad():
        value = loss(functional_call(model, parameters, args, dict(kwargs)), targets)
        check_loss(value)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {k: torch.zeros_like(p) if g is None else g.detach() for (k, p), g in pairs}


def check_loss(value: Any) -> None:
    """Raise `InputError` if a loss is none that gradients can be taken of."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a loss must be one number for the batch; got {shape}")
    if not value.requires_grad:
        raise InputError("the loss does not depend on the parameters: nothing can be derived from it")


class SynapticFlow:
    """SynFlow's scores |theta * dR/dtheta| of a network with parameters |theta|, any of them masked.

    Tanaka et al. (arXiv:2006.05467).  R is the sum of the outputs for inputs of ones, in evaluation mode
    and float64: 30 layers of 256 units give R = 8e51, more than float32 holds.  Integer inputs (tokens)
    stay what they are.  All parameters are made positive, biases and normalisation too; running statistics
    are left as they are.

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
            neutral_bn: Take BatchNorm as at initialisation.

        Raises:
            InputError: R overflows, or a mask does not fit.
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
            found = torch.autograd.grad(R, list(theta.values()), allow_unused=True)
        pairs = zip(theta.items(), found, strict=True)
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
    """Make what the model creates by itself, such as initial states, float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
