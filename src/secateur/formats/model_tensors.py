"""A model's tensors by name, and what else is needed to restore them exactly: ties, modes, memory order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.kept_tensors import check_shapes, named_tensors, places
from secateur.core import PlanError, StoreError, shorten
from secateur.tracing.export import first_names

__all__ = ["describe_model", "different_settings", "gather_tensors", "restore_tensors", "tied_names"]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Map the other names of each tied tensor to its first name.

    Example:
        >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> b.weight = a.weight
        >>> tied_names(nn.Sequential(a, b))
        {'1.weight': '0.weight'}
    """
    return {name: first for name, first in first_names(model).items() if name != first}


def gather_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor by its first name, on the CPU, without shared storage.

    The plan knows where zeros take the place of units, so these numbers are not among them.

    Raises:
        StoreError: If a safetensors file cannot hold a tensor.
    """
    left_out, gathered = tied_names(model).keys() | places(model), {}
    for name, tensor in named_tensors(model):
        if name in left_out:
            continue
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
            raise StoreError(f"{name!r} is a {kind} tensor, which safetensors cannot hold")
        value = tensor.detach().cpu().contiguous()
        # safetensors refuses views into a larger storage.
        whole = value.untyped_storage().nbytes() == value.nbytes
        gathered[name] = value if whole else value.clone()
    return gathered


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return, as JSON, what `restore_tensors` needs besides the tensors."""
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "modules": _module_texts(model),
        "training": [name for name, module in model.named_modules() if module.training],
        "fixed": [name for name, p in model.named_parameters() if not p.requires_grad],
        "ties": tied_names(model),
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
    """Return whether a tensor fills its memory in another order of axes than the default (channels last)."""
    default = torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride() != default and _is_dense(tensor.stride(), tensor.shape)


def _is_dense(strides: Sequence[int], shape: Sequence[int]) -> bool:
    filled = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return True


@torch.no_grad()
def restore_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], described: Mapping[str, Any], remedy: str
) -> None:
    """Put saved tensors into a model, in place and bit for bit, with its modes and flags.

    Args:
        model: The pruned model, with any values.
        tensors: What `gather_tensors` returned.
        described: What `describe_model` returned.
        remedy: End of the error message.

    Raises:
        PlanError: If the model is not the one described.
    """
    _check_classes(_module_texts(model), described["modules"], remedy)
    if tied_names(model) != described["ties"]:
        raise PlanError(
            f"the factory's model ties the tensors {tied_names(model)}; "
            f"the saved model ties {described['ties']}. {remedy}"
        )
    check_shapes(model, {name: tuple(t.shape) for name, t in tensors.items()}, "the factory's model", remedy)
    for name, tensor in named_tensors(model):
        if name in tensors:
            saved, strides = tensors[name], described["strides"].get(name)
            if strides is None or not _is_dense(strides, saved.shape):
                strides = saved.stride()
            # A copy, not a view into the file: kernels give other bits at other alignments.
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
            stacklevel=6,
        )
    elif different:
        pairs = [
            f"{name!r} is {classes.get(name, 'missing')} instead of {saved.get(name, 'missing')}"
            for name in different
        ]
        raise PlanError(
            f"the factory's model has other modules than the saved one: {shorten(pairs)}. {remedy}"
        )
