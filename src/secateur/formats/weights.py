"""A model's tensors by name, with what is needed to put them back exactly: ties, modes, memory order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.core import InputError, IntArray, PlanError, PruningGraph, StoreError
from secateur.core.indices import kept_axes

LISTED = 3


def place_of(folder: str | Path) -> Path:
    """Return a path that was given, if it can be one.

    Raises:
        InputError: It cannot.
    """
    if not isinstance(folder, (str, Path)):
        raise InputError(f"a path is a str or a pathlib.Path; got {type(folder).__name__}")
    if "\0" in str(folder):
        raise InputError(f"a path cannot hold a NUL character; got {str(folder)!r}")
    return Path(folder)


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under every name that it has."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def ties(model: nn.Module) -> dict[str, str]:
    """Return the further names of tensors that have several -> the first.

    Example:
        >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> b.weight = a.weight
        >>> ties(nn.Sequential(a, b))
        {'1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in named(model) if first.setdefault(id(t), name) != name}


def collect_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor once, on the CPU, each in storage of its own.

    Raises:
        StoreError: A tensor that a file of plain tensors cannot hold.
    """
    again, found = ties(model), {}
    for name, tensor in named(model):
        if name in again:
            continue
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            raise StoreError(f"{name!r} is a {_kind(tensor)} tensor, which safetensors cannot hold")
        held = tensor.detach().cpu().contiguous()
        found[name] = held if held.untyped_storage().nbytes() == held.nbytes else held.clone()
    return found


def _kind(tensor: Tensor) -> str:
    return "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)


def _kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(m).__qualname__ for name, m in model.named_modules(remove_duplicate=False)}


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what a file of tensors does not say of a model, as JSON can hold it."""
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "modules": _kinds(model),
        "training": [name for name, module in model.named_modules() if module.training],
        "fixed": [name for name, p in model.named_parameters() if not p.requires_grad],
        "ties": ties(model),
        "strides": {name: list(t.stride()) for name, t in named(model) if _reordered(t)},
    }


def _reordered(tensor: Tensor) -> bool:
    """Say whether a tensor fills its memory in another order of axes than the usual (channels last)."""
    usual = torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride() != usual and _dense(tensor.stride(), tuple(tensor.shape))


def _dense(strides: Sequence[int], shape: tuple[int, ...]) -> bool:
    filled = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return True


def check(model: nn.Module, wanted: Mapping[str, tuple[int, ...]], what: str, remedy: str) -> None:
    """Compare a model's tensors, each by its first name, and their shapes with the wanted ones.

    Raises:
        PlanError: A tensor is missing, of another shape, or not wanted.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    have = {name: tuple(tensor.shape) for name, tensor in tensors}
    wrong = [
        f"{name} is {have.get(name, 'missing')}, not {wanted.get(name, 'wanted')}"
        for name in {**wanted, **have}
        if have.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise PlanError(f"{what} does not fit the plan: {'; '.join(wrong[:3])}{more}. {remedy}")


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Tensor], described: Mapping[str, Any], remedy: str) -> None:
    """Put saved tensors into a model, in place, to the bit.

    Raises:
        PlanError: The model is not the one that was described.
        StoreError: A tensor cannot be one of the model's.
    """
    _check_kinds(model, described, remedy)
    if ties(model) != described["ties"]:
        raise PlanError(f"the factory's model ties {ties(model)}, not {described['ties']}. {remedy}")
    check(model, {name: tuple(t.shape) for name, t in tensors.items()}, "the factory's model", remedy)
    for name, tensor in named(model):
        if name in tensors:
            _check_saved(name, tensors[name], tensor, described["strides"].get(name))
    for name, tensor in named(model):
        if name in tensors:
            # In memory of its own: kernels give other bits where tensors are aligned otherwise.
            saved, strides = tensors[name], described["strides"].get(name, tensors[name].stride())
            held = torch.empty_strided(saved.shape, strides, dtype=saved.dtype, device=tensor.device)
            tensor.data = held.copy_(saved)
    _restore(model, described)


def _check_kinds(model: nn.Module, described: Mapping[str, Any], remedy: str) -> None:
    """Compare the classes of modules by name; a model that was renamed, and nothing else, is said."""
    have, saved = _kinds(model), described["modules"]
    unlike = [k for k in {**have, **saved} if have.get(k) != saved.get(k)]
    if unlike == [""]:
        warnings.warn(
            f"the class was called {saved.get('')}, the factory makes {have.get('')}; the modules "
            "in it and their tensors fit, so the weights are put there",
            stacklevel=5,
        )
    elif unlike:
        pairs = [(k, have.get(k, "missing"), saved.get(k, "wanted")) for k in unlike[:3]]
        said = ", ".join(f"{name!r} is {one}, not {other}" for name, one, other in pairs)
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise PlanError(f"the factory's model has other modules: {said}{more}. {remedy}")


def _check_saved(name: str, saved: Tensor, tensor: Tensor, strides: Any) -> None:
    """Refuse a saved tensor of another kind of number, and an order of memory that cannot be."""
    if (saved.is_floating_point(), saved.is_complex()) != (tensor.is_floating_point(), tensor.is_complex()):
        raise StoreError(f"{name!r} was saved as {saved.dtype}, and is {tensor.dtype} in the factory's model")
    if strides is None:
        return
    whole = isinstance(strides, list) and all(type(x) is int for x in strides)
    if not whole or len(strides) != saved.ndim or not _dense(strides, tuple(saved.shape)):
        raise StoreError(f"field 'model/strides/{name}' cannot be {strides} for {tuple(saved.shape)}")


@torch.no_grad()
def carry(source: nn.Module, target: nn.Module, graph: PruningGraph, keep: Mapping[str, IntArray]) -> None:
    """Put into `target`, in place, the tensors of `source` without the units that go.

    Args:
        source: A model of the network.
        target: The same model after the removal, with whatever values.
        graph: What `keep` speaks of.
        keep: Group name -> units that stay.
    """
    left = kept_axes(graph, keep)
    found = dict(named(source))
    for name, tensor in named(target):
        held = found[name].detach()
        for axis in range(held.ndim):
            if (name, axis) in left:
                index = torch.from_numpy(left[name, axis].nonzero()[0])
                held = held.index_select(axis, index.to(held.device))
        tensor.data = held.clone()


def _restore(model: nn.Module, described: Mapping[str, Any]) -> None:
    training, fixed = set(described["training"]), set(described["fixed"])
    for name, module in model.named_modules():
        module.training = name in training
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed)


def load_weights(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Fill a model, in place, with the weights in a file of the user's; all of them or none.

    Args:
        model: The model; the file must hold its state dict, tied tensors under one name or all.
        path: A safetensors file; or, only with `allow_pickle`, a file that `torch.save` wrote.
        allow_pickle: Whether a file that is no safetensors may be unpickled (tensors only).

    Raises:
        StoreError: The file is missing, damaged or pickled, or does not fit the model.
    """
    file = place_of(path)
    if not file.is_file():
        raise StoreError(f"{file} does not exist")
    state = _read_state(file, allow_pickle)
    state.update({b: state[a] for a, b in ties(model).items() if a in state and b not in state})
    state.update({a: state[b] for a, b in ties(model).items() if b in state and a not in state})
    have = {name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor)}
    want = {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    if have != want:
        raise StoreError(
            f"{file} does not fit {type(model).__name__}: {_unlike(have, want)}. Give weights "
            "that were saved from this class with the same sizes, by its state_dict()'s names"
        )
    model.load_state_dict(state)


def _unlike(have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]]) -> str:
    """Say how the tensors of a file differ from a model's."""
    other = [name for name in want if name in have and have[name] != want[name]]
    shapes = [f"{name!r} is {have[name]} there and {want[name]} in the model" for name in other]
    kinds = (
        ("only the file has", [repr(name) for name in sorted(have) if name not in want]),
        ("only the model has", [repr(name) for name in want if name not in have]),
        ("of another shape:", shapes),
    )
    return "; ".join(f"{words} {_some(names)}" for words, names in kinds if names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _read_state(file: Path, allow_pickle: bool) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        if not allow_pickle:
            raise StoreError(f"{file} is no safetensors file ({error}). {_conversion(file)}") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise StoreError(f"{file} cannot be read as tensors: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise StoreError(f"{file} holds a {type(state).__name__}, not a state dict")
    return state


def _conversion(file: Path) -> str:
    with file.open("rb") as opened:
        pickled = opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04")
    if not pickled:
        return "Give one, or save the weights again"
    target = str(file.with_suffix(".safetensors"))
    return (
        "It looks like torch.save's. If you trust it, say allow_pickle=True in Python, or convert it once:\n"
        "  import torch, safetensors.torch\n"
        "  safetensors.torch.save_file({k: v.contiguous().clone() for k, v in "
        f"torch.load({str(file)!r}, map_location='cpu', weights_only=True).items()}}, {target!r})"
    )


__all__ = [
    "carry",
    "check",
    "collect_statistics",
    "describe",
    "fill",
    "load_weights",
    "named",
    "place_of",
    "ties",
]
