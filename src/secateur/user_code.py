"""Code of the user: functions named ``package.module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.core import InputError, SecateurError, unknown

__all__ = ["find_function", "find_guarded", "run_user_code"]


def find_function(name: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` or ``file.py:function`` names.

    Raises:
        InputError: If the name has another form, the module cannot be imported, or it has no such function.

    Example:
        >>> find_function("secateur.zoo:lenet5").__name__
        'lenet5'
    """
    place, colon, function = name.rpartition(":")
    if not (colon and place and function):
        raise InputError(
            f"{name!r} has the wrong form: write package.module:function or file.py:function; a model may "
            "also be a folder or a GGUF file of transformers"
        )
    module = run_user_code(f"importing {place}", lambda: _import(place))
    value = getattr(module, function, None)
    if value is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(unknown(f"function in {place}", function, known))
    if not callable(value):
        raise InputError(f"{name} is of type {type(value).__name__}, not a function")
    return value


def find_guarded(spec: str) -> Callable[..., Any]:
    """Return the function that a name stands for; if a call of it fails, the error names the function.

    Raises:
        InputError: If there is no such function.
    """
    function = find_function(spec)

    @wraps(function)
    def run(*args: Any) -> Any:
        return run_user_code(spec, lambda: function(*args))

    return run


def run_user_code(what: str, call: Callable[[], Any]) -> Any:
    """Return the result of a user's code.

    Raises:
        InputError: If the code fails or ends the program; the message names the line.
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


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"the file {place} does not exist")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"secateur_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{place} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
