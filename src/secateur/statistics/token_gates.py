"""Derivatives of a language model's loss by gates on units, one for each token.

Each token of a text has its own loss, so the tokens are the examples of a causal language model.  A gate
z_tu multiplies unit u where a weight reads it at token t; the derivative of the loss by it is the sum of
x * d loss / d x over the features x that the unit is there.  A unit of queries and keys, which no weight
reads, has its gate on the key.  One backward pass gives all of them, and the forward pass before it also
gives the inputs of the weights to whoever collects their moments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import predicts_next_token
from secateur.core import Group, PruningGraph
from secateur.execution import device_of
from secateur.modules.padded_linear import output_places
from secateur.statistics.loss import Loss
from secateur.statistics.weight_inputs import InputHooks, WeightInput

__all__ = ["TokenGates", "gates_keys", "takes_token_gates"]


def takes_token_gates(model: Any) -> bool:
    """Return whether a model is a causal language model without stacked experts: its weights are matrices."""
    return predicts_next_token(model) and all(x.ndim <= 2 for x in model.parameters())


def gates_keys(group: Group) -> bool:
    """Return whether the gates of a group are on the keys that it makes: no weight reads its units."""
    return group.kind == "query-key positions"


class TokenGates:
    """Derivatives of the loss by a gate on each unit, one for each token.

    For use inside `untouched`: no parameter needs a gradient from here on.

    Args:
        model: A causal language model.
        graph: Its trace.
        loss: (outputs, targets) -> mean over the tokens.
    """

    def __init__(self, model: nn.Module, graph: PruningGraph, loss: Loss) -> None:
        """Find the features that each unit is."""
        self._model, self._loss = model, loss
        parameters = {k: p.requires_grad_(False) for k, p in model.named_parameters()}
        self._units: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
        self._weights: dict[str, tuple[Tensor, int]] = {}
        self._keys: dict[str, nn.Module] = {}
        for group in graph.groups:
            if gates_keys(group):
                made = group.slots_with("out")[-1]
                name = made.tensor.rpartition(".")[0]
                self._keys[name] = layer = model.get_submodule(name)
                places = output_places(layer, torch.from_numpy(made.index))
                self._units[name].append((group.name, places.to(device_of(model))))
            for reader, slot in graph.consumers(group):
                key, weight = graph.input_key(reader), parameters[reader.weight]
                self._weights[key] = weight, slot.axis
                self._units[key].append((group.name, torch.from_numpy(slot.index).to(weight.device)))

    def __call__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        targets: Tensor,
        inputs: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return, by group, the sum over the tokens of (d loss / d gate)^2, float64 [units].

        Args:
            args: Inputs of the model.
            kwargs: Keyword inputs of the model.
            targets: Next tokens [sequences, tokens].
            inputs: Gets the inputs of its weights in the same passes.
        """
        total: dict[str, Tensor] = {}
        for row in range(len(targets)):  # what a backward pass keeps of one sequence is large enough

            def one(x: Any, row: int = row) -> Any:
                batched = isinstance(x, Tensor) and x.ndim and len(x) == len(targets)
                return x[row : row + 1] if batched else x

            given = tuple(map(one, args)), {name: one(x) for name, x in kwargs.items()}
            for name, squares in self._squares(*given, one(targets), inputs or nullcontext()).items():
                total[name] = total[name] + squares if name in total else squares
        return total

    def _squares(
        self, args: Any, kwargs: Any, targets: Tensor, inputs: AbstractContextManager[Any]
    ) -> dict[str, Tensor]:
        reads: list[tuple[str, Tensor]] = []

        def gate(read: WeightInput) -> Tensor:
            return gate_features(read.key, read.x.movedim(read.axis, -1)).movedim(-1, read.axis)

        def gate_features(key: str, x: Tensor) -> Tensor:
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            reads.append((key, x))
            return x

        with ExitStack() as hooks, torch.enable_grad(), inputs, InputHooks(self._weights, gate):
            for name, layer in self._keys.items():
                hook = layer.register_forward_hook(lambda _, __, made, name=name: gate_features(name, made))
                hooks.callback(hook.remove)
            loss = self._loss(self._model(*args, **kwargs), targets)
        derivatives = torch.autograd.grad(loss, [x for _, x in reads], allow_unused=True)
        terms: dict[tuple[str, torch.Size], Tensor] = {}
        for (key, x), derivative in zip(reads, derivatives, strict=True):
            if derivative is None:
                continue
            products = x.detach() * derivative
            for name, index in self._units[key]:
                term = products[..., index].sum(-1).double()
                where = name, term.shape  # what several weights read at a token adds up
                terms[where] = terms[where] + term if where in terms else term
        squares: dict[str, Tensor] = {}
        for (name, _), term in terms.items():
            square = term.square().flatten(0, -2).sum(0)
            squares[name] = squares[name] + square if name in squares else square
        return squares
