"""Whole blocks: take layers out of a stack, so that the rest is an ordinary, shallower model.

A block is a child of an `nn.ModuleList` or `nn.Sequential` whose children are all of one class: a decoder
layer, a stage's residual block.  Where it computes x + f(x), its removal is exact: with its tensors at zero
the branch adds nothing, and the skip stays.  This is checked on example inputs, as every removal is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.exactness import verify_call
from secateur.core import InputError, shorten, unknown
from secateur.execution import check_module, duplicate, tensors_by_name
from secateur.tracing.trace import as_call

__all__ = ["drop_blocks", "find_blocks"]

STACKS = (nn.ModuleList, nn.Sequential)
NUMBER = "num_hidden_layers"  # of transformers' configs, whatever their own name for it


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks of the outermost stacks, in the order of the model.

    Example:
        >>> body = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2)))
        >>> find_blocks(nn.Sequential(body, nn.Linear(3, 1)))
        ('0.0', '0.1')
    """
    blocks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(block + ".") for block in blocks)
        if not inside and isinstance(module, STACKS) and _is_stack(module):
            blocks += [f"{name}.{child}" if name else child for child, _ in module.named_children()]
    return tuple(blocks)


def _is_stack(module: nn.Module) -> bool:
    children = list(module.children())
    alike = len({type(child) for child in children}) == 1
    composed = all(any(True for _ in c.children()) and any(True for _ in c.parameters()) for c in children)
    return len(children) > 1 and alike and composed


def drop_blocks(
    model: nn.Module,
    names: Iterable[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    check_device: str | torch.device | None = None,
    *,
    replaced: Mapping[int, Tensor] | None = None,
) -> nn.Module:
    """Return a copy of the model without some blocks; the others move up.

    Configs of transformers follow: the number of layers and lists with an entry for each layer, and the
    blocks' own numbers, by which they find their cache.

    Args:
        model: Any module; it is not changed.
        names: Names of blocks: children of an `nn.ModuleList` or `nn.Sequential` whose children are all of
            one class.  At least one child of each stays.
        example_inputs: What the model is called with.  If given, the result is compared with the model in
            which all tensors of these blocks are zero.
        example_kwargs: More keyword arguments of the model.
        check_device: Device of that comparison; by default the model's.
        replaced: Tensors of the copy by the ids of the model's, as `execution.duplicate` takes them.

    Raises:
        InputError: If a name is not that of a block, or if all blocks of a stack would go.
        ExactnessError: If the blocks do more than add to their input, so that leaving them out is not exact.

    Example:
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.inner(x).relu()
        >>> small = drop_blocks(nn.Sequential(Residual(), Residual()), ["0"], torch.randn(2, 3))
        >>> len(small)
        1
    """
    check_module(model)
    gone = _by_stack(model, names)
    small = duplicate(model, replaced)
    for stack, numbers in gone.items():
        _shorten_stack(small, stack, numbers)
    if example_inputs is not None or example_kwargs is not None:
        args, kwargs = as_call({} if example_inputs is None else example_inputs, example_kwargs)
        listed = shorten([f"{stack}.{i}" if stack else str(i) for stack, n in gone.items() for i in n])
        what = f"the model without the blocks {listed}"
        verify_call(_zeroed(model, gone), small, args, kwargs, what, check_device)
    return small


def _by_stack(model: nn.Module, names: Iterable[str]) -> dict[str, list[int]]:
    """Return the numbers of the blocks that go, by the name of their stack."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"names of blocks are a list; got {type(names).__name__}")
    modules = dict(model.named_modules())
    gone: dict[str, list[int]] = {}
    for name in dict.fromkeys(names):
        stack, _, child = str(name).rpartition(".")
        parent = modules.get(stack)
        if name not in modules or not isinstance(parent, STACKS) or not _is_stack(parent):
            raise InputError(unknown("block", str(name), list(find_blocks(model))))
        gone.setdefault(stack, []).append([n for n, _ in parent.named_children()].index(child))
    for stack, numbers in gone.items():
        count = len(list(modules[stack].children()))
        if len(numbers) == count:
            raise InputError(f"all {count} blocks of {stack or 'the model'} would go: at least one must stay")
    return {stack: sorted(numbers) for stack, numbers in gone.items()}


def _shorten_stack(model: nn.Module, name: str, gone: Sequence[int]) -> None:
    """Take children out of a stack, in place; number the others, and make configs follow."""
    stack: Any = model.get_submodule(name)
    count = len(stack)
    kept = [i for i in range(count) if i not in gone]
    for number in reversed(gone):
        del stack[number]
    for new, old in enumerate(kept):
        for module in stack[new].modules():
            if getattr(module, "layer_idx", None) == old:
                module.layer_idx = new
    owner: Any = model.get_submodule(name.rpartition(".")[0])
    if getattr(owner, "num_layers", None) == count:  # nn.TransformerEncoder
        owner.num_layers = len(kept)
    config = getattr(owner, "config", None)
    if getattr(config, NUMBER, None) == count:
        setattr(config, NUMBER, len(kept))
        for key, values in list(vars(config).items()):
            if isinstance(values, (list, tuple)) and len(values) == count and "layer" in key:
                setattr(config, key, type(values)(values[i] for i in kept))


def _zeroed(model: nn.Module, gone: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of the model in which all floating tensors of these blocks are zero."""
    masked = duplicate(model)
    with torch.no_grad():
        for stack, numbers in gone.items():
            children = list(masked.get_submodule(stack).children())
            for tensor in (t for i in numbers for t in tensors_by_name(children[i]).values()):
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.zero_()
    return masked
