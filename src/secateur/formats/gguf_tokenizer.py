"""Tokenizers in GGUF files: byte-level BPE as ``gpt2``, and BPE that falls back to bytes as ``llama``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur.core import InputError

__all__ = ["add_tokenizer", "find_tokenizer"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# How llama.cpp splits text before the merges.
SPLITS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "mistral": "tekken"}
SPECIAL = ("bos", "eos", "unk", "pad")


def find_tokenizer(model: Any, tokenizer: Any = None) -> Any:
    """Return a tokenizer of transformers: the given one, or that of the original's folder, or None.

    Raises:
        InputError: If it is not BPE.
    """
    if tokenizer is None:
        folder = Path(getattr(model.config, "_name_or_path", "") or "/nowhere")
        if not (folder / "tokenizer.json").is_file():
            return None
        tokenizer = folder
    if isinstance(tokenizer, (str, Path)):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no tokenizer in {tokenizer}: name a folder that has a tokenizer.json"
            ) from error
    kind = _document(tokenizer)["model"]["type"] if hasattr(tokenizer, "backend_tokenizer") else "slow"
    if kind != "BPE":
        raise InputError(f"GGUF files take fast BPE tokenizers; got {type(tokenizer).__name__} ({kind})")
    return tokenizer


def add_tokenizer(writer: Any, tokenizer: Any, config: Any, size: int) -> None:
    """Add a tokenizer with as many tokens as the embedding has rows; without one, say that there is none.

    Args:
        writer: A `gguf.GGUFWriter`.
        tokenizer: What `find_tokenizer` returned.
        config: The config of the model.
        size: Rows of the embedding.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        for name in ("bos", "eos", "pad"):
            _add_special(writer, name, getattr(config, f"{name}_token_id", None))
        return
    document = _document(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= size:
        raise InputError(f"the tokenizer has {len(vocabulary)} tokens, and the embedding {size} rows")
    tokens = {number: token for token, number in vocabulary.items()}
    merges = [x if isinstance(x, str) else " ".join(x) for x in document["model"]["merges"]]
    kinds = {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in document["added_tokens"]}
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    if document["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        # The llama tokenizer joins the neighbours whose union scores highest: the earliest merge.
        rank = {merge.replace(" ", "", 1): -float(i) for i, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(tokens.get(i, ""), -1e9) for i in range(size)])
        kinds |= {i: BYTE for i, t in tokens.items() if len(t) == 6 and t.startswith("<0x")}
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS.get(config.model_type, "default"))
        writer.add_token_merges(merges)
    if tokenizer.unk_token_id is not None:
        kinds[tokenizer.unk_token_id] = UNKNOWN
    writer.add_token_types([kinds.get(i, NORMAL if i in tokens else UNUSED) for i in range(size)])
    for name in SPECIAL:
        _add_special(writer, name, getattr(tokenizer, f"{name}_token_id"))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _document(tokenizer: Any) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _add_special(writer: Any, name: str, number: Any) -> None:
    number = number[0] if isinstance(number, list) else number
    if number is not None:
        getattr(writer, f"add_{name}_token_id")(number)
