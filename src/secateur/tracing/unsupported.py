"""Detect modules that Secateur neither exports nor prunes (compiled, scripted, quantised, DataParallel)."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from secateur.core import CaptureError

__all__ = ["check_supported"]


def check_supported(model: nn.Module) -> None:
    """Raise `CaptureError` if a model is wrapped, compiled or quantised; the message says what to pass."""
    for name, module in model.named_modules():
        if remedy := _remedy(module):
            where = f"its module {name!r}" if name else "it"
            raise CaptureError(f"{type(model).__name__} cannot be pruned: {where} {remedy}")


def _remedy(module: nn.Module) -> str | None:
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        return f"is wrapped in {type(module).__name__}; pass its .module, and wrap the pruned model"
    if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
        return "is compiled; prune it before torch.compile (model._orig_mod), and compile the pruned model"
    if isinstance(module, ScriptModule):
        return "is TorchScript; prune the Python module that it was made from, and script the pruned model"
    if isinstance(module, GraphModule) and "eval" in vars(module):
        return "is an exported program; prune the module that it was exported from"
    if "quantized" in type(module).__module__.split("."):
        return f"is a quantised {type(module).__name__}; prune first, and quantise the pruned model"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "has no sizes yet; call the model once on a batch"
    return None
