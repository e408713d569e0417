"""Read a model's affine-ReLU chain from its exported graph.

A chain is a sequence of affine maps y = A x + b with ReLUs and max pooling between them, on the flattened
values of one example: what the mixed-integer programs of `structures.relu_mip` work on.  Linear layers,
convolutions, BatchNorm in evaluation mode and average pooling are affine, each as a sparse matrix.

The graph of `torch.export` shows functional calls (`F.relu`, `x.view`) as well as modules.  Everything is
checked before a matrix is built.  An operation that is not affine, ReLU or pooling, a branch, a BatchNorm in
training mode and a chain too large for memory are errors that name the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.fx import Graph, Node

from secateur.core import InputError
from secateur.structures.relu_mip import (
    Affine,
    Chain,
    MaxPool,
    ReLU,
    average_matrix,
    conv_matrix,
    pool_windows,
)
from secateur.tracing.export import ExportedModel, export_model, first_names, module_of, source_line

__all__ = ["affine_relu_chain", "chain_steps", "flatten_images"]

Shape = tuple[int, ...]
Pair = tuple[int, int]

_IDENTITY = {
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "to",
    "identity",
    "lift_fresh_copy",
}
_RESHAPE = {"view", "reshape", "flatten", "unsqueeze", "squeeze", "unflatten"}
_LEAKY = {"leaky_relu", "leaky_relu_", "prelu"}
_RELU = {"relu", "relu_"} | _LEAKY
_AXES = {"linear": 1, "conv2d": 3, "max_pool2d": 3, "avg_pool2d": 3, "adaptive_avg_pool2d": 3}
_SILENT = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size"}


@dataclass(frozen=True, eq=False)
class _Operation:
    """One call in the graph.

    Attributes:
        name: The operation, without its overload.
        args: Its arguments after the first; tensors as float64 arrays.
        weight: Name of its weight if the first of `args` is one, else "".
        before: Shape of the input of one example.
        after: Shape of the output of one example.
        where: The module, for messages.
    """

    name: str
    args: tuple[Any, ...]
    weight: str
    before: Shape
    after: Shape
    where: str

    def arg(self, number: int, default: Any) -> Any:
        """Return an argument after the first, or its default."""
        return self.args[number] if len(self.args) > number else default


def flatten_images(x: Tensor) -> np.ndarray:
    """Return images as float64 rows [images, values], the order in which a chain reads them."""
    return x.detach().reshape(len(x), -1).to("cpu", torch.float64).numpy()


def affine_relu_chain(
    model: nn.Module,
    example_input: Tensor,
    *,
    unscored: Sequence[str] = (),
    memory: float = 4e9,
) -> Chain:
    """Return the affine-ReLU chain that a sequential model computes in evaluation mode.

    Supported are Linear, Conv2d, BatchNorm, ReLU, LeakyReLU, PReLU, max and average pooling, flattening and
    dropout (which does nothing in evaluation mode), as modules or as functions.  A ReLU is named after the
    weight tensor that produces its units.  A final log-softmax is omitted: scores do not change.

    Args:
        model: The module; it is not changed.
        example_input: Inputs [batch, ...] of the model.
        unscored: Weight names whose ReLUs get no scores.
        memory: Largest number of bytes of the matrices.

    Raises:
        secateur.core.CaptureError: If the model cannot be exported.
        InputError: If the model has an operation that a chain cannot express, a BatchNorm in training mode or
            NaN weights, or if the matrices would exceed `memory` (the message has the estimate).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
        >>> chain = affine_relu_chain(model, torch.zeros(1, 1, 4, 4))
        >>> chain.layers, chain.nonzeros
        ({'0.weight': 2}, 96)
    """
    steps = chain_steps(model, example_input, unscored=unscored, memory=memory)
    try:
        return Chain(tuple(steps), math.prod(example_input.shape[1:])).fuse()
    except ValueError as error:
        raise InputError(f"{type(model).__name__} is not an affine-ReLU chain: {error}") from error


def chain_steps(
    model: nn.Module, example_input: Tensor, *, unscored: Sequence[str] = (), memory: float = 4e9
) -> list[Affine | ReLU | MaxPool]:
    """Return the steps of a model's chain, the last of them affine; see `affine_relu_chain`.

    A ReLU before any weight is named after the input and is not scored.
    """
    _check_mode(model)
    operations = _operations(export_model(model, (example_input,), {}))
    _check_memory(operations, memory)
    steps: list[Affine | ReLU | MaxPool] = []
    producer, channels, unread = "", 0, -1
    for op in operations:
        if op.name in ("linear", "conv2d"):
            producer, channels, unread = op.weight, len(op.args[0]), -1
        if op.name in _RELU:
            unread = len(steps)
            steps.append(_relu(op, producer, channels, unscored))
        elif op.name in _BUILD:
            steps.append(_BUILD[op.name](op))
        relu = steps[unread] if unread >= 0 else None
        if op.name == "batch_norm" and isinstance(relu, ReLU):
            steps[unread] = replace(relu, normalised=True)
    if not steps or not isinstance(steps[-1], Affine):
        width = math.prod(operations[-1].after) if operations else math.prod(example_input.shape[1:])
        steps.append(Affine(sparse.csr_array(sparse.eye_array(width, format="csr")), np.zeros(width)))
    return steps


def _check_mode(model: nn.Module) -> None:
    """Raise `InputError` if a BatchNorm would use the statistics of the batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or not module.track_running_stats
        ):
            raise InputError(
                f"{name or 'the model'} is a BatchNorm that uses the statistics of the batch, which are not "
                "affine: call model.eval() first, with running statistics tracked"
            )


def _operations(exported: ExportedModel) -> list[_Operation]:
    """Return the calls of the graph in order; raise `InputError` if they are not a chain."""
    names = first_names(exported.model)
    model = exported.model
    both = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    tensors = {names[name]: tensor for named in both for name, tensor in named}
    graph = exported.graph_module.graph
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.name not in exported.parameters]
    current: Node | None = inputs[0] if inputs else None
    operations, refused = [], []
    needed = _needed(graph)
    for node in graph.nodes:
        called = node.op == "call_function" and _name(node) not in _SILENT
        if node in needed and (node.op == "get_attr" or called):
            reason = _refusal(node, current, exported)
            if reason:
                refused.append(reason)
            else:
                operations.append(_operation(node, exported, tensors))
            current = node
    if refused:
        listed = "; ".join(dict.fromkeys(refused[:5]))
        raise InputError(
            f"{type(model).__name__} is not an affine-ReLU chain: {listed}. Supported are Linear, Conv2d, "
            "BatchNorm, ReLU, LeakyReLU, PReLU, max and average pooling, flattening and dropout, one after "
            "the other"
        )
    return [op for op in operations if op.name != "log_softmax"]


def _needed(graph: Graph) -> set[Node]:
    """Return the nodes that the output depends on."""
    needed: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed |= {node, *node.all_input_nodes}
    return needed


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _refusal(node: Node, current: Node | None, exported: ExportedModel) -> str:
    """Return why a call does not fit a chain; "" if it does."""
    name = _name(node)
    where = f"{name} in {module_of(node)[0] or 'the model'}" + (
        f" ({source_line(node)})" if source_line(node) else ""
    )
    supported = _IDENTITY | _RESHAPE | _RELU | set(_BUILD) | {"log_softmax"}
    if name not in supported or node.op != "call_function":
        return f"unsupported operation {where}"
    others = [n for n in node.all_input_nodes if n is not current]
    loose = [n for n in others if n.name not in exported.parameters]
    if current not in node.all_input_nodes or node.args[0] is not current:
        return f"a branch at {where}: its input is not what came just before"
    if loose:
        return f"{where} uses {loose[0].name}, which is not a parameter, as an operand"
    if name == "log_softmax" and set(node.users) - {n for n in node.users if n.op == "output"}:
        return f"{where} before the end"
    rank, needed = len(_shape(node.args[0])), _AXES.get(name)
    if needed is not None and rank != needed:
        return f"{where} on inputs with {rank} axes besides the batch; it must be {needed}"
    return _odd_arguments(node, name, where)


def _odd_arguments(node: Node, name: str, where: str) -> str:
    """Return which argument of a known operation does not fit a chain; "" if all do."""
    if name == "batch_norm" and (node.args[5] or node.args[3] is None):
        return f"{where} uses the statistics of the batch"
    axes: Any = node.args[1] if name == "mean" else ()
    if name == "mean" and sorted(d % 4 for d in axes) != [2, 3]:
        return f"{where} over other axes than height and width"
    if name in _RESHAPE and _batch(node) != _batch(node.args[0]):
        return f"{where} changes the batch axis"
    return ""


def _batch(node: Any) -> int:
    return int(node.meta["val"].shape[0])


def _shape(node: Any) -> Shape:
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def _operation(node: Node, exported: ExportedModel, tensors: Mapping[str, Tensor]) -> _Operation:
    """Return a call with its tensors in float64."""

    def fill(arg: Any) -> Any:
        if not isinstance(arg, Node):
            return arg
        return tensors[exported.parameters[arg.name]].detach().to("cpu", torch.float64).numpy()

    first = node.args[1] if len(node.args) > 1 else None
    weight = exported.parameters.get(first.name, "") if isinstance(first, Node) else ""
    args = tuple(fill(arg) for arg in node.args[1:])
    where = module_of(node)[0] or _name(node)
    return _Operation(_name(node), args, weight, _shape(node.args[0]), _shape(node), where)


def _check_memory(operations: Sequence[_Operation], cap: float) -> None:
    """Raise `InputError` if the matrices' non-zeros, 36 bytes each while they are built, exceed the cap."""
    total = 0.0
    for op in operations:
        if op.name == "linear":
            total += op.args[0].size
        elif op.name == "conv2d":
            total += op.args[0].size * math.prod(op.after[1:])
    if 36 * total > cap:
        raise InputError(
            f"the matrices would hold {total:.3g} non-zeros and need about {36 * total / 1e9:.1f} GB, "
            f"more than memory={cap / 1e9:.1f} GB: "
            "use one program for each layer, with auxiliary networks (attach_auxiliaries)"
        )


def _relu(op: _Operation, producer: str, channels: int, unscored: Sequence[str]) -> ReLU:
    """Return a ReLU whose units are the output channels of the layer that produces them."""
    # Flattened maps are channel by channel, so the values of one channel are adjacent.
    width = math.prod(op.before)
    if not producer:
        return ReLU(f"input of {op.where}", np.arange(width), False, slopes=_slopes(op))
    units = np.repeat(np.arange(channels), width // channels)
    return ReLU(producer, units, producer not in unscored, slopes=_slopes(op))


def _slopes(op: _Operation) -> np.ndarray | None:
    """Return the slope for negative inputs at every coordinate; PReLU has one, or one a channel."""
    if op.name not in _LEAKY:
        return None
    slopes = np.atleast_1d(np.asarray(op.arg(0, 0.01), float))
    return np.repeat(slopes, math.prod(op.before) // len(slopes))


def _linear(op: _Operation) -> Affine:
    bias = op.arg(1, None)
    return Affine(sparse.csr_array(op.args[0]), np.zeros(len(op.args[0])) if bias is None else bias)


def _pair(value: Any) -> Pair:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def _conv(op: _Operation) -> Affine:
    weight, bias = op.args[0], op.arg(1, None)
    stride, dilation = _pair(op.arg(2, 1)), _pair(op.arg(4, 1))
    padding = op.arg(3, 0)
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    padding = (0, 0) if padding == "valid" else _pair(padding)
    shape = (op.before[0], op.before[1], op.before[2])
    matrix = conv_matrix(
        weight, shape, stride, padding, dilation, int(op.arg(5, 1)), size=_pair(op.after[1:])
    )[0]
    shift = np.zeros(len(weight)) if bias is None else bias
    return Affine(matrix, np.repeat(shift, math.prod(op.after[1:])))


def _batch_norm(op: _Operation) -> Affine:
    # weight (x - mean) / sqrt(variance + eps) + bias = scale x + shift
    weight, bias, mean, variance = op.args[:4]
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + op.args[6])
    shift = (0.0 if bias is None else bias) - mean * scale
    each = math.prod(op.before[1:])
    matrix = sparse.csr_array(sparse.diags_array(np.repeat(scale, each), format="csr"))
    return Affine(matrix, np.repeat(shift, each))


def _max_pool(op: _Operation) -> MaxPool:
    kernel = _pair(op.args[0])
    stride = _pair(op.arg(1, None) or kernel)
    shape = (op.before[0], op.before[1], op.before[2])
    size = _pair(op.after[1:])
    return MaxPool(pool_windows(shape, kernel, stride, _pair(op.arg(2, 0)), _pair(op.arg(3, 1)), size)[0])


def _average_pool(op: _Operation) -> Affine:
    kernel = _pair(op.args[0])
    stride, padding, size = _pair(op.arg(1, None) or kernel), _pair(op.arg(2, 0)), _pair(op.after[1:])
    shape = (op.before[0], op.before[1], op.before[2])
    windows = pool_windows(shape, kernel, stride, padding, (1, 1), size)[0]
    divisor = op.arg(5, None)
    if divisor is not None:
        counts = np.full(len(windows), float(divisor))
    elif op.arg(4, True):
        # How many positions of each window lie inside the padded image: torch divides by these.
        axes = [
            np.minimum(s * np.arange(n) - p + k, extent + p) - (s * np.arange(n) - p)
            for n, extent, k, s, p in zip(size, shape[1:], kernel, stride, padding, strict=True)
        ]
        counts = np.tile(np.outer(*axes).ravel(), shape[0]).astype(float)
    else:
        counts = (windows >= 0).sum(1).astype(float)
    return Affine(average_matrix(windows, counts, math.prod(shape)), np.zeros(len(windows)))


def _adaptive_average(op: _Operation) -> Affine:
    C, H, W = op.before
    h, w = (1, 1) if op.name == "mean" else _pair(op.after[1:])
    rows = [np.arange(i * H // h, -(-(i + 1) * H // h)) for i in range(h)]
    cols = [np.arange(j * W // w, -(-(j + 1) * W // w)) for j in range(w)]
    # Windows differ in size: shorter ones are filled up with -1, which stands for no value.
    cells = [np.add.outer(r * W, c).ravel() for r in rows for c in cols]
    longest = max(map(len, cells))
    cell = np.stack([np.pad(c, (0, longest - len(c)), constant_values=-1) for c in cells])
    windows = np.concatenate([np.where(cell < 0, -1, cell + c * H * W) for c in range(C)])
    counts = (windows >= 0).sum(1).astype(float)
    return Affine(average_matrix(windows, counts, C * H * W), np.zeros(len(windows)))


_BUILD: Mapping[str, Callable[[_Operation], Affine | MaxPool]] = {
    "linear": _linear,
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_average,
    "mean": _adaptive_average,
}
