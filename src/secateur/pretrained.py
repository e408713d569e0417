"""Models and tokenizers that transformers saved: a folder, or a GGUF file.

Nothing is downloaded.  What is wrong with a folder is reported before its weights are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core import InputError, shorten
from secateur.user_code import run_user_code

__all__ = ["INDEX", "ONE_FILE", "empty_model", "is_pretrained", "load_pretrained", "load_tokenizer"]

INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"
PICKLED = "pytorch_model*.bin"
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")


def is_pretrained(name: str) -> bool:
    """Return whether a name is a folder or a GGUF file.  The empty name is neither.

    Example:
        >>> is_pretrained("."), is_pretrained(""), is_pretrained("x" * 3000)
        (True, False, False)
    """
    path = Path(name)
    try:
        return bool(name) and (path.is_dir() or (path.suffix == ".gguf" and path.is_file()))
    except OSError:  # a name that is too long
        return False


def load_pretrained(path: str | Path) -> nn.Module:
    """Return the model of a transformers folder or a GGUF file, of the class that its config names.

    Args:
        path: A folder with config.json and safetensors, in one file or in shards; or a GGUF file, whose
            weights are made float32.

    Raises:
        InputError: If transformers is missing, or the config, a file or a tensor is missing or damaged, or
            the weights are quantised.
    """
    transformers = _transformers()
    transformers.utils.logging.disable_progress_bar()
    path, gguf = _split_gguf(path)
    if not gguf:
        _check_folder(path, transformers)

    def read() -> tuple[nn.Module, dict[str, Any]]:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, **gguf)
        kind = _class_of(transformers, config)
        if kind is None:
            kind = transformers.AutoModelForCausalLM if gguf else transformers.AutoModel
        options = {"dtype": "float32", **gguf} if gguf else {"use_safetensors": True}
        return kind.from_pretrained(path, local_files_only=True, output_loading_info=True, **options)

    model, loaded = _quietly(transformers, lambda: run_user_code(f"reading {path}", read))
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(
            f"{path} lacks {len(missing)} tensors of {type(model).__name__}, which would have random values: "
            f"{shorten(missing)}; save the whole model with save_pretrained"
        )
    model.config.use_cache = False
    return model


def empty_model(folder: str | Path) -> nn.Module:
    """Return the model of a transformers folder with parameters on the meta device, which take no memory.

    Buffers that no file holds, such as the frequencies of rotary embeddings, have their values.

    Raises:
        InputError: If transformers is missing, or the config or a file is missing or damaged, the weights are
            quantised, or transformers has no class of the name in the config.
    """
    transformers = _transformers()
    folder = Path(folder)
    _check_folder(folder, transformers)

    def build() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = _class_of(transformers, config)
        if kind is None:
            raise InputError(f"transformers has no class {config.architectures}, which {folder} names")
        config.use_cache = False
        with torch.device("meta"):
            model = kind._from_config(config)
        for module in model.modules():
            unsaved = [name for name in module._non_persistent_buffers_set if name in module._buffers]
            for name in unsaved:
                module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
            if unsaved:
                model._init_weights(module)
        return model.requires_grad_(False).eval()

    return _quietly(transformers, lambda: run_user_code(f"reading {folder}", build))


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a transformers folder or a GGUF file.

    Raises:
        InputError: If transformers is missing, or there is no tokenizer or a damaged one.
    """
    transformers = _transformers()
    path, gguf = _split_gguf(path)
    if not path.is_dir():
        raise InputError(f"there is no folder {path} with a tokenizer")
    if not gguf and not any(file for pattern in TOKENIZER_FILES for file in path.glob(pattern)):
        raise InputError(
            f"{path} has no tokenizer (tokenizer.json or tokenizer.model): name a folder that has one with "
            "--tokenizer"
        )

    def read() -> Any:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, **gguf)

    return _quietly(transformers, lambda: run_user_code(f"reading the tokenizer of {path}", read))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "reading a folder of transformers needs the extra hf: pip install 'secateur[hf]'"
        ) from error
    return transformers


def _class_of(transformers: Any, config: Any) -> Any:
    """Return the class that a config names, or None."""
    return getattr(transformers, (config.architectures or [""])[0], None)


def _split_gguf(path: str | Path) -> tuple[Path, dict[str, str]]:
    """Return the folder, and the option that names a GGUF file in it."""
    path = Path(path)
    return (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})


def _quietly(transformers: Any, call: Callable[[], Any]) -> Any:
    """Call without the warnings of transformers: what matters is checked here."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        return call()
    finally:
        transformers.utils.logging.set_verbosity(level)


def _check_folder(folder: Path, transformers: Any) -> None:
    """Raise `InputError` if a folder cannot hold a model."""
    config = _read_json(
        folder / "config.json", f"{folder} is not a folder of transformers: it has no config.json"
    )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise InputError(
            f"the weights in {folder} are quantised ({method}), so no unit can be cut out of them: load the "
            "model with transformers, call model.dequantize(), and save it again"
        )
    names = config.get("architectures") or [""]
    if config.get("auto_map") and not hasattr(transformers, names[0]):
        raise InputError(
            f"{folder} has its own code for {names[0]}, which Secateur does not run: load the model with "
            "trust_remote_code=True, and give it to secateur.prune"
        )
    if (folder / ONE_FILE).is_file():
        return
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} has no weights: neither {ONE_FILE} nor {INDEX}{_other_weights(folder)}")
    shards = sorted(set(_read_json(folder / INDEX, "")["weight_map"].values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise InputError(
            f"{len(missing)} of {len(shards)} shards are missing in {folder}: {shorten(missing)}"
        )


def _other_weights(folder: Path) -> str:
    """Return what weights a folder has instead, with advice."""
    if any(folder.glob(PICKLED)):
        return "; pickled weights are not read: load them with transformers and call save_pretrained"
    if files := sorted(folder.glob("*.gguf")):
        return f"; name the file itself: {files[0]}"
    return ""


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(missing) from error
    except (OSError, ValueError) as error:
        raise InputError(f"reading {path.parent} failed: {path.name}: {error}") from error
