"""What a user names: models, weights, data, methods and budgets.  The command line and the bench read it.

A model or data is ``package.module:function`` or ``file.py:function``; its code is run, as by Python itself.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import split_batch
from secateur.core import (
    Budget,
    InputError,
    Macs,
    Params,
    SecateurError,
    Units,
    Weights,
    unknown,
)
from secateur.data import DATASETS, Dataset, load_dataset
from secateur.execution import evaluating, to_model
from secateur.formats.weights import load_weights, split_key
from secateur.methods import METHODS, Method

BUDGETS: dict[str, Callable[..., Any]] = {
    "units": Units,
    "weights": Weights,
    "params": Params,
    "macs": Macs,
}
TOKENS = 16


@dataclass(frozen=True, eq=False)
class Batches:
    """Data for one pruning.

    Attributes:
        fit: Batches that methods and repairs look at, or None.
        holdout: Batches for the metric, or None.
        example: Two example inputs, or None where there are no batches.
    """

    fit: list[Any] | None = None
    holdout: list[Any] | None = None
    example: Any = None


def find_function(name: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` or ``file.py:function`` names.

    Raises:
        InputError: If the form is another, or the module or the function cannot be had.

    Example:
        >>> find_function("secateur.zoo:lenet5").__name__
        'lenet5'
    """
    place, colon, function = name.rpartition(":")
    if not (colon and place and function):
        raise InputError(f"{name!r} has the wrong form: write package.module:function or file.py:function")
    module = run_user_code(f"importing {place}", lambda: _module(place))
    found = getattr(module, function, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(unknown(f"function in {place}", function, known))
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}, not a function")
    return found


def make_model(name: str, weights: str | Path | None = None) -> tuple[nn.Module, Any]:
    """Return a model and its example inputs, where it brings any.

    Args:
        name: ``package.module:factory``, ``file.py:factory``, or a folder that transformers saved.
        weights: A checkpoint, or ``file:key`` for one state dict in it, or None.

    Returns:
        The model in evaluation mode, and the factory's attribute `example_inputs` (called, if it is a
        function), or None.

    Raises:
        InputError: If the factory fails or returns no module.
        StoreError: If the weights are missing or damaged, or do not fit.
    """
    if is_folder(name):
        model, example = _hugging_face(Path(name))
    else:
        factory = find_function(name)
        model, example = run_user_code(name, factory), getattr(factory, "example_inputs", None)
        example = run_user_code(f"{name}.example_inputs", example) if callable(example) else example
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(model, *split_key(weights))
    return model.eval(), example


def is_folder(model: str) -> bool:
    """Say whether a model's name is a folder; the empty name is none.

    Example:
        >>> is_folder("."), is_folder("")
        (True, False)
    """
    return bool(model) and Path(model).is_dir()


def make_data(name: str, repair: str | None = None, *, tolerance: bool = False, seed: int = 0) -> Batches:
    """Return batches by the name of a data set, or from the user's function.

    A data set's calibration part is looked at (its training part, where fine-tuning is asked for), and its
    test part is held out (its selection part, where a tolerance stops by it).

    Args:
        name: ``digits``, ``fashion``, ``mnist:FOLDER``, ``cifar10:FOLDER``, or a function that returns a
            `Dataset` or an iterable of (inputs, targets).
        repair: The repair, which decides what is looked at.
        tolerance: Whether a tolerance stops the pruning by the batches that are held out.
        seed: Seed of the data set's parts.
    """
    known, _, folder = name.partition(":")
    found = load_dataset(known, folder or None, seed) if known in DATASETS or ":" not in name else None
    given = found if found is not None else run_user_code(name, find_function(name))
    if isinstance(given, Dataset):
        fit = given.batches("train" if "finetune" in (repair or "") else "calibration")
        holdout = given.batches("selection" if tolerance else "test", 500)
        return Batches(fit, holdout, fit[0][0][:2])
    if not isinstance(given, Iterable) or isinstance(given, (Tensor, Mapping, str)):
        raise InputError(f"{name} returned a {type(given).__name__}, not batches of (inputs, targets)")
    fit = run_user_code(name, lambda: list(given))
    if not fit:
        raise InputError(f"{name} returned no batches")
    return Batches(fit, None, _cut(fit[0]))


def example_of(shape: str) -> Tensor:
    """Return example inputs of a shape: zeros where nothing is known; the batch is the first number.

    Example:
        >>> example_of("2,3,8").shape
        torch.Size([2, 3, 8])
    """
    try:
        sizes = tuple(int(size) for size in shape.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"a shape is numbers with commas, as in 2,3,32,32; got {shape!r}") from error
    if min(sizes) < 1:
        raise InputError(f"the sizes of a shape are positive; got {shape!r}")

    def draw() -> Tensor:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0))

    return run_user_code(f"making example inputs of shape {shape}", draw)


def try_inputs(model: nn.Module, inputs: Any) -> None:
    """Run a model once, so that wrong example inputs are told before anything else is done."""
    with evaluating(model):
        args = to_model(inputs, model)
        call = (lambda: model(**args)) if isinstance(args, Mapping) else lambda: model(*_tuple(args))
        run_user_code(f"calling {type(model).__name__} on example inputs {_shapes(inputs)}", call)


def make_method(spec: str) -> Method:
    """Return the method that ``name``, ``file.py:Class`` or ``package.module:Class`` describes.

    Options follow a colon: ``name:option=value,option=value``, ``file.py:Class:option=value``.

    Raises:
        InputError: For an unknown name or option, with the near matches, a value that cannot be, or a class
            that makes no method.

    Example:
        >>> make_method("magnitude:p=2,over=both").over
        'both'
        >>> make_method("secateur.methods:Matroid:swaps=0").swaps
        0
    """
    name, kind, options = _kind(spec)
    known: list[str] = [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else []
    chosen = _options(options)
    for key in chosen:
        if key not in known:
            raise InputError(unknown(f"option of {name}", key, known))

    def make() -> Any:
        try:
            return kind(**chosen)
        except TypeError as error:
            raise InputError(f"{spec!r}: {error}") from error

    found = run_user_code(repr(spec), make)
    if not isinstance(found, Method):
        raise InputError(f"{name} makes a {type(found).__name__}: a method has a name, needs and plan")
    return found


def _kind(spec: str) -> tuple[str, Callable[..., Any], str]:
    """Divide a method's description into its name, its class, and its options."""
    first, _, rest = spec.partition(":")
    if first in METHODS:
        return first, METHODS[first], rest
    if "." not in first:
        raise InputError(unknown("method", first, list(METHODS)))
    second, _, options = rest.partition(":")
    return second, find_function(f"{first}:{second}"), options


def make_budget(spec: str, scope: str = "layer", floor: int = 1, round_to: int = 1) -> Budget:
    """Return the budget that ``units=0.5`` and the like describe.

    Example:
        >>> make_budget("params=0.3", scope="global")
        Params(0.3, scope='global')
    """
    name, _, text = spec.partition("=")
    if name not in BUDGETS:
        raise InputError(unknown("budget", name, list(BUDGETS)))
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"a budget is written {name}=NUMBER, as in {name}=0.5; got {spec!r}") from error
    if name != "weights":
        return BUDGETS[name](value, scope=scope, floor=floor, round_to=round_to)
    if round_to != 1:
        raise InputError("round-to rounds counts of units; a budget of single weights has none")
    return Weights(value, scope=scope, floor=floor)  # type: ignore[arg-type]  # checked by Weights


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"there is no file {place}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"secateur_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{place} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_user_code(what: str, call: Callable[[], Any]) -> Any:
    """Run a user's code and return what it returns.

    Raises:
        InputError: It failed, or asked the program to end; says where.
    """
    try:
        return call()
    except SecateurError:
        raise
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{what} failed: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        ) from error


def _options(text: str) -> dict[str, Any]:
    chosen = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"an option is written name=value; got {part!r}")
        try:
            chosen[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            chosen[key.strip()] = value
    return chosen


def _cut(batch: Any) -> Any:
    """Return the inputs of the first two examples of a batch."""
    args, kwargs, _ = split_batch(batch)
    if kwargs:
        return {key: value[:2] for key, value in kwargs.items()}
    inputs = tuple(value[:2] for value in args)
    return inputs[0] if len(inputs) == 1 else inputs


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _shapes(inputs: Any) -> str:
    leaves = inputs.values() if isinstance(inputs, Mapping) else _tuple(inputs)
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in leaves)


def _hugging_face(folder: Path) -> tuple[nn.Module, Any]:
    try:
        import transformers
    except ImportError as error:
        raise InputError("a transformers folder needs the extra hf: pip install 'secateur[hf]'") from error

    def read() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)

    model = run_user_code(f"reading {folder}", read)
    model.config.use_cache = False
    size = getattr(model.config, "vocab_size", None)
    if size is None:
        return model, None
    tokens = torch.randint(size, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": tokens}


__all__ = [
    "BUDGETS",
    "Batches",
    "example_of",
    "find_function",
    "is_folder",
    "make_budget",
    "make_data",
    "make_method",
    "make_model",
    "run_user_code",
    "try_inputs",
]
