"""What a comparison is made on: a model for each seed, and examples that every method gets alike.

Nothing is shared between what methods look at and what the metric is taken on.  With one trained model, each
seed has a part of its own of the held-out examples, so that seeds are independent of each other there, and a
sample of its own of the examples to calibrate on.  With a model for each seed, all held-out examples are used
each time.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.cli.specs import (
    Batches,
    example_of,
    find_function,
    is_folder,
    make_data,
    make_method,
    make_model,
    run_theirs,
)
from secateur.core import InputError, PruningGraph
from secateur.execution import tensors_of
from secateur.methods import METHODS
from secateur.tracing.export import export_model

SAMPLE = 0.8
SHARED = 0.01  # of the held-out examples: some data repeat themselves
KNOWN = 2


def takes_seed(model: str, weights: str | None) -> bool:
    """Say whether a model is made anew for each seed: its factory has a parameter `seed`, and no weights.

    Example:
        >>> takes_seed("secateur.zoo:lenet5", None), takes_seed("secateur.zoo:lenet5", "w.safetensors")
        (True, False)
    """
    if weights is not None or is_folder(model):
        return False
    try:
        return "seed" in inspect.signature(find_function(model)).parameters
    except (TypeError, ValueError):
        return False


@lru_cache(maxsize=KNOWN)
def subject(name: str, weights: str | None, seed: int | None) -> tuple[nn.Module, Any, str]:
    """Return a model in evaluation mode, the example inputs that it brings (or None), and its hash.

    Args:
        name: ``package.module:factory``, ``file.py:factory``, or a folder that transformers saved.
        weights: Safetensors file with its state, or None.
        seed: Given to the factory; None for one that takes none.
    """
    if seed is None:
        model, example = make_model(name, weights)
        return model, example, model_hash(model)
    factory = find_function(name)
    model = run_theirs(f"{name}(seed={seed})", lambda: factory(seed=seed))
    if not isinstance(model, nn.Module):
        raise InputError(f"{name}(seed={seed}) returned a {type(model).__name__}, not a torch.nn.Module")
    example = getattr(factory, "example_inputs", None)
    example = run_theirs(f"{name}.example_inputs", example) if callable(example) else example
    return model.eval(), example, model_hash(model)


@lru_cache(maxsize=KNOWN)
def examples(data: str, holdout: str | None, tuned: bool) -> tuple[Batches, str]:
    """Return the batches to calibrate on and those held out, and the hash of both.

    Args:
        data: As ``--data``: a data set, or a function that returns batches.
        holdout: Function that returns the held-out batches; a data set brings its own.
        tuned: Whether the batches are for fine-tuning as well: a data set's training part then.

    Raises:
        InputError: Nothing is held out, or the same examples are.
    """
    found = make_data(data, "finetune" if tuned else None)
    held = make_data(holdout).fit if holdout is not None else found.holdout
    if found.fit is None or held is None:
        raise InputError(
            f"what is {data} judged on? Name other batches with --holdout: methods must not see them"
        )
    batches = Batches(found.fit, held, found.example)
    shared = overlap(found.fit, held)
    if shared > SHARED:
        raise InputError(
            f"{shared:.0%} of the held-out examples are among those that methods look at: hold others out"
        )
    return batches, hash_batches([*found.fit, *held])


def example_inputs(example: Any, shape: str | None, batches: Batches) -> Any:
    """Return what the model is called with: of the shape that is named, or from the data, or its own.

    Raises:
        InputError: There is none.
    """
    found = example_of(shape) if shape is not None else batches.example
    if found is None and example is None:
        raise InputError("what is the model called with? Give --example-shape, as in 2,3,32,32")
    return example if found is None else found


def model_hash(model: nn.Module) -> str:
    """Return what tells a model from others: SHA-256 of its structure, parameters and buffers.

    Buffers that are not saved with the state count as well: they decide what the model computes.

    Example:
        >>> torch.manual_seed(0) and None
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> model_hash(a) == model_hash(a), model_hash(a) == model_hash(b)
        (True, False)
    """
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in tensors_of(model).items():
        digest.update(name.encode())
        _update(digest, tensor)
    return digest.hexdigest()


def code_hash(network: PruningGraph, model: nn.Module, tuned: bool = False) -> str:
    """Return what tells a model's code from another's: SHA-256 of the traced operations and constants.

    A model whose ``forward`` was edited has the same modules and weights as before, and another hash.

    Args:
        network: The trace, which is of the model in evaluation mode.
        model: The model.
        tuned: Whether the model is trained on: then the files of its classes count too, but for torch's.
    """
    exported = export_model(model, network.example_inputs, network.example_kwargs)
    digest = hashlib.sha256()
    for module in exported.graph_module.modules():
        digest.update(getattr(module, "code", "").encode())
    for name, value in sorted(exported.constants.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            _update(digest, value)
        else:
            digest.update(repr(value).encode())
    for file in _files(model) if tuned else ():
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _files(model: nn.Module) -> list[str]:
    """Return the files with the classes of a model's modules, torch's aside."""
    kinds = {kind for kind in map(type, model.modules()) if kind.__module__.partition(".")[0] != "torch"}
    found = set()
    for kind in kinds:
        with suppress(OSError, TypeError):  # a class made by exec or in C has none
            found.add(inspect.getfile(kind))
    return sorted(file for file in found if Path(file).is_file())


def method_hash(spec: str) -> str | None:
    """Return what tells a method's code from another's; None for one that Secateur knows by name.

    It is the SHA-256 of the file that the name leads to, and of the file with the method's class where that
    is another: a function may make a method of a class from elsewhere.

    Example:
        >>> method_hash("magnitude:p=2") is None, len(method_hash("secateur.methods:Magnitude"))
        (True, 64)
    """
    if spec.partition(":")[0] in METHODS:
        return None
    kind = type(make_method(spec))
    try:
        files = [_file_of(spec.partition(":")[0]), Path(inspect.getfile(kind)).resolve()]
        return hashlib.sha256(b"".join(file.read_bytes() for file in dict.fromkeys(files))).hexdigest()
    except (OSError, TypeError) as error:
        raise InputError(f"{spec}: the file of {kind.__name__} cannot be read: {error}") from error


def _file_of(place: str) -> Path:
    """Return the file behind ``file.py`` or a module that is imported."""
    return Path(place if place.endswith(".py") else inspect.getfile(sys.modules[place])).resolve()


def hash_batches(batches: Iterable[Any]) -> str:
    """Return what tells batches from others: SHA-256 of their tensors."""
    digest = hashlib.sha256()
    for batch in batches:
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor):
                _update(digest, leaf)
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _update(digest: Any, tensor: Tensor) -> None:
    held = tensor.detach().cpu().contiguous()
    digest.update(f"{held.dtype} {tuple(held.shape)}".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())


def overlap(fit: Sequence[Any], held: Sequence[Any]) -> float:
    """Return the share of held-out examples (or batches, where examples cannot be told apart) also in `fit`.

    Example:
        >>> one, other = (torch.eye(3), torch.arange(3)), (2 * torch.eye(3), torch.arange(3))
        >>> overlap([one], [one, other])
        0.5
    """
    seen, asked = set(_units(fit)), _units(held)
    return sum(unit in seen for unit in asked) / max(1, len(asked))


def _units(batches: Sequence[Any]) -> list[str]:
    if not _plain(batches):
        return [hash_batches([batch]) for batch in batches]
    return [hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for b in batches for x in b[0].cpu()]


def _plain(batches: Sequence[Any]) -> bool:
    """Say whether all batches are (inputs, targets) of tensors that can be put one after the other."""
    pairs = [b for b in batches if isinstance(b, (tuple, list)) and len(b) == 2]
    if len(pairs) < len(batches) or not all(isinstance(x, Tensor) and x.ndim for b in pairs for x in b):
        return False
    if any(len(b[0]) != len(b[1]) for b in pairs):
        return False
    return len({(b[0].shape[1:], b[1].shape[1:], b[0].dtype, b[1].dtype) for b in pairs}) == 1


def sample(batches: Sequence[Any], seed: int, share: float = SAMPLE, count: int | None = None) -> list[Any]:
    """Return a share of the examples, drawn by the seed and in its order, in batches of the same size.

    Where examples cannot be told apart (inputs that are no single tensor), whole batches are drawn.

    Args:
        batches: Pairs (inputs, targets).
        seed: Seed of the draw.
        share: Share that is drawn, at least one.
        count: At most so many examples.

    Example:
        >>> drawn = sample([(torch.arange(10.0)[:, None], torch.arange(10))], seed=0)
        >>> len(drawn[0][1]), bool((drawn[0][0][:, 0] == drawn[0][1]).all())
        (8, True)
    """
    generator = torch.Generator().manual_seed(seed)
    if not _plain(batches):
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[at] for at in order[: max(1, round(share * len(batches)))]]
    inputs, targets = (torch.cat([batch[at] for batch in batches]) for at in (0, 1))
    drawn = torch.randperm(len(targets), generator=generator)[: max(1, round(share * len(targets)))][:count]
    size = len(batches[0][1])
    return [(inputs[at], targets[at]) for at in drawn.split(size)]


def part(batches: Sequence[Any], number: int, of: int) -> list[Any]:
    """Return one of several disjoint parts of the examples (or batches), the same whatever it is used for.

    Raises:
        InputError: There are fewer examples (or batches) than parts.

    Example:
        >>> whole = [(torch.arange(5.0)[:, None], torch.arange(5))]
        >>> sorted(int(y) for at in range(2) for _, targets in part(whole, at, 2) for y in targets)
        [0, 1, 2, 3, 4]
    """
    if of == 1:
        return list(batches)
    if not _plain(batches):
        chosen = list(batches)[number::of]
        _enough(len(batches), of, "batches")
        return chosen
    inputs, targets = (torch.cat([batch[at] for batch in batches]) for at in (0, 1))
    _enough(len(targets), of, "examples")
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[number::of]
    return [(inputs[at], targets[at]) for at in order.split(len(batches[0][1]))]


def _enough(there: int, parts: int, what: str) -> None:
    if there < parts:
        raise InputError(f"{there} held-out {what} cannot be divided among {parts} seeds: hold out more")


__all__ = [
    "SAMPLE",
    "example_inputs",
    "examples",
    "hash_batches",
    "model_hash",
    "overlap",
    "part",
    "sample",
    "subject",
    "takes_seed",
]
