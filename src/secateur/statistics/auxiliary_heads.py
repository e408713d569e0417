"""Auxiliary networks for deep models: a small classifier after every convolution.

Decoupled greedy learning (Belilovsky, Eickenberg and Oyallon, arXiv:1901.08164) as used in appendix D.2 of
arXiv:2002.07376: each convolution but the last gets an auxiliary network (average pooling by 4, a 1x1
convolution with BatchNorm and ReLU, reduction to 2 x 2, a linear layer) with its own optimiser.  The
mixed-integer program of a layer then needs that layer and its auxiliary network only.

The input of a layer is a constant of its program, and so is the output of its convolution.  Only what follows
is built as matrices, so all positions of early layers are kept and none needs to be sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError
from secateur.statistics.relu_chain import chain_steps, flatten_images
from secateur.structures.relu_mip import Chain, Part, ReLU

__all__ = [
    "Decoupled",
    "DecoupledBlock",
    "attach_auxiliaries",
    "auxiliary",
    "cut_into_blocks",
    "parts",
    "train_blocks",
]


@dataclass(frozen=True, eq=False)
class DecoupledBlock:
    """A convolution with its BatchNorm, the modules up to the next convolution, and a classifier.

    Attributes:
        weight: Name of the convolution's weight in the model.
        head: The affine part.
        tail: ReLU, pooling and the like; for the last block all remaining modules.
        auxiliary: Classifier on the output of `tail`; None for the last block.
        names: Weight names in `tail` -> names in the model.
    """

    weight: str
    head: nn.Sequential
    tail: nn.Sequential
    auxiliary: nn.Sequential | None
    names: dict[str, str]


@dataclass(frozen=True, eq=False)
class Decoupled:
    """A model cut into blocks, each with a trained auxiliary network.

    Attributes:
        model: A copy of the model, trained with its auxiliaries if `train_layers` was set.
        blocks: Its blocks in order; they share its tensors.
    """

    model: nn.Module
    blocks: tuple[DecoupledBlock, ...]

    def modules(self) -> nn.ModuleList:
        """Return the model and its auxiliary networks as one module, as for saving all weights."""
        heads = [block.auxiliary for block in self.blocks if block.auxiliary is not None]
        return nn.ModuleList([self.model, *heads])


def auxiliary(channels: int, side: tuple[int, int], width: int, classes: int) -> nn.Sequential:
    """Return the auxiliary classifier of appendix D.2 for inputs [batch, channels, *side]."""
    quarter = tuple(max(1, n // 4) for n in side)
    small = tuple(min(2, n) for n in quarter)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(quarter),
        nn.Conv2d(channels, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(small),
        nn.Flatten(),
        nn.Linear(width * small[0] * small[1], classes),
    )


def attach_auxiliaries(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int = 1,
    width: int = 32,
    classes: int | None = None,
    lr: float = 1e-3,
    train_layers: bool = False,
    seed: int = 0,
) -> Decoupled:
    """Cut a copy of a model after each convolution and train an auxiliary network for every block.

    Every block has its own Adam, and no gradient passes from one block to another.

    Args:
        model: A model that applies its modules one after the other (it runs once to check); not changed.
        batches: Pairs (inputs, targets), one step each; iterated once per epoch.
        epochs: Passes over the batches.
        width: Channels of the auxiliary networks.
        classes: Number of classes; the model's outputs by default.
        lr: Learning rate.
        train_layers: Also train the model's own layers this way, as the paper does from scratch.
        seed: Seed of the auxiliary networks' weights.

    Raises:
        InputError: If there are functional calls between modules, fewer than two convolutions, no batches or
            no epochs.
    """
    data = batches if isinstance(batches, Sized) else list(batches)
    if epochs < 1 or not len(data):
        raise InputError(
            f"auxiliary networks need batches of (inputs, targets) and an epoch or more to train; got "
            f"{len(data)} batches and epochs={epochs}"
        )
    first = next(iter(data))[0]
    decoupled = cut_into_blocks(model, first[:2], width=width, classes=classes, seed=seed)
    train_blocks(decoupled, data, epochs=epochs, lr=lr, train_layers=train_layers)
    return decoupled


def cut_into_blocks(
    model: nn.Module, x: Tensor, *, width: int = 32, classes: int | None = None, seed: int = 0
) -> Decoupled:
    """Cut a copy of a model after each convolution, and give every block an untrained auxiliary network.

    Args:
        model: A model that applies its modules one after the other; not changed.
        x: Inputs [batch, ...] for one pass.
        width: Channels of the auxiliary networks.
        classes: Number of classes; the model's outputs by default.
        seed: Seed of the auxiliary networks' weights.

    Raises:
        InputError: If there are functional calls between modules, or fewer than two convolutions.
    """
    copied = copy.deepcopy(model).eval()
    leaves = _leaves(copied, x)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        blocks = _blocks(leaves, x, width, classes or copied(x).shape[1])
    return Decoupled(copied, blocks)


def _leaves(model: nn.Module, x: Tensor) -> list[tuple[str, nn.Module]]:
    """Return the leaf modules in the order of their calls, and check that they are the whole model."""
    names = {module: name for name, module in model.named_modules()}
    called: list[nn.Module] = []
    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in leaves]
    try:
        with torch.no_grad():
            whole = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        h = x
        for module in called:
            try:
                h = module(h)
            except RuntimeError as error:
                raise InputError(_functional(model, names[module])) from error
    if h.shape != whole.shape or not torch.allclose(h, whole, rtol=1e-4, atol=1e-5):
        raise InputError(_functional(model, "its end"))
    return [(names[module], module) for module in called]


def _functional(model: nn.Module, where: str) -> str:
    return (
        f"{type(model).__name__} does not apply its modules one after the other (it differs at {where}): "
        "functional calls and branches cannot be cut; write them as modules in nn.Sequential"
    )


def _blocks(
    leaves: list[tuple[str, nn.Module]], x: Tensor, width: int, classes: int
) -> tuple[DecoupledBlock, ...]:
    starts = [k for k, (_, module) in enumerate(leaves) if isinstance(module, nn.Conv2d)]
    if len(starts) < 2 or starts[0] != 0:
        raise InputError(
            "decoupled learning needs a model that starts with a convolution and has at least two; "
            f"this one has {len(starts)}"
        )
    blocks = []
    for number, start in enumerate(starts):
        last = number == len(starts) - 1
        end = len(leaves) if last else starts[number + 1]
        affine = start + 1 + isinstance(leaves[start + 1][1], nn.BatchNorm2d)
        head = nn.Sequential(*(m for _, m in leaves[start:affine]))
        tail = nn.Sequential(*(m for _, m in leaves[affine:end]))
        names = {f"{k}.weight": f"{name}.weight" for k, (name, _) in enumerate(leaves[affine:end])}
        x = tail(head(x))
        extra = None if last else auxiliary(x.shape[1], (x.shape[2], x.shape[3]), width, classes)
        extra = extra.to(x.device, x.dtype) if extra is not None else None
        blocks.append(DecoupledBlock(f"{leaves[start][0]}.weight", head, tail, extra, names))
    return tuple(blocks)


def train_blocks(
    decoupled: Decoupled, data: Iterable[Any], *, epochs: int, lr: float, train_layers: bool
) -> None:
    """Train every block in place by one step a batch, on detached inputs.

    Args:
        decoupled: From `cut_into_blocks`.
        data: Pairs (inputs, targets), one step each; iterated once per epoch.
        epochs: Passes over the batches.
        lr: Learning rate.
        train_layers: Train the model's own layers, too, not the auxiliary networks alone.
    """
    blocks = decoupled.blocks
    rules: list[torch.optim.Optimizer | None] = []
    for block in blocks:
        own = [*block.head.parameters(), *block.tail.parameters()] if train_layers else []
        extra = list(block.auxiliary.parameters()) if block.auxiliary is not None else []
        rules.append(torch.optim.Adam(own + extra, lr) if own + extra else None)
        for module in (block.head, block.tail):
            module.train(train_layers)
        if block.auxiliary is not None:
            block.auxiliary.train()
    with torch.enable_grad():
        for inputs, targets in (pair for _ in range(epochs) for pair in data):
            x = inputs
            for block, rule in zip(blocks, rules, strict=True):
                x = _step(block, rule, x, targets, train_layers)
    decoupled.modules().eval()


def _step(
    block: DecoupledBlock, rule: torch.optim.Optimizer | None, x: Tensor, targets: Tensor, train_layers: bool
) -> Tensor:
    with torch.set_grad_enabled(train_layers):
        h = block.tail(block.head(x))
    if rule is not None:
        logits = block.auxiliary(h) if block.auxiliary is not None else h
        rule.zero_grad()
        nn.functional.cross_entropy(logits, targets).backward()
        rule.step()
    return h.detach()


def parts(decoupled: Decoupled, images: Tensor, labels: Tensor) -> tuple[Part, ...]:
    """Return one program for each block; its inputs are the outputs of the convolution for the images.

    Auxiliary units are not scored.  The box of the published bounds is around the convolution's outputs.

    Args:
        decoupled: From `attach_auxiliaries`.
        images: [images, ...].
        labels: Their classes [images].
    """
    found, x = [], images
    with torch.no_grad():
        for block in decoupled.blocks:
            a = block.head(x)
            found.append(_part(block, a, labels))
            x = block.tail(a)
    return tuple(found)


def _part(block: DecoupledBlock, a: Tensor, labels: Tensor) -> Part:
    rest = block.tail if block.auxiliary is None else nn.Sequential(block.tail, block.auxiliary)
    steps = chain_steps(rest, a)
    first = steps[0]
    if not isinstance(first, ReLU):
        raise InputError(f"no ReLU follows the convolution of {block.weight!r}: its units have no score")
    units = np.repeat(np.arange(a.shape[1]), a[0, 0].numel())
    renamed = [_renamed(step, block) if isinstance(step, ReLU) else step for step in steps[1:]]
    chain = Chain((replace(first, name=block.weight, units=units, scored=True), *renamed), first.width).fuse()
    return Part(block.weight, chain, flatten_images(a), labels.detach().cpu().numpy())


def _renamed(step: ReLU, block: DecoupledBlock) -> ReLU:
    """Name a later ReLU as in the model; ReLUs of the auxiliary network are not scored."""
    if block.auxiliary is not None or step.name not in block.names:
        return replace(step, scored=False)
    return replace(step, name=block.names[step.name], scored=True)
