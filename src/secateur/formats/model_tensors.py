"""A model's tensors by name, and what else is needed to restore them exactly: ties, modes, memory order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import IntArray, PlanError, PruningGraph, StoreError
from secateur.core.indices import kept_axes

__all__ = [
    "LISTED",
    "carry",
    "check",
    "describe",
    "different_settings",
    "fill",
    "gather_tensors",
    "named_tensors",
    "shorten",
    "ties",
]

LISTED = 3


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, a tied tensor under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def ties(model: nn.Module) -> dict[str, str]:
    """Map the other names of each tied tensor to its first name.

    Example:
        >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> b.weight = a.weight
        >>> ties(nn.Sequential(a, b))
        {'1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in named_tensors(model) if first.setdefault(id(t), name) != name}


def shorten(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first items and count the rest.

    Example:
        >>> shorten(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return separator.join(items[:LISTED]) + more


def gather_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor by its first name, on the CPU, without shared storage.

    Raises:
        StoreError: If a safetensors file cannot hold a tensor.
    """
    tied, gathered = ties(model), {}
    for name, tensor in named_tensors(model):
        if name in tied:
            continue
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
            raise StoreError(f"{name!r} is a {kind} tensor, which safetensors cannot hold")
        value = tensor.detach().cpu().contiguous()
        # safetensors refuses views into a larger storage.
        whole = value.untyped_storage().nbytes() == value.nbytes
        gathered[name] = value if whole else value.clone()
    return gathered


def describe(model: nn.Module) -> dict[str, Any]:
    """Return, as JSON, what `fill` needs besides the tensors."""
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "modules": _module_texts(model),
        "training": [name for name, module in model.named_modules() if module.training],
        "fixed": [name for name, p in model.named_parameters() if not p.requires_grad],
        "ties": ties(model),
        "strides": {name: list(t.stride()) for name, t in named_tensors(model) if _is_permuted(t)},
    }


def _module_texts(model: nn.Module) -> dict[str, str]:
    """Return the class and the printed settings of every module: ``Linear(in_features=4, ...)``."""
    texts = {}
    for name, module in model.named_modules(remove_duplicate=False):
        try:
            settings = module.extra_repr()
        except Exception:  # a user's extra_repr may raise anything
            settings = ""
        # A setting with an address prints differently each time.
        texts[name] = type(module).__qualname__ + ("" if " at 0x" in settings else f"({settings})")
    return texts


def _is_permuted(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory in another order of axes than the default (channels last)."""
    default = torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride() != default and _is_dense(tensor.stride(), tensor.shape)


def _is_dense(strides: Sequence[int], shape: Sequence[int]) -> bool:
    filled = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return True


def check(model: nn.Module, expected: Mapping[str, tuple[int, ...]], what: str, remedy: str) -> None:
    """Compare the shapes of a model's tensors, each by its first name, with the expected ones.

    Raises:
        PlanError: If a tensor is missing, has another shape, or is not expected.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
    wrong = [
        f"{name!r} is missing"
        if name not in shapes
        else f"{name!r} is not expected"
        if name not in expected
        else f"{name!r} has shape {shapes[name]} instead of {tuple(expected[name])}"
        for name in {**expected, **shapes}
        if shapes.get(name) != expected.get(name)
    ]
    if wrong:
        raise PlanError(f"{what} does not fit the plan: {shorten(wrong, '; ')}. {remedy}")


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Tensor], described: Mapping[str, Any], remedy: str) -> None:
    """Put saved tensors into a model, in place and bit for bit, with its modes and flags.

    Args:
        model: The pruned model, with any values.
        tensors: What `gather_tensors` returned.
        described: What `describe` returned.
        remedy: End of the error message.

    Raises:
        PlanError: If the model is not the one described.
    """
    _check_classes(_module_texts(model), described["modules"], remedy)
    if ties(model) != described["ties"]:
        raise PlanError(
            f"the factory's model ties the tensors {ties(model)}; the saved model ties {described['ties']}. "
            f"{remedy}"
        )
    check(model, {name: tuple(t.shape) for name, t in tensors.items()}, "the factory's model", remedy)
    for name, tensor in named_tensors(model):
        if name in tensors:
            saved, strides = tensors[name], described["strides"].get(name)
            if strides is None or not _is_dense(strides, saved.shape):
                strides = saved.stride()
            # A tensor of its own, not a view into the file: kernels give other bits at other alignments.
            value = torch.empty_strided(saved.shape, strides, dtype=saved.dtype, device=tensor.device)
            tensor.data = value.copy_(saved)
    training, fixed = set(described["training"]), set(described["fixed"])
    for name, module in model.named_modules():
        module.training = name in training
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed)


def different_settings(model: nn.Module, described: Mapping[str, Any]) -> str:
    """Return the settings of modules that differ from the described ones, for an error message."""
    saved = described["modules"]  # version 0.1 stored the classes only
    different = [
        f"{name!r} is {text}, saved: {saved[name]}"
        for name, text in _module_texts(model).items()
        if name and "(" in text and "(" in saved[name] and text != saved[name]
    ]
    return shorten(different, "; ")


def _check_classes(texts: Mapping[str, str], saved_texts: Mapping[str, str], remedy: str) -> None:
    """Compare the classes of all modules; warn if only the model's own class has another name."""
    classes = {name: text.partition("(")[0] for name, text in texts.items()}
    saved = {name: text.partition("(")[0] for name, text in saved_texts.items()}
    different = [name for name in {**classes, **saved} if classes.get(name) != saved.get(name)]
    if different == [""]:
        warnings.warn(
            f"the saved model's class was called {saved['']}, the factory's is called {classes['']}; all "
            "modules and tensors in it fit, so the weights are loaded",
            stacklevel=5,
        )
    elif different:
        pairs = [
            f"{name!r} is {classes.get(name, 'missing')} instead of {saved.get(name, 'missing')}"
            for name in different
        ]
        raise PlanError(
            f"the factory's model has other modules than the saved one: {shorten(pairs)}. {remedy}"
        )


@torch.no_grad()
def carry(source: nn.Module, target: nn.Module, graph: PruningGraph, keep: Mapping[str, IntArray]) -> None:
    """Copy into `target`, in place, the tensors of `source` without the removed units.

    Args:
        source: A model of the graph.
        target: The same model after the removal, with any values.
        graph: The graph that `keep` refers to.
        keep: Group name -> units that stay.
    """
    kept = kept_axes(graph, keep)
    sources = dict(named_tensors(source))
    for name, tensor in named_tensors(target):
        value = sources[name].detach()
        for axis in range(value.ndim):
            if (name, axis) in kept:
                index = torch.from_numpy(kept[name, axis].nonzero()[0])
                value = value.index_select(axis, index.to(value.device))
        tensor.data = value.clone()
