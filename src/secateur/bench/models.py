"""What methods are compared on: a model for each seed, and the same examples for every method.

Methods never see the examples of the metric. With one trained model, each seed has its own part of the
held-out examples, so that seeds are independent of each other there, and its own sample of the examples to
calibrate on. With a model for each seed, all held-out examples are used each time.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from secateur.core import InputError
from secateur.data import DATASETS
from secateur.execution import tensors_of
from secateur.measure.metrics import Metric, metric_named, more_is_better
from secateur.methods.registry import BUILT_IN, METHODS
from secateur.pretrained import is_pretrained
from secateur.specs import (
    example_of,
    make_data,
    make_method,
    make_model,
)
from secateur.user_code import find_function, run_user_code

__all__ = [
    "SAMPLE",
    "absolute_name",
    "example_inputs",
    "find_metric",
    "hash_metric",
    "hash_model",
    "hash_source",
    "hash_values",
    "load_batches",
    "load_model",
    "part",
    "sample",
    "share_known",
    "takes_seed",
]

SAMPLE = 0.8
KNOWN = 0.01  # of the held-out examples: some data sets repeat a few
CACHED = 2


def takes_seed(model: str, weights: str | None) -> bool:
    """Return whether there is a model for each seed: the factory has a parameter `seed`, and no weights.

    Example:
        >>> takes_seed("secateur.zoo:lenet5", None), takes_seed("secateur.zoo:lenet5", "w.safetensors")
        (True, False)
    """
    if weights is not None or is_pretrained(model):
        return False
    try:
        return "seed" in inspect.signature(find_function(model)).parameters
    except (TypeError, ValueError):
        return False


@lru_cache(maxsize=CACHED)
def load_model(name: str, weights: str | None, seed: int | None) -> tuple[nn.Module, Any, str]:
    """Return a model in evaluation mode, the example inputs that it brings (or None), and its hash.

    Args:
        name: ``package.module:factory``, ``file.py:factory``, or a folder saved by transformers.
        weights: Safetensors file with the model's state, or None.
        seed: Argument of the factory; None if it takes none.
    """
    if seed is None:
        model, example = make_model(name, weights)
        return model, example, hash_model(model)
    factory = find_function(name)
    model = run_user_code(f"{name}(seed={seed})", lambda: factory(seed=seed))
    if not isinstance(model, nn.Module):
        raise InputError(f"{name}(seed={seed}) returned a {type(model).__name__}, not a torch.nn.Module")
    example = getattr(factory, "example_inputs", None)
    example = run_user_code(f"{name}.example_inputs", example) if callable(example) else example
    return model.eval(), example, hash_model(model)


@lru_cache(maxsize=CACHED)
def load_batches(data: str, holdout: str | None, finetune: bool) -> tuple[list[Any], list[Any], Any, str]:
    """Return the batches to calibrate on, those held out, example inputs, and the hash of the batches.

    Args:
        data: A data set, or a function that returns batches.
        holdout: Function that returns the held-out batches; a data set brings its own.
        finetune: Whether the batches are for fine-tuning too: then a data set's training part.

    Raises:
        InputError: If nothing is held out, or methods look at the held-out examples.
    """
    batches = make_data(data, finetune=finetune)
    held_out = batches.holdout if holdout is None else make_data(holdout).fit
    if batches.fit is None or held_out is None:
        raise InputError(
            f"{data} brings no held-out examples: name other batches with --holdout, which methods do not see"
        )
    fit, held_out = list(batches.fit), list(held_out)
    known = share_known(fit, held_out)
    if known > KNOWN:
        raise InputError(
            f"{known:.0%} of the held-out examples are among those that methods look at: hold others out"
        )
    return fit, held_out, batches.example(), hash_values([fit, held_out])


def example_inputs(shape: str | None, of_data: Any, of_model: Any) -> Any:
    """Return example inputs of the given shape; else those of the data; else those that the model brings.

    Raises:
        InputError: If there are none.
    """
    inputs = example_of(shape) if shape is not None else of_data
    if inputs is None and of_model is None:
        raise InputError("the model's inputs are unknown: give --example-shape, as in 2,3,32,32")
    return of_model if inputs is None else inputs


def absolute_name(name: str) -> str:
    """Return the name of a data set, or of code in a file, with an absolute path.

    Example:
        >>> absolute_name("digits"), absolute_name("mnist:/data/mnist"), absolute_name("/x/mine.py:make")
        ('digits', 'mnist:/data/mnist', '/x/mine.py:make')
    """
    head, colon, rest = name.partition(":")
    if head in DATASETS and rest:
        return f"{head}:{Path(rest).resolve()}"
    return f"{Path(head).resolve()}{colon}{rest}" if head.endswith(".py") else name


def hash_values(values: Any) -> str:
    """Return the SHA-256 of the tensors, and of the text of all else, in nested lists, tuples and dicts."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            tensor = leaf.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, Mapping):  # a BatchEncoding, which torch's trees take for a leaf
            digest.update(hash_values(dict(leaf)).encode())
        else:
            digest.update(f"{leaf!r}\n".encode())
    return digest.hexdigest()


def hash_model(model: nn.Module) -> str:
    """Return the hash of a model: its structure, parameters, all buffers, and the source of its classes.

    Example:
        >>> torch.manual_seed(0) and None
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> hash_model(a) == hash_model(a), hash_model(a) == hash_model(b)
        (True, False)
    """
    classes = {type(module) for module in model.modules()}
    sources = set()
    for kind in classes:
        if kind.__module__.partition(".")[0] != "torch":
            with suppress(OSError, TypeError):  # a class made by exec, or in C, has none
                sources.add(inspect.getsource(kind))
    return hash_values([repr(model), sorted(sources), list(tensors_of(model).items())])


def hash_source(spec: str) -> str | None:
    """Return the hash of the code of a method, or None if it is one of Secateur's own.

    The code is the file that the name leads to, and the file of the method's class if that is another.

    Example:
        >>> hash_source("magnitude:p=2") is None, len(hash_source("secateur.methods:Magnitude"))
        (True, 64)
    """
    place = spec.partition(":")[0]
    if place in BUILT_IN:
        return None
    kind = type(make_method(spec))
    try:
        files = [inspect.getfile(kind)]
        if place not in METHODS:
            files.append(place if place.endswith(".py") else inspect.getfile(sys.modules[place]))
        return hash_values([Path(file).read_bytes() for file in files])
    except (OSError, TypeError) as error:
        raise InputError(f"{spec}: the file of {kind.__name__} cannot be read: {error}") from error


def find_metric(name: str) -> str | Metric:
    """Return a metric by its name, or the function ``file.py:function`` or ``package.module:function``.

    Raises:
        InputError: If the metric is unknown, or less is better.
    """
    if ":" in name:
        return find_function(name)
    metric_named(name)
    if not more_is_better(name):
        raise InputError(f"methods are compared by a metric of which more is better, not {name!r}")
    return name


def hash_metric(name: str) -> str | None:
    """Return the hash of the file of a user's metric, or None if it is one of Secateur's."""
    metric = find_metric(name)
    return None if isinstance(metric, str) else hash_values(Path(inspect.getfile(metric)).read_bytes())


def share_known(fit: Sequence[Any], held_out: Sequence[Any]) -> float:
    """Return the share of held-out examples that are also in `fit`; of batches, if examples are not rows.

    Example:
        >>> one, other = (torch.eye(3), torch.arange(3)), (2 * torch.eye(3), torch.arange(3))
        >>> share_known([one], [one, other])
        0.5
    """
    known, asked = set(_example_hashes(fit)), _example_hashes(held_out)
    return sum(example in known for example in asked) / max(1, len(asked))


def _example_hashes(batches: Sequence[Any]) -> list[str]:
    """Return the hashes of the inputs of each example, or of each batch."""
    examples = _all_examples(batches)
    if examples is None:
        return [hash_values(batch) for batch in batches]
    inputs = examples[0] if isinstance(examples, (tuple, list)) and len(examples) == 2 else examples
    return [hash_values(list(row)) for row in zip(*tree_leaves(inputs), strict=True)]


def _all_examples(batches: Sequence[Any]) -> Any:
    """Return all batches as one, or None if they are not nested tensors whose rows are examples."""
    shapes = set()
    for batch in batches:
        leaves, structure = tree_flatten(batch)
        if not all(isinstance(x, Tensor) and x.ndim for x in leaves) or len({len(x) for x in leaves}) != 1:
            return None
        shapes.add((str(structure), *((x.shape[1:], x.dtype) for x in leaves)))
    return tree_map(lambda *x: torch.cat(x), *batches) if len(shapes) == 1 else None


def _take(examples: Any, order: Tensor, size: int) -> list[Any]:
    """Return examples by number, in batches of a size."""
    return [tree_map(lambda x, at=at: x[at], examples) for at in order.split(size)]


def sample(batches: Sequence[Any], seed: int, share: float = SAMPLE, count: int | None = None) -> list[Any]:
    """Return a share of the examples, drawn and ordered by the seed, in batches of the same size.

    If examples are not rows of tensors, whole batches are drawn.

    Args:
        batches: The batches.
        seed: Seed of the draw.
        share: Share that is drawn; at least one example.
        count: At most so many examples.

    Example:
        >>> drawn = sample([(torch.arange(10.0)[:, None], torch.arange(10))], seed=0)
        >>> len(drawn[0][1]), bool((drawn[0][0][:, 0] == drawn[0][1]).all())
        (8, True)
    """
    examples, size = _all_examples(batches), _length(batches[0])
    total = len(batches) if examples is None else _length(examples)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    order = order[: max(1, round(share * total))]
    if examples is None:
        return [batches[at] for at in order.tolist()]
    return _take(examples, order[:count], size)


def part(batches: Sequence[Any], number: int, of: int) -> list[Any]:
    """Return one of several disjoint parts of the examples (or batches); the division is always the same.

    Raises:
        InputError: If there are fewer examples (or batches) than parts.

    Example:
        >>> whole = [(torch.arange(5.0)[:, None], torch.arange(5))]
        >>> sorted(int(y) for at in range(2) for _, targets in part(whole, at, 2) for y in targets)
        [0, 1, 2, 3, 4]
    """
    if of == 1:
        return list(batches)
    examples = _all_examples(batches)
    total, what = (len(batches), "batches") if examples is None else (_length(examples), "examples")
    if total < of:
        raise InputError(f"{total} held-out {what} cannot be divided among {of} seeds: hold out more")
    if examples is None:
        return list(batches)[number::of]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))[number::of]
    return _take(examples, order, _length(batches[0]))


def _length(batch: Any) -> int:
    return len(tree_leaves(batch)[0])
