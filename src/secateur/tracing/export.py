"""Export a model with `torch.export`: an ATen graph whose inputs and operations have names and lines."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from secateur.core import CaptureError, InputError
from secateur.execution import duplicate, plain_tensors
from secateur.tracing.packed_sequences import Unpacked, check_not_packed
from secateur.tracing.unsupported import check_supported

__all__ = [
    "ExportedModel",
    "concrete",
    "copy_sharing_tensors",
    "export_model",
    "exporting_flag_set",
    "module_of",
    "shapes_in",
    "silenced",
    "source_line",
    "user_code_line",
    "without_fused_attention",
]


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported program with the model that it came from.

    Attributes:
        model: The user's model (a reference; it is not changed).
        graph_module: The exported graph.
        parameters: Graph input -> name of the parameter, buffer or plain tensor (the first of tied names).
        constants: Graph input -> the constant tensor that it holds; plain tensors are among them.  All
            other inputs are the user's.
    """

    model: nn.Module
    graph_module: GraphModule
    parameters: Mapping[str, str]
    constants: Mapping[str, Any]

    def user_inputs(self) -> list[Node]:
        """Return the graph's inputs that are the user's, in order."""
        inputs = (node for node in self.graph_module.graph.nodes if node.op == "placeholder")
        return [x for x in inputs if x.name not in self.parameters and x.name not in self.constants]


def copy_sharing_tensors(model: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy the module tree in evaluation mode; parameters and buffers are shared, not copied.

    Args:
        model: The model; it is not changed.
        tensors: id of a parameter or buffer -> the tensor to use instead of it in the copy.
    """
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    memo.update(tensors or {})
    copied = duplicate(model, memo).eval()
    for module in copied.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a cache in the outputs would freeze every head
    return copied


@contextlib.contextmanager
def without_fused_attention() -> Iterator[None]:
    """Switch off the fused path of nn.MultiheadAttention, which hides its weights, and torch's warnings."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence what torch and its exporters log and print; the raised error repeats what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def exporting_flag_set() -> Iterator[None]:
    """Make `torch.compiler.is_exporting()` true, so that code takes the same path as in the export."""
    before = getattr(torch.compiler, "_is_exporting_flag", None)
    if before is not None:
        torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        if before is not None:
            torch.compiler._is_exporting_flag = before


def export_model(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedModel:
    """Export the model for these inputs.

    Raises:
        CaptureError: If torch.export cannot export the model; the message has torch's reason and a hint.
        InputError: If the inputs hold no tensor, an empty one, or one on another device than the model.
    """
    check_supported(model)
    check_not_packed((*args, *kwargs.values()))
    _check_inputs(model, args, kwargs)
    with without_fused_attention(), silenced(), torch.enable_grad(), Unpacked():
        try:
            program = torch.export.export(copy_sharing_tensors(model), args, dict(kwargs), strict=False)
        except Exception as error:
            raise CaptureError(_explain(model, error)) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    first = first_names(model)
    lifted, plain = signature.inputs_to_lifted_tensor_constants, plain_tensors(model)
    constants = {k: program.constants[v] for k, v in lifted.items()}
    names |= {k: v for k, v in lifted.items() if v in plain}
    _drop_dead_attention(program.graph_module)
    return ExportedModel(
        model, program.graph_module, {k: first.get(v, v) for k, v in names.items()}, constants
    )


def _drop_dead_attention(module: GraphModule) -> None:
    """Remove unused head-averaged attention weights from the graph.

    Only these: their average would freeze every head, and SlimAttention computes them too.  Other unused
    results stay in the graph, because the shrunk model computes them as well and must not fail there.
    """
    for node in reversed(module.graph.nodes):
        attends = module_of(node)[1].endswith(("MultiheadAttention", "SlimAttention"))
        if node.op == "call_function" and not node.users and attends and not is_inplace(node):
            module.graph.erase_node(node)


def first_names(model: nn.Module) -> dict[str, str]:
    """Map every parameter and buffer name to the first name of the same tensor."""
    first: dict[int, str] = {}
    result = {}
    both = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in (pair for named in both for pair in named):
        result[name] = first.setdefault(id(tensor), name)
    return result


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    tensors = [t for t in torch.utils._pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    if not tensors:
        kinds = ", ".join(type(x).__name__ for x in (*args, *kwargs.values())) or "nothing"
        raise InputError(f"example_inputs hold no tensor; give what the model is called with; got {kinds}")
    devices = {p.device.type for p in model.parameters()}
    for t in tensors:
        if t.numel() == 0:
            raise InputError(f"example_inputs hold an empty tensor of shape {tuple(t.shape)}")
        if len(devices) == 1 and t.device.type not in devices:
            raise InputError(
                f"example_inputs are on {t.device} and the model is on {devices.pop()}: move one to the other"
            )


def _explain(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = " ".join(lines[:3] or [type(error).__name__]).rstrip(".")
    if any(word in str(error) for word in ("data-dependent", "DataDependent", ".item()")):
        hint = "the path depends on values of the data, which no graph can hold; inside='auto' prunes parts"
    elif "deepcopy" in str(error) or "pickle" in str(error):
        hint = "a copy of the model is exported: remove the attribute that copy.deepcopy(model) cannot copy"
    else:
        hint = "check that model(*example_inputs) runs"
    place = user_code_line(error)
    return (
        f"{model._get_name()} cannot be captured by torch.export{' at ' + place if place else ''}: "
        f"{type(error).__name__}: {reason}. Hint: {hint}; "
        "torch.export.export(model, example_inputs, strict=False) shows the whole message"
    )


INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def user_code_line(error: BaseException) -> str:
    """Return ``file:line: code`` of the innermost frame outside torch, Python's library and this package.

    If there is none, return that of the innermost frame in a module of torch; "" if the model did not run.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    users = [f for f in frames if not (f.filename.startswith(INSIDE) or _standard(f.filename))]
    layers = [f for f in frames if f.filename.startswith(str(Path(nn.__file__).parent))]
    if not (users or layers):
        return ""
    frame = (users or layers)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


def _standard(file: str) -> bool:
    return file.startswith(sysconfig.get_path("stdlib")) and "-packages" not in file


def is_inplace(node: Node) -> bool:
    """Return whether a node changes its first operand."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    info = schema.arguments[0].alias_info
    return bool(info and info.is_write)


def module_of(node: Node) -> tuple[str, str]:
    """Return the qualified name and the class of the module that called a node."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, cls = list(stack.values())[-1][:2]
    name = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
    return re.sub(r"@\d+", "", path.removeprefix("L['self'].").removeprefix("L__self__.")), name


def shapes_in(value: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors in a node's value, with a number for every length; see `concrete`."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [tuple(concrete(n) for n in v.shape) for v in leaves if isinstance(v, Tensor)]


def concrete(value: Any) -> Any:
    """Return a number for a symbolic integer, and any other value as it is.

    Lengths that depend on the data (of `nonzero`, of a mask) are symbols in the graph.  Nothing dies on such
    an axis, so any number serves, as long as the symbols get numbers unlike each other and unlike
    usual lengths.
    """
    if not isinstance(value, torch.SymInt):
        return value
    expression = value.node.expr
    numbers = {
        s: LENGTHS[int(re.sub(r"\D", "", s.name) or 0) % len(LENGTHS)] for s in expression.free_symbols
    }
    return int(expression.subs(numbers))


LENGTHS = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069)
FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_line(node: Node) -> str:
    """Return ``file:line`` of the innermost frame outside torch, or of the innermost frame."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    inside = str(Path(torch.__file__).parent)
    users = [frame for frame in frames if not frame[0].startswith(inside)]
    file, line = (users or frames)[-1]
    return f"{file}:{line}"
