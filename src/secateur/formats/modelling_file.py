"""A modelling file for a folder of transformers: a class in which each layer has its own sizes.

A config has one number for all layers.  Where layers of the same kind keep unequal counts, or where the
config has no number for them, config.json states the widest, and lists beside it which tensors are smaller
and which attributes hold their lengths.  The file in the folder builds the plain class and sets those sizes.
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.apply.kept_tensors import state_without_places
from secateur.core import InputError, IntArray, Plan
from secateur.core.indices import kept_length, kept_shapes
from secateur.modules.narrow_norm import NarrowNorm
from secateur.modules.padded_linear import PaddedLinear

__all__ = ["MODELLING_FILE", "auto_map", "import_class", "list_sizes", "write_modelling_file"]

MODELLING_FILE = "modeling_pruned.py"
SOURCE = '''"""{plain} with layers of unequal sizes.

config.json lists under "secateur" the shape of every tensor that is smaller than in the plain class, every
attribute that holds such a length, and the layers in which zeros take the place of what has gone.  Load the
folder with `{auto}.from_pretrained(folder, trust_remote_code=True)`.  Secateur wrote this file; it is not
needed here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import {plain}


class {name}({plain}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for name, (reads, length) in config.secateur["padded"].items():
            plain = self.get_submodule(name)
            transposed = not isinstance(plain, nn.Linear)  # Conv1D
            rows, columns = config.secateur["shapes"][name + ".weight"][:: -1 if transposed else 1]
            padded = PaddedLinear(columns, rows, plain.bias is not None, reads, length, transposed)
            parent, _, last = name.rpartition(".")
            setattr(self.get_submodule(parent), last, padded)
        for name, shape in config.secateur["shapes"].items():
            module, _, tensor = name.rpartition(".")
            shorten(self.get_submodule(module), tensor, shape)
        for module, attribute, value in config.secateur["attributes"]:
            holder = self.get_submodule(module)
            *path, last = attribute.split(".")
            for name in path:
                holder = getattr(holder, name)
            setattr(holder, last, value)


def shorten(module, name, shape):
    """Give a module an empty tensor of this shape, and the sizes that follow from it."""
    old = getattr(module, name)
    new = old.detach().new_empty(shape)
    if isinstance(old, nn.Parameter):
        module.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, new)
    if isinstance(module, nn.Linear) and not isinstance(module, PaddedLinear):
        module.out_features, module.in_features = module.weight.shape
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    if hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(shape)


{padded_linear}'''


def list_sizes(model: nn.Module, plan: Plan, wide: Mapping[str, IntArray]) -> dict[str, Any]:
    """Return the sizes of a pruned model that differ from those of the plain class.

    Args:
        model: The pruned model.
        plan: What it keeps.
        wide: The units that the plain class has.

    Returns:
        "shapes": tensor of the state dict -> shape; "attributes": (module, attribute, value) of each;
        "padded": name of a `PaddedLinear` -> whether it leaves inputs out, and its outputs with the zeros.

    Raises:
        InputError: If a LayerNorm is narrower: the plain module would centre by another count.
    """
    graph = plan.graph
    small, plain = kept_shapes(graph, plan.keep), kept_shapes(graph, wide)
    firsts = {name: graph.aliases.get(name, name) for name in state_without_places(model)}
    shapes = {name: list(small[first]) for name, first in firsts.items() if small[first] != plain[first]}
    for name, module in model.named_modules():
        if isinstance(module, NarrowNorm) and module.form.centred and f"{name}.weight" in shapes:
            raise InputError(
                f"the LayerNorm {name!r} keeps fewer features than its config can state, and would "
                "centre them in another way. Keep these units (ignored_layers=), give uneven='pad', or use "
                "result.save"
            )
    lengths = {
        (size.module, size.attribute): [kept_length(graph, size, keep) for keep in (plan.keep, wide)]
        for size in graph.sizes
        if size.attribute != "normalized_shape"
    }
    attributes = [[*where, small] for where, (small, plain) in lengths.items() if small != plain]
    padded = {
        name: (module.inputs is not None, None if module.outputs is None else len(module.outputs))
        for name, module in model.named_modules()
        if isinstance(module, PaddedLinear)
    }
    return {"shapes": shapes, "attributes": attributes, "padded": padded}


def auto_map(model: Any) -> dict[str, str]:
    """Return which class of the modelling file each AutoModel loads, as config.json states it.

    Raises:
        InputError: If no AutoModel makes the class of the model.
    """
    found = {auto: f"{Path(MODELLING_FILE).stem}.{_class_name(model)}" for auto in _auto_classes(model)}
    if not found:
        raise InputError(
            f"no AutoModel of transformers makes {type(model).__name__}, so a folder with a modelling file "
            "could not be loaded. Give uneven='pad', or use result.save"
        )
    return found


def _class_name(model: Any) -> str:
    """Return the name of the class in the modelling file."""
    return f"Pruned{type(model).__name__}"


def _auto_classes(model: Any) -> Iterator[str]:
    from transformers.models.auto import modeling_auto

    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is not None and type(model.config) in mapping:
            made = mapping[type(model.config)]
            if type(model) in (made if isinstance(made, (tuple, list)) else (made,)):
                yield name


def write_modelling_file(folder: Path, model: Any) -> None:
    """Write the modelling file for the class of a model."""
    names = {"plain": type(model).__name__, "name": _class_name(model), "auto": next(_auto_classes(model))}
    names["padded_linear"] = inspect.getsource(PaddedLinear)
    (folder / MODELLING_FILE).write_text(SOURCE.format(**names), encoding="utf-8")


def import_class(folder: Path, model: Any) -> Any:
    """Return the class of the modelling file in a folder that `write_modelling_file` has just written."""
    return runpy.run_path(str(folder / MODELLING_FILE), run_name=__name__)[_class_name(model)]
