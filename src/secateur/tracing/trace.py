"""Trace: which units of a model live and die together, and what stays and why.

The model is captured by `torch.export`, and labels of tensor axes are carried through the graph by
the rules in `secateur.tracing.rules`.  Nothing is searched and nothing is guessed: an operation
without a rule freezes what it touches, and the frozen axes say so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.rnn import PackedSequence

from secateur.core import InputError, PruningGraph, unknown
from secateur.modules.narrow_norm import norm_form
from secateur.tracing.export import (
    ExportedModel,
    export_model,
    first_names,
    is_inplace,
    module_of,
    source_line,
)
from secateur.tracing.groups import Family, Tensors, find_frozen, find_groups, find_sizes
from secateur.tracing.labels import Label
from secateur.tracing.propagate import Axes, Flow
from secateur.tracing.rules import RULES
from secateur.tracing.sizes import settle

__all__ = ["LabelledExport", "as_call", "export_with_labels", "trace", "traced_model"]

# A graph is a value and must not keep the model alive: both sides are weak.
_MODELS: WeakKeyDictionary[PruningGraph, ref[nn.Module]] = WeakKeyDictionary()

SILENT = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "sym_size",
    "sym_constrain_range_for_size",
}


def trace(
    model: nn.Module,
    example_inputs: Any,
    ignored_layers: Iterable[str | nn.Module] = (),
    example_kwargs: Mapping[str, Any] | None = None,
) -> PruningGraph:
    """Find the groups of units that can be removed from a model.

    Args:
        model: Any module; it is neither changed nor kept in another mode.
        example_inputs: What the model is called with: a tensor, a tuple, or a dict of keywords.  Use
            a batch of 2 or more, and lengths unlike the numbers of features.
        ignored_layers: Modules, or names of modules or parameters, whose own units all stay; what
            reads other units may still get narrower.
        example_kwargs: Keyword inputs.

    Raises:
        CaptureError: torch.export cannot capture the model.
        InputError: The inputs or the names cannot be.

    Example:
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> graph = trace(mlp, torch.randn(2, 4))
        >>> [(g.name, g.size) for g in graph.groups]
        [('0', 8)]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    args, kwargs = as_call(example_inputs, example_kwargs)
    _, flow, tensors, families = _analyse(model, args, kwargs, _ignored(model, ignored_layers))
    graph = PruningGraph(
        groups=tuple(f.group for f in families),
        frozen=find_frozen(flow, tensors),
        layers=tuple(_once(flow.layers)),
        shapes={name: state.shape for name, state in tensors.states.items()},
        parameters=tuple(n for n, _ in model.named_parameters()),
        aliases={k: v for k, v in first_names(model).items() if k != v},
        sizes=find_sizes(flow, families),
        example_inputs=args,
        example_kwargs=kwargs,
    )
    _MODELS[graph] = ref(model)
    return graph


def traced_model(graph: PruningGraph) -> nn.Module | None:
    """Return the model that `trace` got for this graph, or None if it is no longer in memory.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> graph = trace(mlp, torch.randn(2, 4))
        >>> traced_model(graph) is mlp
        True
        >>> del mlp
        >>> traced_model(graph) is None
        True
    """
    model = _MODELS.get(graph)
    return None if model is None else model()


@dataclass(frozen=True, eq=False)
class LabelledExport:
    """An exported model whose operations know which units their results depend on.

    Attributes:
        exported: The exported model.
        states: Node name -> `Axes` of its result (or a list of them), labels in free atoms.
        roots: Group name -> the atoms of its units.
        atoms: Number of atoms.
    """

    exported: ExportedModel
    states: Mapping[str, Any]
    roots: Mapping[str, NDArray[np.int64]]
    atoms: int


def export_with_labels(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LabelledExport:
    """Export a model and label every operation, to find where a shrunk model goes wrong.

    Raises:
        CaptureError: If torch.export cannot export the model.
    """
    exported, flow, _, families = _analyse(model, args, kwargs, {})
    states = {name: _normal(flow, state) for name, state in exported.states.items()}
    return LabelledExport(exported, states, {f.group.name: f.roots for f in families}, flow.atoms.size)


def _analyse(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], ignored: Mapping[str, set[str]]
) -> tuple[ExportedModel, Flow, Tensors, list[Family]]:
    """Export a model, carry labels through it, and collect the groups."""
    taken = export_model(model, args, kwargs)
    norms = frozenset(name for name, module in model.named_modules() if norm_form(module) is not None)
    flow = Flow(batch=_batch(args, kwargs), norms=norms)
    tensors = _label_tensors(model, flow)
    _walk(taken, flow, tensors)
    _ignore(flow, tensors, ignored)
    settle(taken, flow, args, kwargs)
    return taken, flow, tensors, find_groups(flow, tensors)


def as_call(inputs: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword inputs for a tensor, a tuple, or a dict of keywords."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"example_kwargs are a mapping of keywords; got {type(kwargs).__name__}")
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(kwargs or {})}
    several = isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence)
    return tuple(inputs) if several else (inputs,), dict(kwargs or {})


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    tensors = [t for t in torch.utils._pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    return next((t.shape[0] for t in tensors if t.ndim), 1)


def _label_tensors(model: nn.Module, flow: Flow) -> Tensors:
    states = {}
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            labels = tuple(flow.atoms.label(n) for n in tensor.shape)
            n = tensor.ndim
            states[name] = Axes(tuple(tensor.shape), labels, (True,) * n, False, name, tuple(range(n)))
    return Tensors(states, frozenset(n for n, _ in model.named_parameters()))


def _walk(taken: ExportedModel, flow: Flow, tensors: Tensors) -> None:
    used = set()
    inputs: dict[str, Any] = {}
    for node in taken.module.graph.nodes:
        if node.op != "placeholder":
            continue
        name = taken.parameters.get(node.name)
        if name is not None and name in tensors.states:
            inputs[node.name] = tensors.states[name]
            used |= {name} if node.users else set()
        else:
            inputs[node.name] = _plain(flow, node.meta.get("val"), node.name not in taken.constants)
    outputs = run_graph(taken.module, inputs, flow, taken.states)
    flow.enter("output", ("", ""), "it is an output of the model", "")
    for state in _leaves(outputs):
        for label in state.labels:
            flow.atoms.freeze(label, "an output of the model")
    for name, state in tensors.states.items():
        if name not in used:
            for label in state.labels:
                flow.atoms.freeze(label, "not used in the traced forward pass")


def _plain(flow: Flow, value: Any, data: bool) -> Any:
    return torch.utils._pytree.tree_map(
        lambda v: flow.plain(tuple(v.shape), data) if isinstance(v, Tensor) else v, value
    )


def _leaves(tree: Any) -> list[Axes]:
    return [s for s in torch.utils._pytree.tree_leaves(tree) if isinstance(s, Axes)]


def run_graph(module: GraphModule, inputs: Mapping[str, Any], flow: Flow, record: dict[str, Any]) -> Any:
    """Carry labels through a graph; return the states of its outputs."""
    env: dict[Node, Any] = {}

    def resolve(tree: Any) -> Any:
        return torch.fx.node.map_arg(tree, lambda n: env[n])

    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = inputs[node.name]
        elif node.op == "output":
            return resolve(node.args[0])
        elif node.op == "get_attr":
            env[node] = _attribute(module, node, flow)
        else:
            flow.enter(node.name, module_of(node), str(node.target), source_line(node))
            env[node] = _call(module, node, resolve, flow, record)
            while is_inplace(node) and isinstance(node.args[0], Node):
                env[node.args[0]] = env[node]
                node = node.args[0]
        record[node.name] = env[node]
    return ()


def _attribute(module: GraphModule, node: Node, flow: Flow) -> Any:
    value = operator.attrgetter(str(node.target))(module)
    return flow.plain(tuple(value.shape), False) if isinstance(value, Tensor) else value


def _call(
    module: GraphModule, node: Node, resolve: Callable[[Any], Any], flow: Flow, record: dict[str, Any]
) -> Any:
    target = node.target
    if target is operator.getitem:
        sequence, i = resolve(node.args)
        return sequence[i]
    name = operation_name(target)
    args, kwargs = resolve(node.args), resolve(dict(node.kwargs))
    inner = [a for a in args if isinstance(a, GraphModule)]
    if inner and name.startswith("wrap_with"):
        body = inner[0]
        given = args[args.index(body) + 1 :]
        holders = [n.name for n in body.graph.nodes if n.op == "placeholder"]
        return run_graph(body, dict(zip(holders, given, strict=True)), flow, record)
    shapes = _shapes(node.meta.get("val"))
    if name in SILENT or not shapes:
        return node.meta.get("val")
    states = _leaves((args, kwargs))
    known = RULES.get(name) if getattr(target, "namespace", "aten") == "aten" else None
    if known is None:
        return _unknown(flow, states, shapes, node)
    result = known(flow, shapes, *_spread(name, args), **_relevant(kwargs))
    results = result if isinstance(result, list) else [result]
    results = [_settled(s, shape, states) for s, shape in zip(results, shapes, strict=False)]
    return results if isinstance(node.meta["val"], (tuple, list)) else results[0]


def _settled(state: Axes, shape: tuple[int, ...], operands: Sequence[Axes]) -> Axes:
    """Fix what rules leave open: the dependence on data, and the shape they must have found."""
    if tuple(state.shape) != tuple(shape):
        raise AssertionError(f"a rule predicted {state.shape} where the graph has {shape}")
    data = state.data or any(s.data for s in operands)
    return state if state.data == data else replace(state, data=data)


def _spread(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(list(a) if isinstance(a, tuple) and type(a) is not tuple else a for a in args)


def _relevant(kwargs: dict[str, Any]) -> dict[str, Any]:
    dull = {"dtype", "device", "layout", "pin_memory", "memory_format", "generator", "inplace"}
    return {k: v for k, v in kwargs.items() if k not in dull}


def operation_name(target: Any) -> str:
    """Return an operation's name without namespace, overload, and the underscore of in-place forms."""
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target)).split(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return {"__and__": "bitwise_and", "__or__": "bitwise_or"}.get(name, name)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [tuple(v.shape) for v in leaves if isinstance(v, Tensor)]


def _unknown(flow: Flow, states: list[Axes], shapes: list[tuple[int, ...]], node: Node) -> Any:
    for state in states:
        flow.freeze_all(state, "the operation is not known")
    results = [flow.plain(shape, any(s.data for s in states)) for shape in shapes]
    return results if isinstance(node.meta["val"], (tuple, list)) else results[0]


def _ignored(model: nn.Module, ignored: Any) -> dict[str, set[str]]:
    """Return, for each entry, the first names of the tensors inside it."""
    if isinstance(ignored, (str, nn.Module)) or not isinstance(ignored, Iterable):
        raise InputError(f"ignored_layers is a list of modules and names; got {type(ignored).__name__}")
    named, first = list(model.named_modules(remove_duplicate=False)), first_names(model)
    names = {id(module): name for name, module in reversed(named)}
    known = {*dict(named), *first}
    found = {}
    for entry in ignored:
        name = names.get(id(entry)) if isinstance(entry, nn.Module) else entry
        if not isinstance(name, str) or name not in known:
            shown = name if isinstance(name, str) else type(entry).__name__
            raise InputError(unknown("layer", shown, sorted(known - {""})))
        prefix = name + "." if name else ""
        found[name] = {f for n, f in first.items() if n == name or n.startswith(prefix)}
        if not found[name]:
            kind = type(model.get_submodule(name)).__name__
            raise InputError(f"ignored_layers: {name!r} ({kind}) makes no units; name the layer before it")
    return found


def _ignore(flow: Flow, tensors: Tensors, ignored: Mapping[str, set[str]]) -> None:
    for name, inside in ignored.items():
        for (tensor, axis), role in flow.roles.items():
            if tensor in inside and role != "in":
                flow.atoms.freeze(tensors.states[tensor].labels[axis], f"ignored_layers has {name!r}")


def _normal(flow: Flow, state: Any) -> Any:
    def one(s: Any) -> Any:
        if not isinstance(s, Axes):
            return s
        labels: tuple[Label, ...] = tuple(flow.atoms.normal(x) for x in s.labels)
        return replace(s, labels=labels)

    return [one(s) for s in state] if isinstance(state, list) else one(state)


def _once(layers: Sequence[Any]) -> list[Any]:
    """Merge the records of a weight that is used several times: uses add up."""
    merged: dict[tuple[str, Any, Any], Any] = {}
    for layer in layers:
        key = (layer.weight, layer.out_axis, layer.in_axis)
        before = merged.get(key)
        merged[key] = (
            layer if before is None else replace(before, positions=before.positions + layer.positions)
        )
    return list(merged.values())
