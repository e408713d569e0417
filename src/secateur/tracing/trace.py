"""Trace: find which units of a model live and die together, and what stays and why.

`torch.export` exports the model (`export`), and labels of tensor axes pass through the graph (`propagate`)
by one rule an operation (`rules`).  Sizes in the code are matched with the axes whose lengths they state
(`sizes`).  What is free at the end are the units (`groups`).  Nothing is searched and nothing is guessed: an
operation without a rule freezes what it touches, and the frozen axes say so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from secateur.core import Group, InputError, Interface, Layer, PruningGraph
from secateur.core.interface import check_outputs, check_states
from secateur.execution import check_flags, check_module, one_at_a_time, plain_tensors, tensors_by_name
from secateur.modules.narrow_norm import norm_form
from secateur.tracing.equal_lengths import tie_uncountable
from secateur.tracing.export import ExportedModel, concrete, export_model, first_names, shapes_in
from secateur.tracing.groups import (
    Tensors,
    UnitFamily,
    find_equal_counts,
    find_frozen,
    find_groups,
    find_sizes,
)
from secateur.tracing.head_positions import find_head_positions, without_ignored
from secateur.tracing.ignored import (
    IgnoredLayer,
    find_ignored_layers,
    freeze_ignored_groups,
    freeze_ignored_layers,
)
from secateur.tracing.inside import check_inside, freeze_shared
from secateur.tracing.operations import run_graph
from secateur.tracing.ports import Ports, find_ports, find_state_axes
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.replay import make_replay
from secateur.tracing.sizes import match_sizes

__all__ = [
    "LabelledExport",
    "as_call",
    "export_with_labels",
    "freeze_groups",
    "trace",
    "trace_with_positions",
    "traced_model",
]

# A graph is a value and must not keep the model alive: both sides are weak.
_MODELS: WeakKeyDictionary[PruningGraph, ref[nn.Module]] = WeakKeyDictionary()


@one_at_a_time
def trace(
    model: nn.Module,
    example_inputs: Any,
    ignored_layers: Iterable[str | nn.Module] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    outputs: str | int | Iterable[str | int] | None = None,
    states: Mapping[str, str | int] | Iterable[tuple[str | int, str | int]] | None = None,
    inside: str | Iterable[str] | None = None,
    positions: bool = False,
) -> PruningGraph:
    """Find the groups of units that can be removed from a model.

    Args:
        model: Any module; it is not changed, and the graph does not keep it alive.
        example_inputs: What the model is called with: a tensor, a tuple, or a dict of keywords.  Use
            a batch of 2 or more, and lengths unlike the numbers of features.  Short examples suffice:
            which units live and die together does not depend on the number of time steps, and
            tracing a recurrent network that is written step by step takes time in proportion to it.
        ignored_layers: What stays whole: modules, names of modules, parameters or groups (as
            `PruningGraph.summary` prints them), patterns of these such as ``"*.attention.*"``, or kinds of
            groups (`secateur.core.KINDS`) such as ``"kind:hidden"``.  The units that a layer makes stay;
            it may still read fewer.
        example_kwargs: Keyword inputs.
        outputs: The outputs that count, if not all do: names of fields, indices, or paths such as
            ``"past.0"``.  The others may lose units or change, and nothing compares them.
        states: Inputs whose next values the model returns, as in ``{"h": "hidden"}`` or ``[(1, 1)]``: name or
            index of the argument, and path of the output.  Both shrink with the units on them.  A tuple
            stands for the tensors in it.  The example inputs must hold every state.
        inside: For a model that `torch.export` cannot export: the submodules that it can, by name.  Only
            these lose units, everything that leaves them keeps its size, and the rest stays as it is.
            ``"auto"`` finds the largest ones.
        positions: Whether positions within the heads of attention are units, too: pairs under a rotary
            embedding, in queries and key, and positions of the values, of each key-value group by itself.
            The layers around the attention get smaller; the attention itself computes zeros.

    Raises:
        CaptureError: If torch.export cannot export the model, or a submodule that `inside` names.
        InputError: If the inputs are invalid, or an entry of `ignored_layers`, `outputs`, `states` or
            `inside` matches nothing, or if there are no positions within heads that could go.

    Example:
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> graph = trace(mlp, torch.randn(2, 4))
        >>> [(g.name, g.size) for g in graph.groups]
        [('0', 8)]
    """
    check_flags(positions=positions)
    call = (example_inputs, example_kwargs, outputs, states, inside)
    return _trace(model, call, ignored_layers, find_head_positions if positions else None)


@one_at_a_time
def trace_with_positions(
    model: nn.Module, example_inputs: Any, ignored_layers: Iterable[str], positions: Sequence[Group]
) -> PruningGraph:
    """Trace a model whose positions within heads are known: it may lie on the meta device."""
    call = (example_inputs, None, None, None, None)
    return _trace(model, call, ignored_layers, lambda *_: list(positions))


def _trace(
    model: nn.Module,
    call: tuple[Any, ...],
    ignored_layers: Iterable[str | nn.Module],
    find_positions: Callable[..., list[Group]] | None,
) -> PruningGraph:
    example_inputs, example_kwargs, outputs, states, inside = call
    check_module(model)
    args, kwargs = as_call(example_inputs, example_kwargs)
    counted, pairs = check_outputs(outputs), check_states(states)
    ignored = find_ignored_layers(model, ignored_layers)
    inner: tuple[Group, ...] = ()
    names = check_inside(model, args, kwargs, inside, counted, pairs)
    if find_positions is not None:
        inner, ignored = without_ignored(find_positions(model, args, kwargs, names), ignored)
    if names:
        replayed, calls = make_replay(model, names, args, kwargs)
        found = _analyse(replayed, (calls,), {}, ignored, Ports(Interface()))
    else:
        found = _analyse(model, args, kwargs, ignored, find_ports(model, args, kwargs, counted, pairs))
    propagation, tensors, families = found.propagation, found.tensors, found.families
    graph = PruningGraph(
        groups=(*(f.group for f in families), *inner),
        frozen=find_frozen(propagation, tensors, inner),
        layers=tuple(_add_uses(propagation.layers)),
        shapes=_shapes(model, tensors, families),
        parameters=tuple(n for n, _ in model.named_parameters()),
        aliases={k: v for k, v in first_names(model).items() if k != v},
        sizes=find_sizes(propagation, families),
        equal_counts=find_equal_counts(propagation, families),
        element_sizes={name: x.element_size() for name, x in tensors_by_name(model).items()},
        interface=found.interface,
        inside=names,
        example_inputs=args,
        example_kwargs=kwargs,
    )
    graph = freeze_shared(graph, model)
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


def freeze_groups(graph: PruningGraph, names: Collection[str], reason: str) -> PruningGraph:
    """Return the graph in which these groups stay whole; `traced_model` still finds its model.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> frozen = freeze_groups(trace(mlp, torch.randn(2, 4)), ["0"], "because")
        >>> frozen.groups, str(frozen.frozen[-1]), traced_model(frozen) is mlp
        ((), '2.weight[1]: because', True)
    """
    if not any(group.name in names for group in graph.groups):
        return graph
    frozen = graph.without_groups(names, reason)
    if graph in _MODELS:
        _MODELS[frozen] = _MODELS[graph]
    return frozen


@dataclass(frozen=True, eq=False)
class LabelledExport:
    """An exported model whose operations know which units their results depend on.

    Attributes:
        exported: The exported model.
        states: Node name -> `TensorAxes` of its result (or a list of them), labels in free atoms.
        families: The groups, with the atoms of their units.
        atoms: Number of atoms.
    """

    exported: ExportedModel
    states: Mapping[str, Any]
    families: Sequence[UnitFamily]
    atoms: int


def export_with_labels(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], interface: Interface
) -> LabelledExport:
    """Export a model and label every operation, to find where a shrunk model goes wrong.

    Raises:
        CaptureError: If torch.export cannot export the model.
    """
    pairs = [(state.taken, state.returned) for state in interface.states]
    ports = find_ports(model, args, kwargs, interface.outputs, pairs)
    found = _analyse(model, args, kwargs, (), ports)
    propagation = found.propagation
    states = {name: _in_free_atoms(propagation, state) for name, state in propagation.states.items()}
    return LabelledExport(found.exported, states, found.families, propagation.algebra.size)


def as_call(inputs: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword inputs for a tensor, a tuple, or a dict of keywords."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"example_kwargs are a mapping of keywords; got {type(kwargs).__name__}")
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(kwargs or {})}
    several = isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence)
    return tuple(inputs) if several else (inputs,), dict(kwargs or {})


@dataclass(frozen=True, eq=False)
class _Analysis:
    """What an analysis found."""

    exported: ExportedModel
    propagation: Propagation
    tensors: Tensors
    families: list[UnitFamily]
    interface: Interface


def _analyse(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    ignored: Sequence[IgnoredLayer],
    ports: Ports,
) -> _Analysis:
    """Export a model, carry labels through it, and collect the groups."""
    exported = export_model(model, args, kwargs)
    norms = frozenset(name for name, module in model.named_modules() if norm_form(module) is not None)
    # States that are 0 at dead indices allow more.  They must then be so at every step.
    for zero in (True, False):
        propagation = Propagation(batch=_batch_size(args, kwargs), norms=norms)
        tensors = _label_tensors(model, exported, propagation)
        states = ports.label_states(exported, propagation, zero)
        outputs = _propagate(exported, propagation, tensors, ports, states)
        if ports.zero_again(outputs, states, propagation):
            break
    freeze_ignored_layers(propagation, tensors, ignored)
    tie_uncountable(propagation)
    match_sizes(exported, propagation, args, kwargs, states)
    families = freeze_ignored_groups(propagation, find_groups(propagation, tensors), ignored)
    interface = find_state_axes(ports, states, propagation, families)
    return _Analysis(exported, propagation, tensors, families, interface)


def _batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    tensors = [t for t in torch.utils._pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    return next((t.shape[0] for t in tensors if t.ndim), 1)


def _shapes(model: nn.Module, tensors: Tensors, families: Sequence[UnitFamily]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters and buffers, and of the plain tensors that lose units.

    Other plain tensors may be caches, which a fresh instance does not have.
    """
    narrower = {slot.tensor for family in families for slot in family.group.slots}
    registered = tensors_by_name(model)
    return {n: s.shape for n, s in tensors.states.items() if n in registered or n in narrower}


def _label_tensors(model: nn.Module, exported: ExportedModel, propagation: Propagation) -> Tensors:
    """Give every axis of parameters, buffers, and plain tensors that are used its own label.

    `mask` sets floating and complex tensors to 0 at dead indices, and leaves integers and booleans.
    """
    states = {}
    plain = {n: x for n, x in plain_tensors(model).items() if n in exported.parameters.values()}
    for named in (model.named_parameters(), model.named_buffers(), plain.items()):
        for name, tensor in named:
            labels = tuple(propagation.algebra.label(n) for n in tensor.shape)
            shape, n = tuple(tensor.shape), tensor.ndim
            zero = (tensor.is_floating_point() or tensor.is_complex(),) * n
            states[name] = TensorAxes(shape, labels, zero, False, name, tuple(range(n)))
    return Tensors(states, frozenset(n for n, _ in model.named_parameters()))


def _propagate(
    exported: ExportedModel,
    propagation: Propagation,
    tensors: Tensors,
    ports: Ports,
    states: Mapping[str, TensorAxes],
) -> list[Any]:
    """Carry the labels through the graph; freeze outputs and unused parameters; return the outputs."""
    used = set()
    inputs: dict[str, Any] = dict(states)
    for node in exported.graph_module.graph.nodes:
        if node.op != "placeholder" or node.name in states:
            continue
        name = exported.parameters.get(node.name)
        if name is not None and name in tensors.states:
            inputs[node.name] = tensors.states[name]
            used |= {name} if node.users else set()
        else:
            data = node.name not in exported.constants
            inputs[node.name] = _unlabelled(propagation, node.meta.get("val"), data)
    outputs = list(run_graph(exported.graph_module, inputs, propagation))
    propagation.enter_node("output", ("", ""), "it is an output of the model", "")
    for axes in ports.close(outputs, states, propagation):
        for label in (*axes.labels, *axes.rows):
            propagation.algebra.freeze(label, "an output of the model")
    for name, state in tensors.states.items():
        if name not in used:
            for label in state.labels:
                propagation.algebra.freeze(label, "not used in the traced forward pass")
    return outputs


def _unlabelled(propagation: Propagation, value: Any, data: bool) -> Any:
    return torch.utils._pytree.tree_map(
        lambda v: propagation.unlabelled(shapes_in(v)[0], data) if isinstance(v, Tensor) else concrete(v),
        value,
    )


def _in_free_atoms(propagation: Propagation, state: Any) -> Any:
    def normal(s: Any) -> Any:
        if not isinstance(s, TensorAxes):
            return s
        labels, rows = (tuple(propagation.algebra.normal(x) for x in y) for y in (s.labels, s.rows))
        return replace(s, labels=labels, rows=rows)

    return [normal(s) for s in state] if isinstance(state, list) else normal(state)


def _add_uses(layers: Sequence[Layer]) -> list[Layer]:
    """Merge the records of a weight that is used several times: the uses add up."""
    merged: dict[tuple[str, Any, Any], Layer] = {}
    for layer in layers:
        key = (layer.weight, layer.out_axis, layer.in_axis)
        before = merged.get(key)
        merged[key] = (
            layer if before is None else replace(before, positions=before.positions + layer.positions)
        )
    return list(merged.values())
