"""Find the operation at which a shrunk model deviates from the masked one."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.deviation import deviation
from secateur.core import BoolArray, CaptureError, Group, InputError, Plan
from secateur.execution import tensors_by_name
from secateur.tracing.export import ExportedModel, export_model, source_line, user_code_line
from secateur.tracing.propagate import TensorAxes
from secateur.tracing.replay import make_replay
from secateur.tracing.trace import LabelledExport, export_with_labels
from secateur.views import narrow_example

__all__ = ["find_deviating_operation"]


def find_deviating_operation(masked: nn.Module, small: nn.Module, plan: Plan) -> str:
    """Run both graphs side by side and name the first operation with an unexpected result."""
    args, kwargs = narrow_example(plan.graph, plan.keep, masked=True)
    narrow = narrow_example(plan.graph, plan.keep)
    try:
        if plan.graph.inside:
            masked, calls = make_replay(masked, plan.graph.inside, args, kwargs)
            small, narrow_calls = make_replay(small, plan.graph.inside, *narrow)
            args, kwargs, narrow = (calls,), {}, ((narrow_calls,), {})
        shrunk = export_model(small, *narrow)
    except (CaptureError, InputError) as error:
        return f"It fails at {user_code_line(error.__cause__ or error) or 'a line that is not known'}"
    labelled = export_with_labels(masked, args, kwargs, plan.graph.interface)
    whole, dead = labelled.exported, _dead_atoms(labelled, plan)
    expected = _values(whole, masked, args, kwargs)
    actual = _values(shrunk, small, *narrow)
    for node, other in zip(whole.graph_module.graph.nodes, shrunk.graph_module.graph.nodes, strict=False):
        if node.target != other.target and node.op == "call_function":
            return f"From {node.target} at {source_line(node)} on, it takes another path"
        a, b, state = expected.get(node.name), actual.get(other.name), labelled.states.get(node.name)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(state, TensorAxes):
            a = _alive(a, state, dead)
            name = whole.parameters.get(node.name)
            what = f"{node.target} at {source_line(node)}" if name is None else f"the parameter {name!r}"
            if a.shape != b.shape:
                return f"{what} gives {tuple(b.shape)} instead of {tuple(a.shape)}"
            if a.is_floating_point() and deviation([a.double()], [b.double()]) > 1e-3:
                return f"{what} gives other values"
    return "No single operation deviates by more than 1e-3 in the model's own precision"


def _values(exported: ExportedModel, model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Run an exported graph with a model's tensors; return every node's value up to a failure."""
    tensors = tensors_by_name(model)
    leaves = iter(tree_leaves((args, dict(kwargs))))
    interpreter = torch.fx.Interpreter(exported.graph_module)
    inputs = []
    for node in exported.graph_module.graph.nodes:
        if node.op == "placeholder":
            name = exported.parameters.get(node.name)
            if name in tensors:
                inputs.append(tensors[name])
            else:
                constant = node.name in exported.constants
                inputs.append(exported.constants[node.name] if constant else next(leaves))
    interpreter.garbage_collect_values = False
    with contextlib.suppress(RuntimeError, IndexError, TypeError, ValueError), torch.no_grad():
        interpreter.run(*inputs)
    return {n.name: v.detach() if isinstance(v, Tensor) else v for n, v in interpreter.env.items()}


def _alive(value: Tensor, state: TensorAxes, dead: BoolArray) -> Tensor:
    """Return the entries of a result of the masked model that the shrunk model still computes."""
    if state.rows:
        each = [replace(state, labels=(*state.labels[1:-1], label), rows=()) for label in state.rows]
        return torch.stack([_alive(x, row, dead) for x, row in zip(value, each, strict=True)])
    for axis, label in enumerate(state.labels):
        if label is not None and len(label) == value.shape[axis]:
            stays = np.flatnonzero(~dead[label].any(1))
            value = value.index_select(axis, torch.from_numpy(stays).to(value.device))
    return value


def _dead_atoms(labelled: LabelledExport, plan: Plan) -> BoolArray:
    """Mark the atoms of the units that the plan removes.

    The masked model is labelled without `ignored_layers`, so its groups may have other names than the plan's.
    They are the same if they own the same indices of the same axis.
    """

    def key(group: Group) -> tuple[Any, ...]:
        return tuple((s.tensor, s.axis, s.index.tobytes()) for s in group.slots[:1])

    roots = {key(family.group): family.roots for family in labelled.families}
    dead = np.zeros(labelled.atoms, dtype=bool)
    for group in plan.graph.groups:
        if key(group) in roots:
            dead[roots[key(group)][plan.removed(group.name)]] = True
    return dead
