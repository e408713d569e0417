"""GGUF files of pruned language models, for llama.cpp and what is built on it (extra hf).

Plans of equal counts are written as their own architecture; Llama and Mistral with unequal counts as
``deci``, where each layer has its own sizes.  Every file is read back and compared before it gets its name.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import ExactnessError, InputError, Plan, StoreError, unknown
from secateur.core.indices import padded_axes
from secateur.core.paths import check_replaceable, flush, to_path
from secateur.formats.gguf_tokenizer import add_tokenizer, find_tokenizer
from secateur.formats.plain_state import correct_norms
from secateur.formats.transformers import check_model, save_pretrained
from secateur.tracing.export import silenced

__all__ = ["GgufType", "write_gguf"]

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
# How much of a tensor's largest value its entries may change: rounding of the type.
ROUNDING: Mapping[str, float] = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 220}
FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
BLOCK = 32  # Q8_0 packs so many entries of a row
# model_type of transformers -> architecture of GGUF
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
}
UNEVEN = ("llama", "mistral")  # whose unequal counts become deci, which has no experts
PATTERN = 6  # llama.cpp takes every sixth layer of Gemma 3 for one of full attention
LOCAL_THETA = 1e4  # and this base of the rotary embedding in the other layers


@dataclass(frozen=True)
class _Checkpoint:
    """What goes into a file: the architecture, the config, and the weights by transformers' names."""

    architecture: str
    config: Any
    state: Mapping[str, Tensor]

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or (
            self.config.hidden_size // self.config.num_attention_heads
        )

    @property
    def experts(self) -> int:
        """Number of experts in each layer; 0 for a model without them."""
        return len(self.state.get("model.layers.0.mlp.experts.down_proj", ()))

    def units(self) -> list[int]:
        """Return the number of feed-forward units in each layer, or in each of its experts."""
        name = "mlp.experts.down_proj" if self.experts else "mlp.down_proj.weight"
        return [self.state[f"model.layers.{i}.{name}"].shape[-1] for i in range(self.layers)]

    def heads(self, projection: str) -> list[int]:
        names = [f"model.layers.{i}.self_attn.{projection}.weight" for i in range(self.layers)]
        return [len(self.state[name]) // self.head_dim for name in names]


def write_gguf(
    path: str | Path, model: Any, plan: Plan, dtype: GgufType = "f16", tokenizer: Any = None
) -> float:
    """Write a pruned language model as a GGUF file; see `Result.to_gguf`."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError("GGUF files need the package gguf: pip install 'secateur[hf]'")
    if dtype not in ROUNDING:
        raise InputError(unknown("GGUF type", str(dtype), list(ROUNDING)))
    place = to_path(path).absolute()
    check_replaceable(place)
    check_model(model, plan)
    if model.config.model_type not in ARCHITECTURES or not hasattr(model, "lm_head"):
        raise InputError(
            f"no GGUF of a {type(model).__name__}: it takes language models of {', '.join(ARCHITECTURES)}. "
            "save_pretrained and llama.cpp's convert_hf_to_gguf.py write others"
        )
    words = find_tokenizer(model, tokenizer)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as folder:
            checkpoint = _checkpoint(Path(folder) / "plain", model, plan)
            _check_graph(checkpoint)
            draft = Path(folder) / place.name
            tensors = dict(_tensors(checkpoint))
            _write(draft, checkpoint, tensors, dtype, words)
            difference = _compare(draft, tensors, dtype)
            flush(draft)
            draft.replace(place)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error}. Nothing was changed there") from error
    return difference


def _checkpoint(folder: Path, model: Any, plan: Plan) -> _Checkpoint:
    """Return what goes into the file, of a folder of transformers that was compared with the pruned model."""
    kind = model.config.model_type
    try:
        # The format has one length for all heads, so positions within them come back as zeros.
        padded = padded_axes(plan.graph, plan.keep)
        save_pretrained(folder, model, plan, uneven="pad" if padded else "error")
    except InputError:
        if kind not in UNEVEN:
            raise
        # A folder with zeros shows that heads of the original length and the rescaled norms are right.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_pretrained(folder, model, plan, uneven="pad")
        state, config = dict(model.state_dict()), copy.deepcopy(model.config)
        correct_norms(model, state, config)
        config.hidden_size = state["model.embed_tokens.weight"].shape[1]
        return _Checkpoint("deci", config, state)
    with silenced():
        plain = type(model).from_pretrained(folder, local_files_only=True)
    return _Checkpoint(ARCHITECTURES[kind], plain.config, plain.state_dict())


def _check_graph(checkpoint: _Checkpoint) -> None:
    """Refuse what llama.cpp's graph of the architecture computes differently."""
    config, wrong = checkpoint.config, []
    if checkpoint.architecture == "gemma3":
        full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        if full != list(range(PATTERN - 1, checkpoint.layers, PATTERN)):
            wrong.append(f"full attention in the layers {full}, not in every {PATTERN}th")
        if config.query_pre_attn_scalar != checkpoint.head_dim:
            wrong.append(f"query_pre_attn_scalar={config.query_pre_attn_scalar}, not the length of a head")
        if _rope(config, "sliding_attention")["rope_theta"] != LOCAL_THETA:
            wrong.append("another rotary base in the layers of sliding attention")
        if config.final_logit_softcapping or config.attn_logit_softcapping:
            wrong.append("softcapping")
    if checkpoint.architecture == "qwen3moe":
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            wrong.append("layers without experts")
        if not config.norm_topk_prob:
            wrong.append("weights of experts that do not add up to 1 (norm_topk_prob=False)")
    if _rope(config)["rope_type"] not in ("default", "linear", "llama3"):
        wrong.append(f"rotary embeddings of type {_rope(config)['rope_type']!r}")
    if wrong:
        raise InputError(
            f"llama.cpp's graph of {checkpoint.architecture} does not have {' and '.join(wrong)}; "
            "save_pretrained writes this model"
        )


def _rope(config: Any, kind: str = "full_attention") -> Mapping[str, Any]:
    """Return the parameters of the rotary embedding, in layers of full or of sliding attention."""
    found = getattr(config, "rope_parameters", None) or {
        "rope_theta": config.rope_theta,
        **(config.rope_scaling or {}),
    }
    return {"rope_type": "default", **found.get(kind, found)}


# --- tensors


def _tensors(checkpoint: _Checkpoint) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors under their names in GGUF."""
    import gguf

    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == checkpoint.architecture)
    names = gguf.get_tensor_name_map(kind, checkpoint.layers)
    heads = {"q_proj": checkpoint.heads("q_proj"), "k_proj": checkpoint.heads("k_proj")}
    tied = checkpoint.config.tie_word_embeddings
    for name, value in _separate_tensors(checkpoint.state):
        if tied and name == "lm_head.weight":
            continue
        parts = name.split(".")
        if checkpoint.architecture in ("llama", "deci") and parts[-2] in heads:
            value = _interleave(value, heads[parts[-2]][int(parts[2])])
        if checkpoint.architecture == "gemma3" and parts[-2].endswith("norm"):
            value = value + 1  # its norms multiply by 1 + weight
        renamed = names.get_name(name, (".weight", ".bias"))
        if renamed is None:
            raise InputError(f"{name!r} has no name in a GGUF file of {checkpoint.architecture}")
        yield renamed, value
    if _rope(checkpoint.config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(_rope(checkpoint.config), checkpoint.head_dim)


def _separate_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield tensors in float32; those of stacked experts [experts, ...] with gates and ups apart."""
    for name, tensor in state.items():
        value, (module, _, last) = tensor.detach().float().cpu().numpy(), name.rpartition(".")
        if not module.endswith(".experts"):
            yield name, value
        elif last == "gate_up_proj":
            both = np.split(value, 2, axis=1)
            yield from ((f"{module}.{x}_proj.weight", y) for x, y in zip(("gate", "up"), both, strict=True))
        else:
            yield f"{name}.weight", value


def _interleave(value: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return rows of queries or keys in llama.cpp's order: the two halves of a rotated pair side by side."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Return by what Llama 3 divides each frequency of its rotary embedding."""
    frequencies = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


# --- the file


def _write(
    path: Path, checkpoint: _Checkpoint, tensors: Mapping[str, NDArray[np.float32]], dtype: str, words: Any
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, checkpoint.architecture)
    _add_sizes(writer, checkpoint)
    writer.add_file_type(FILE_TYPES[dtype])
    add_tokenizer(writer, words, checkpoint.config, len(checkpoint.state["model.embed_tokens.weight"]))
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType[_type_of(name, value, dtype).upper()]
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type_of(name: str, value: NDArray[np.float32], dtype: str) -> str:
    """Return the type of a tensor: vectors and routers stay F32; rows that Q8_0 cannot pack are F16."""
    if value.ndim < 2 or "ffn_gate_inp" in name:
        return "f32"
    return "f16" if dtype == "q8_0" and value.shape[-1] % BLOCK else dtype


def _add_sizes(writer: Any, checkpoint: _Checkpoint) -> None:
    config, rope = checkpoint.config, _rope(checkpoint.config)
    writer.add_name(f"pruned {config.model_type}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(checkpoint.layers)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(checkpoint.state["model.embed_tokens.weight"]))
    for add, counts in (
        (writer.add_feed_forward_length, checkpoint.units()),
        (writer.add_head_count, checkpoint.heads("q_proj")),
        (writer.add_head_count_kv, checkpoint.heads("k_proj")),
    ):
        add(counts if checkpoint.architecture == "deci" else counts[0])
    if checkpoint.experts:
        writer.add_expert_count(checkpoint.experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(checkpoint.units()[0])
    writer.add_key_length(checkpoint.head_dim)
    writer.add_value_length(checkpoint.head_dim)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type("linear")
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if checkpoint.architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)


def _compare(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str) -> float:
    """Read a file back; return the largest difference of a tensor, relative to its largest entry."""
    import gguf

    found, worst = {t.name: t for t in gguf.GGUFReader(path).tensors}, 0.0
    for name, expected in tensors.items():
        if name not in found:
            raise ExactnessError(f"{name} is missing in the file that was written")
        read = gguf.dequantize(found[name].data, found[name].tensor_type).reshape(expected.shape)
        largest = float(np.abs(expected).max(initial=0)) or 1.0
        difference = float(np.abs(read - expected).max(initial=0)) / largest
        if not difference <= ROUNDING[_type_of(name, expected, dtype)]:
            raise ExactnessError(
                f"{name} differs by {difference:.1e} of its largest entry ({largest:.1e}) after writing it "
                f"as {_type_of(name, expected, dtype)}: choose another dtype. Nothing was written"
            )
        worst = max(worst, difference)
    return worst
