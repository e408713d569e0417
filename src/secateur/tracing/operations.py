"""Carry labels through the operations of an exported graph, by one rule an operation (`rules`)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secateur.tracing.aliases import Aliases
from secateur.tracing.export import concrete, is_inplace, module_of, shapes_in, source_line
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules import RULES
from secateur.tracing.stacked_states import read_rows

__all__ = ["run_graph"]

# Operations of the export that compute nothing.
SILENT = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "sym_size",
    "sym_constrain_range_for_size",
}
# Libraries whose operations the rules know by name.
NAMESPACES = ("aten", "transformers")
# Keyword arguments that do not matter to the axes of the results.
WITHOUT_EFFECT = {"dtype", "device", "layout", "pin_memory", "memory_format", "generator", "inplace"}


def _tensor_axes(tree: Any) -> list[TensorAxes]:
    return [s for s in torch.utils._pytree.tree_leaves(tree) if isinstance(s, TensorAxes)]


def run_graph(module: GraphModule, inputs: Mapping[str, Any], propagation: Propagation) -> Any:
    """Carry labels through a graph and record them in `propagation.states`.

    Args:
        module: The graph.
        inputs: Placeholder name -> `TensorAxes`, or the value of an input that is not a tensor.
        propagation: What the rules share.

    Returns:
        The outputs, with `TensorAxes` for tensors.
    """
    values: dict[Node, Any] = {}
    aliases = Aliases()

    def resolve(tree: Any) -> Any:
        return torch.fx.node.map_arg(tree, lambda n: values[n])

    for node in module.graph.nodes:
        aliases.add(node)
        if node.op == "placeholder":
            values[node] = inputs[node.name]
        elif node.op == "output":
            return resolve(node.args[0])
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(module)
            is_tensor = isinstance(value, Tensor)
            values[node] = propagation.unlabelled(tuple(value.shape), False) if is_tensor else value
        else:
            propagation.enter_node(node.name, module_of(node), str(node.target), source_line(node))
            values[node] = _apply_rule(node, resolve, propagation)
            if is_inplace(node) and isinstance(values[node], TensorAxes):
                aliases.write(node, values, propagation)
        propagation.states[node.name] = values[node]
    return ()


def _apply_rule(node: Node, resolve: Callable[[Any], Any], propagation: Propagation) -> Any:
    target = node.target
    if target is operator.getitem:
        sequence, i = resolve(node.args)
        return sequence[i]
    name = operation_name(target)
    args, kwargs = resolve(node.args), resolve(dict(node.kwargs))
    inner = [a for a in args if isinstance(a, GraphModule)]
    if inner and name.startswith("wrap_with"):
        return _run_wrapped(inner[0], args, propagation)
    value = node.meta.get("val")
    shapes = shapes_in(value)
    if name in SILENT or not shapes:
        return torch.utils._pytree.tree_map(concrete, value)
    args, kwargs = read_rows(propagation, name, (args, kwargs))
    operands = _tensor_axes((args, kwargs))
    known = RULES.get(name) if getattr(target, "namespace", "aten") in NAMESPACES else None
    results = None
    if known is not None:
        options = {k: v for k, v in kwargs.items() if k not in WITHOUT_EFFECT}
        result = known(propagation, shapes, *args, **options)
        results = result if isinstance(result, list) else [result]
    # A rule that predicts other shapes does not know this form of the operation.
    if results is None or any(not _fits(s, shape) for s, shape in zip(results, shapes, strict=False)):
        results = _freeze_operands(propagation, operands, shapes)
    data = any(s.data for s in operands)
    results = [replace(s, data=True) if data and not s.data else s for s in results[: len(shapes)]]
    return results if isinstance(value, (tuple, list)) else results[0]


def _fits(axes: TensorAxes, shape: tuple[int, ...]) -> bool:
    """Return whether axes and their labels have these lengths; stand-ins for unknown lengths may not."""
    lengths = zip(axes.labels, shape, strict=False)
    return axes.shape == shape and all(label is None or len(label) == n for label, n in lengths)


def _run_wrapped(body: GraphModule, args: Sequence[Any], propagation: Propagation) -> Any:
    """Carry labels through the graph inside a wrapper such as `wrap_with_set_grad_enabled`."""
    given = args[args.index(body) + 1 :]
    names = [n.name for n in body.graph.nodes if n.op == "placeholder"]
    return run_graph(body, dict(zip(names, given, strict=True)), propagation)


def _freeze_operands(
    propagation: Propagation, operands: Sequence[TensorAxes], shapes: Sequence[tuple[int, ...]]
) -> list[TensorAxes]:
    """Freeze everything that an operation without a rule touches."""
    for state in operands:
        propagation.freeze_all(state, "the operation is not known")
    return [propagation.unlabelled(shape, any(s.data for s in operands)) for shape in shapes]


def operation_name(target: Any) -> str:
    """Return an operation's name without namespace, overload, and the underscore of in-place forms."""
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target)).split(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return {"__and__": "bitwise_and", "__or__": "bitwise_or"}.get(name, name)
