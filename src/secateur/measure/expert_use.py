"""What the experts of mixtures do: how many tokens the router sends to each, and how much they add to them.

An expert j adds g_j(x) f_j(x) to a token x that is routed to it: its output f_j, times the weight g_j that
the router gives it.  Two forms of experts are observed:

- One module that is called with hidden states, the chosen experts and their weights (transformers 5).  It is
  called again for each choice, with a weight of 1: so f_j is its own, whatever it computes.
- A list of experts.  The mixture is called again; as its result is a sum of g_j f_j, the derivative with
  respect to f_j is g_j.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.experts import Mixture, find_mixtures
from secateur.core import InputError
from secateur.execution import evaluating, explain_errors, read_batches
from secateur.outputs import floating_outputs
from secateur.processes import current_processes, sum_over_processes

__all__ = ["ExpertUse", "measure_expert_use"]

ROUNDING = 16  # times the precision of the type, of the largest sum or derivative


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """What the experts of a mixture did on some batches.

    Attributes:
        tokens: How many tokens the router sent to each expert [experts], float64 on the CPU.
        total: The sum, over these tokens, of the norm of what the expert added, g_j |f_j| [experts].
    """

    tokens: Tensor
    total: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean norm instead of the sum, 0 without tokens: the saliency of REAP (arXiv:2510.13999)."""
        return self.total / self.tokens.clamp(min=1)


def measure_expert_use(
    model: nn.Module, batches: Sequence[Any], names: Collection[str] | None = None
) -> dict[str, ExpertUse]:
    """Return how many tokens each expert gets, and how much it adds to them.

    What counts is what the router chooses, also if it first chooses among groups of experts or adds biases.
    Inside `split_over_processes` each process runs some of the batches.

    Args:
        model: A model with mixtures of experts; it is not changed.
        batches: Batches of inputs; no labels are needed.
        names: Names of the mixtures to look at; by default all.

    Returns:
        Name of a mixture -> what its experts did.

    Raises:
        InputError: If the outputs of a mixture's experts cannot be observed.
    """
    mixtures = {name: x for name, x in find_mixtures(model).items() if names is None or name in names}
    sums = {name: torch.zeros(2, x.count, dtype=torch.float64) for name, x in mixtures.items()}
    handles = [_observe(model, name, x, sums[name]) for name, x in mixtures.items()]
    processes = current_processes()
    try:
        with evaluating(model):
            for number, (where, args, kwargs, _) in enumerate(read_batches(batches, model)):
                if processes.owns(number):
                    with explain_errors(where, args, kwargs):
                        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: ExpertUse(*x) for name, x in sum_over_processes(sums).items()}
    for name, use in found.items():
        if not use.tokens.any():
            raise _unseen(name, "its experts are not called on their own when the model runs")
    return found


def _observe(model: nn.Module, name: str, mixture: Mixture, sums: Tensor) -> Any:
    """Add up tokens and norms [2, experts] whenever a mixture is called; return a handle that ends it."""
    experts = model.get_submodule(mixture.experts)
    if isinstance(experts, nn.ModuleList):
        hook = partial(_add_listed, name, list(experts), sums)
        return model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    return experts.register_forward_hook(partial(_add_stacked, name, sums), with_kwargs=True)


def _add_stacked(
    name: str, sums: Tensor, experts: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> None:
    """Call experts again, for each choice of the tokens with a weight of 1, and add tokens and norms."""
    index, weights = _routing(name, (*args, *kwargs.values()))
    wide = torch.promote_types(output.dtype, torch.float32)
    summed, largest = torch.zeros_like(output, dtype=wide), torch.zeros((), dtype=wide)
    for choice in range(index.shape[-1]):
        number, gate = index[..., choice : choice + 1], weights[..., choice : choice + 1]
        given = {id(index): number, id(weights): torch.ones_like(gate)}
        y = experts.forward(
            *(given.get(id(x), x) for x in args), **{key: given.get(id(x), x) for key, x in kwargs.items()}
        )
        added = y * gate.reshape(*y.shape[:-1], 1)
        summed += added
        largest = torch.maximum(largest, added.abs().max().to(largest))
        _add(sums, number, gate, y)
    if (summed - output).abs().max().cpu() > ROUNDING * torch.finfo(output.dtype).eps * largest:
        raise _unseen(name, "its result is not the sum of what experts return, times their weights")


def _routing(name: str, given: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the chosen experts and their weights [..., chosen] of the arguments of a module of experts."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    numbers = [x for x in tensors if not x.is_floating_point()]
    shape = numbers[0].shape if len(numbers) == 1 else None
    weights = [x for x in tensors if x.is_floating_point() and x.shape == shape]
    if len(weights) != 1 or len(tensors) != 3:
        raise _unseen(name, "they are not called with hidden states, the chosen experts and their weights")
    return numbers[0], weights[0]


def _add_listed(
    name: str,
    experts: Sequence[nn.Module],
    sums: Tensor,
    mixture: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
) -> None:
    """Call a mixture again, and add the norms of the experts' outputs times the derivatives for them."""
    seen: list[tuple[int, Tensor]] = []

    def detach(number: int, expert: nn.Module, inputs: Any, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            raise _unseen(name, f"expert {number} returns a {type(y).__name__} and no tensor")
        seen.append((number, y.detach().requires_grad_()))
        return seen[-1][1] + 0  # the mixture may write into it

    handles = [x.register_forward_hook(partial(detach, number)) for number, x in enumerate(experts)]
    try:
        with torch.enable_grad():
            total = floating_outputs(mixture.forward(*args, **kwargs))[0].sum()
    finally:
        for handle in handles:
            handle.remove()
    if not total.requires_grad and seen:
        raise _unseen(name, "its result has no derivative with respect to what experts return")
    leaves = [y for _, y in seen]
    found = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
    for (number, y), gradient in zip(seen, found, strict=True):
        if gradient is None or not gradient.numel():
            continue
        gate = gradient.mean(-1, keepdim=True)
        bound = ROUNDING * torch.finfo(y.dtype).eps * gradient.abs().max()
        if (gradient - gate).abs().max() > bound:
            raise _unseen(name, "its result is not the sum of what experts return, times their weights")
        routed = gate.flatten() != 0
        rows = y.reshape(-1, y.shape[-1])[routed]
        _add(sums, torch.full(rows.shape[:1], number), gate.flatten()[routed], rows)


def _add(sums: Tensor, number: Tensor, gate: Tensor, y: Tensor) -> None:
    """Add tokens and |gate| |y| to the experts of these numbers; y is [..., features]."""
    norms = torch.linalg.vector_norm(y.detach(), dim=-1, dtype=torch.float64).flatten()
    added = (norms * gate.detach().flatten().abs()).cpu()
    sums.index_add_(1, number.flatten().cpu(), torch.stack([torch.ones_like(added), added]))


def _unseen(name: str, why: str) -> InputError:
    return InputError(
        f"the outputs of the experts of {name!r} cannot be observed: {why}. Give the numbers of the experts "
        f"that stay, as in experts={{{name!r}: [0, 1]}}"
    )
