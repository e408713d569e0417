"""Shrink a model: cut out what a plan removes; the result is an ordinary, smaller module.

`shrink` selects the kept indices of every tensor and sets the sizes that modules store.  Then it compares
the result with the masked model, whose arithmetic is independent: see `secateur.apply.mask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.before_units import before_units
from secateur.apply.check_inputs import hides_parts, with_other_weights
from secateur.apply.copying import check_plan, check_tensors, copy_with
from secateur.apply.exactness import Exactness, verify
from secateur.apply.mask import mask
from secateur.core import ExactnessError, InputError, IntArray, NothingToPrune, Plan, PlanError, SizeAttribute
from secateur.core.indices import kept_indices, kept_length, padded_axes
from secateur.execution import check_flags, one_at_a_time
from secateur.modules.narrow_norm import build_narrow_norm
from secateur.modules.padded_linear import PaddedLinear, feature_axes
from secateur.modules.size_attributes import resize
from secateur.modules.slim_attention import SlimAttention

__all__ = ["check_shrunk", "shrink"]

OTHER_WEIGHTS = 6  # draws until an output reacts; with few units left, ReLUs may pass nothing


@one_at_a_time
def shrink(
    model: nn.Module, plan: Plan, check: bool = True, check_device: str | torch.device | None = None
) -> nn.Module:
    """Return a copy of the model without the units that the plan removes: a smaller, faster model.

    Single weights that the plan masks are set to zero.

    Args:
        model: The traced model, or a fresh instance of its class; left as it is.
        plan: What goes.
        check: Whether to compare the result with the masked model, in float64, on the example inputs.
        check_device: Device of that comparison; by default the model's.

    Raises:
        InputError: If an argument is invalid.
        NothingToPrune: If the plan removes nothing.
        PlanError: If the plan does not fit the model.
        ExactnessError: If the outputs differ; the message names the operation.
    """
    check_flags(check=check)
    check_plan(plan)
    model = before_units(model, plan)
    kept = kept_indices(plan.graph, plan.keep)
    if not (kept or plan.masks or plan.blocks or plan.experts):
        raise NothingToPrune(f"the plan removes nothing.\n{plan.graph.describe_frozen()}")
    base = mask(model, replace(plan, keep={}, merges={})) if plan.masks else model
    tensors = check_tensors(base, plan)
    values = {name: _select(tensors[name].detach(), axes) for name, axes in kept.items()}
    result = copy_with(base, tensors, values)
    names = [*kept, *(alias for alias, first in plan.graph.aliases.items() if first in kept)]
    touched = {name.rpartition(".")[0] for name in names}
    for size in plan.graph.sizes:
        result = _set_size(result, model, size, plan)
    heads = {name: m.head_dim for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    result = _pad_layers(_resize(result, touched, heads), plan)
    if check and (plan.graph.example_inputs or plan.graph.example_kwargs):
        check_shrunk(model, result, plan, check_device)
    return result


def check_shrunk(
    model: nn.Module, small: nn.Module, plan: Plan, device: Any = None, explain: bool = True
) -> Exactness:
    """Compare a shrunk model with the masked one; see `secateur.apply.exactness.verify`.

    Weights may hide a difference: outputs that do not react to the inputs, tensors of zeros, or outputs that
    are integers.  Then both are compared with other weights, too.

    Raises:
        ExactnessError: If they differ, or if nothing reacts with other weights either.
    """
    found = verify(mask(model, plan), small, plan, device, explain)
    reacts = found.reacts
    if reacts and not found.coarse and not hides_parts(model):
        return found
    for seed in range(OTHER_WEIGHTS):
        reacts |= _reacts_with_other_weights(with_other_weights(model, seed), plan, device, explain)
        if reacts and not found.coarse:
            break
    if not reacts:
        raise ExactnessError(
            "the exactness check compares constants: the masked model returns the same for the example "
            "inputs and for others, whatever its weights are. Your model is unchanged; give example inputs "
            "that its outputs depend on, or check=False to skip the comparison"
        )
    return found


def _reacts_with_other_weights(other: nn.Module, plan: Plan, device: Any, explain: bool) -> bool:
    try:
        small = shrink(other, plan, check=False)
        return verify(mask(other, plan), small, plan, device, explain).reacts
    except InputError:
        return False  # it does not run with these weights
    except ExactnessError as error:
        raise ExactnessError(f"with other weights, {error}") from error


def _select(tensor: Tensor, axes: Mapping[int, IntArray]) -> Tensor:
    for axis, index in axes.items():
        tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor.contiguous()


def _set_size(model: nn.Module, original: nn.Module, size: SizeAttribute, plan: Plan) -> nn.Module:
    """Set an attribute that stores a length; replace a normalisation that gets narrower."""
    length = kept_length(plan.graph, size, plan.keep)
    if length == size.value:
        return model
    if size.attribute == "normalized_shape":
        before, after = original.get_submodule(size.module), model.get_submodule(size.module)
        norm = build_narrow_norm(before, after, size.value)
        if norm is None:
            raise PlanError(
                f"{size.module!r} is a {type(before).__name__} of another form than in the traced model"
            )
        return _replace_module(model, size.module, norm)
    holder: Any = model.get_submodule(size.module)
    *path, attribute = size.attribute.split(".")
    for name in path:
        holder = getattr(holder, name)
    setattr(holder, attribute, length)
    return model


def _replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a submodule; return the model, or the module itself where it replaces the root."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


def _resize(model: nn.Module, touched: set[str], heads: Mapping[str, int]) -> nn.Module:
    """Set the size attributes of the changed layers; replace changed attention by `SlimAttention`."""
    for name, module in list(model.named_modules()):
        if name in touched:
            resize(module)
        attention = touched & {name, f"{name}.out_proj"}
        if isinstance(module, nn.MultiheadAttention) and attention:
            model = _replace_module(model, name, SlimAttention(module, heads[name]))
            _disable_nested_tensors(model, name)
    return model


def _disable_nested_tensors(model: nn.Module, name: str) -> None:
    """Stop the encoders around an attention from packing padded sequences for torch's own attention."""
    path = name.split(".")
    for length in range(len(path)):
        module = model.get_submodule(".".join(path[:length]))
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _pad_layers(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace the layers in which zeros take the place of removed units by `PaddedLinear`."""
    axes: dict[str, dict[int, tuple[IntArray, int]]] = {}
    for (tensor, axis), places in padded_axes(plan.graph, plan.keep).items():
        name, _, last = tensor.rpartition(".")
        if last == "weight":
            axes.setdefault(name, {})[axis] = places
    for name, padded in axes.items():
        layer: Any = model.get_submodule(name)
        if feature_axes(layer) is None:
            raise PlanError(f"{name!r} is a {type(layer).__name__}, but a linear layer in the traced model")
        model = _replace_module(model, name, _padded(layer, padded))
    return model


def _padded(layer: Any, axes: Mapping[int, tuple[IntArray, int]]) -> PaddedLinear:
    """Return a layer with the tensors of another; for each axis of its weight, the places that are left."""
    made, read = feature_axes(layer) or (0, 1)
    outputs, inputs = layer.weight.shape[made], layer.weight.shape[read]
    places, length = axes.get(made, (None, None))
    with torch.device("meta"):
        padded = PaddedLinear(inputs, outputs, layer.bias is not None, read in axes, length, made == 1)
    padded.weight, padded.bias = layer.weight, layer.bias
    device = layer.weight.device
    if read in axes:
        padded.inputs = torch.from_numpy(axes[read][0]).to(device)
    if places is not None and length is not None:
        table = torch.full((length,), outputs)
        table[torch.from_numpy(places)] = torch.arange(outputs)
        padded.outputs = table.to(device)
    return padded.train(layer.training)
