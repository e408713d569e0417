"""The weights of a pruned transformers model for its plain class, whose formulas contain sizes.

RMSNorm divides by the root mean square of all features; the pruned one keeps the count D of the original
(`NarrowNorm`), the plain class divides by the count d that it has.  With S the sum of the squares,

    x / sqrt(S / D + e) = sqrt(D / d) x / sqrt(S / d + e D / d),

so the gain is multiplied by sqrt(D / d) and the config's eps by D / d.  A config has one eps.  A norm of
queries or keys that wants another factor than the residual stream gets the right one by a scale c of the
projection before it: c x / sqrt(c^2 S / d + e') depends on e' / c^2 only.

Gemma multiplies its embedding by the square root of the width; the inverse ratio goes into the embedding and,
where the output layer is tied to it, into the gain of the last norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.modules.narrow_norm import NarrowNorm, norm_tensors

__all__ = ["correct_embedding_scale", "correct_norms", "narrow_layer_norm"]

State = dict[str, Tensor]
PROJECTIONS = {"q_norm": "q_proj", "k_norm": "k_proj", "q_layernorm": "q_proj", "k_layernorm": "k_proj"}


def correct_norms(model: nn.Module, state: State, config: Any) -> None:
    """Rescale the gains of narrowed RMSNorms, in place, and set the config's eps.

    Args:
        model: The pruned model.
        state: Its state dict, perhaps padded.
        config: The config of the sizes.
    """
    ratios = dict(_width_ratios(model, state))
    if all(ratio == 1 for ratio in ratios.values()):
        return
    names = {name: _projection(model, name) for name in ratios}
    free = Counter(ratio for name, ratio in ratios.items() if names[name] is None)
    common = free.most_common(1)[0][0] if free else 1.0
    for name, ratio in ratios.items():
        module = model.get_submodule(name)
        if isinstance(module, NarrowNorm) and ratio != 1:
            _multiply_gain(state, name, module, math.sqrt(ratio))
        if ratio != common and names[name] is not None:
            _scale_projection(state, str(names[name]), math.sqrt(common / ratio))
    _set_eps(model, config, next(iter(ratios)), common)


def _width_ratios(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Yield, for each RMSNorm, the width of the original divided by its width in the state dict."""
    for name, module in model.named_modules():
        if isinstance(module, NarrowNorm) and not module.form.centred:
            yield name, module.count / len(state[f"{name}.weight"])
        elif "RMSNorm" in type(module).__name__:
            yield name, 1.0


def narrow_layer_norm(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the gain of a LayerNorm that has fewer features than the original's, or None.

    The plain class centres by another count then, which no rescaling undoes.
    """
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, NarrowNorm) and module.form.centred and shapes[weight][0] < module.count:
            return weight
    return None


def _projection(model: nn.Module, norm: str) -> str | None:
    """Return the name of the layer whose output a norm of queries or keys reads, or None."""
    parent, _, last = norm.rpartition(".")
    if last not in PROJECTIONS:
        return None
    name = f"{parent}.{PROJECTIONS[last]}"
    return name if isinstance(dict(model.named_modules()).get(name), nn.Linear) else None


def _scale_projection(state: State, name: str, scale: float) -> None:
    """Scale weight and bias; in half precision rounding would cost more than a wrong eps, so leave them."""
    for key in (f"{name}.weight", f"{name}.bias"):
        if key in state and state[key].dtype not in (torch.float16, torch.bfloat16):
            state[key] = state[key] * scale


def _set_eps(model: nn.Module, config: Any, norm: str, ratio: float) -> None:
    """Multiply the eps of a config by a ratio: the number in it that the norms have as eps."""
    _, _, eps = norm_tensors(model.get_submodule(norm))
    for name, value in config.to_dict().items():
        if "eps" in name and isinstance(value, float) and value == eps:
            setattr(config, name, value * ratio)


def correct_embedding_scale(model: Any, plain: Any, state: State) -> None:
    """Undo, in place, that the plain class multiplies its embedding by another number than the pruned model.

    Args:
        model: The pruned model.
        plain: An instance of its class with the new sizes.
        state: The state dict for it.
    """
    embeddings = model.get_input_embeddings()
    if not hasattr(embeddings, "scalar_embed_scale"):
        return
    # Classes round the factor to the type in which they are loaded.
    before, dtype = float(embeddings.embed_scale), embeddings.weight.dtype
    after = float(torch.tensor(plain.get_input_embeddings().scalar_embed_scale, dtype=dtype))
    if before == after:
        return
    table = embeddings.weight
    names = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is table]
    state |= dict.fromkeys(names, state[names[0]] * (before / after))
    head, norm = model.get_output_embeddings(), getattr(model.base_model, "norm", None)
    if head is not None and head.weight is table and isinstance(norm, NarrowNorm):
        (name,) = [name for name, module in model.named_modules() if module is norm]
        _multiply_gain(state, name, norm, after / before)


def _multiply_gain(state: State, name: str, norm: NarrowNorm, factor: float) -> None:
    """Multiply the gain of a norm, which is its weight or 1 + weight."""
    weight, shift = state[f"{name}.weight"], norm.form.shift
    state[f"{name}.weight"] = ((weight.double() + shift) * factor - shift).to(weight.dtype)
