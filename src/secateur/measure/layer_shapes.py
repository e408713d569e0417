"""Layers that can be timed alone: found in one forward pass, run at any width."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

from secateur.core import Layer, PruningGraph
from secateur.execution import call, evaluating

__all__ = ["LayerShape", "TimedLayer", "find_timed_layers"]

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class LayerShape:
    """One layer at one width, as a value: what is timed, and the key of the stored time.

    Attributes:
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"`` or ``"recurrent"``.
        inputs: Length of the weight's axis that reads inputs.
        outputs: Length of the weight's axis that produces outputs.
        sizes: Lengths of the input's other axes: [rows]; [batch, spatial ...]; [time, batch].
        options: Name and value of stride, padding, dilation, groups, kernel; or of a recurrent module's mode.
    """

    kind: str
    inputs: int
    outputs: int
    sizes: Sizes
    options: tuple[tuple[str, Any], ...] = ()

    def key(self) -> str:
        """Return the shape as text."""
        options = "".join(f" {name} {value}" for name, value in self.options)
        return f"{self.kind} {self.inputs} -> {self.outputs} on {list(self.sizes)}{options}"

    def runner(self, draw: Callable[..., Tensor]) -> Callable[[], Any]:
        """Return a function that runs the layer once.

        Args:
            draw: Sizes -> a tensor of these sizes, of the type and on the device to time.
        """
        options = dict(self.options)
        if self.kind == "linear":
            x, weight, bias = (
                draw(*self.sizes, self.inputs),
                draw(self.outputs, self.inputs),
                draw(self.outputs),
            )
            return lambda: F.linear(x, weight, bias)
        if self.kind == "recurrent":
            return self._recurrent(draw, options["mode"])
        kernel, groups = options.pop("kernel"), options["groups"]
        batch, *spatial = self.sizes
        transposed = self.kind == "conv_transpose"
        channels = self.inputs if transposed else self.inputs * groups
        x = draw(batch, channels, *spatial)
        first = (self.inputs, self.outputs) if transposed else (self.outputs, self.inputs)
        weight = draw(*first, *kernel)
        operation = getattr(F, f"{self.kind}{len(kernel)}d")
        return lambda: operation(x, weight, **options)

    def _recurrent(self, draw: Callable[..., Tensor], mode: str) -> Callable[[], Any]:
        gates = {"LSTM": 4, "GRU": 3}.get(mode, 1)
        x = draw(*self.sizes, self.inputs)
        kind = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(mode, nn.RNN)
        module = kind(self.inputs, self.outputs // gates).to(x.device, x.dtype).eval()
        return lambda: module(x)


@dataclass(frozen=True)
class TimedLayer:
    """A layer of a network, and how to run it at other widths.

    Attributes:
        weight: Name of its weight.
        axes: Axes of the weight that read inputs and that produce outputs.
        kind: Kind of its `LayerShape`; ``""`` if the layer does not run alone.
        calls: Sizes of the other axes of its inputs -> how often it is called so in one pass.
        options: Options of its `LayerShape`.
        positions: Uses of each weight in one pass.
        narrows: Whether the lengths of the two axes change with the network.
        full: Lengths of the two axes.
    """

    weight: str
    axes: tuple[int, int]
    kind: str
    calls: Mapping[Sizes, int]
    options: tuple[tuple[str, Any], ...]
    positions: float
    narrows: tuple[bool, bool]
    full: tuple[int, int]
    extent: int = field(default=1)

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one pass."""
        return self.positions * prod(self.full) * self.extent

    def shapes(self, inputs: int, outputs: int) -> dict[LayerShape, int]:
        """Return what to time at these lengths, and how often each counts."""
        options = dict(self.options)
        if "groups" in options and options["groups"] > 1:
            # Either every group of a convolution gets narrower, or whole groups go (depthwise).
            at = 0 if self.kind == "conv_transpose" else 1
            if not self.narrows[1 - at]:
                now = inputs if at == 0 else outputs
                options["groups"] = max(1, options["groups"] * now // self.full[at])
        return {
            LayerShape(self.kind, inputs, outputs, sizes, tuple(options.items())): count
            for sizes, count in self.calls.items()
        }


def find_timed_layers(
    model: nn.Module, graph: PruningGraph, arguments: tuple[Any, Any], batch: int
) -> list[TimedLayer]:
    """Return the layers that multiply by a weight, each with the sizes of its inputs in one forward pass.

    Args:
        model: The traced model.
        graph: Its graph.
        arguments: Positional and keyword arguments of the pass.
        batch: Examples in it.
    """
    owned = {(slot.tensor, slot.axis) for group in graph.groups for slot in group.slots}
    with _recorded(model) as calls, evaluating(model):
        call(model, *arguments)
    layers: dict[tuple[str, int, int], TimedLayer] = {}
    for layer in graph.layers:
        if layer.in_axis is None or layer.out_axis is None or layer.reads == "state":
            continue
        axes = (layer.in_axis, layer.out_axis)
        shape = graph.shapes[layer.weight]
        full = (shape[axes[0]], shape[axes[1]])
        kind, sizes, options = _describe(model, layer, calls, batch)
        layers[layer.weight, *axes] = TimedLayer(
            layer.weight,
            axes,
            kind,
            sizes,
            options,
            layer.positions * batch,
            ((layer.weight, axes[0]) in owned, (layer.weight, axes[1]) in owned),
            full,
            prod(shape) // prod(full),
        )
    return list(layers.values())


def _describe(
    model: nn.Module, layer: Layer, calls: Mapping[nn.Module, Counter[Sizes]], batch: int
) -> tuple[str, Mapping[Sizes, int], tuple[tuple[str, Any], ...]]:
    """Return kind, sizes of the inputs, and options of a layer's shape; the kind "" if it has none."""
    module = model.get_submodule(layer.name)
    seen = calls.get(module, Counter())
    if isinstance(module, _ConvNd) and seen:
        names = ("stride", "dilation", "groups")
        options = {name: _hashable(getattr(module, name)) for name in names}
        # "same" and the like are resolved by the convolution itself; a transposed one has numbers only.
        options["padding"] = _hashable(module.padding)
        if isinstance(module, _ConvTransposeNd):
            options["output_padding"] = _hashable(module.output_padding)
        kind = "conv_transpose" if isinstance(module, _ConvTransposeNd) else "conv"
        return kind, seen, (("kernel", tuple(module.kernel_size)), *options.items())
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and seen:
        mode = getattr(module, "mode", type(module).__name__.removesuffix("Cell"))
        return "recurrent", seen, (("mode", mode),)
    if layer.kind == "linear":
        return "linear", seen or {(max(1, round(layer.positions * batch)),): 1}, ()
    return "", {}, ()


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Mapping[nn.Module, Counter[Sizes]]]:
    """Record the sizes of the inputs of each module that can be timed, without the axis of its width."""
    calls: dict[nn.Module, Counter[Sizes]] = defaultdict(Counter)

    def record(module: nn.Module, args: Any) -> None:
        sizes = _input_sizes(module, args[0]) if args else None
        if sizes is not None:
            calls[module][sizes] += 1

    kinds = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase)
    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _input_sizes(module: nn.Module, x: Any) -> Sizes | None:
    if isinstance(x, PackedSequence):
        return (len(x.batch_sizes), int(x.batch_sizes[0]))
    if not isinstance(x, Tensor):
        return None
    if isinstance(module, nn.Linear):
        return (x.numel() // x.shape[-1],)
    if isinstance(module, nn.RNNCellBase):
        return (1, x.numel() // x.shape[-1])
    if isinstance(module, nn.RNNBase):
        time, batch = (x.shape[0], 1) if x.dim() == 2 else (x.shape[0], x.shape[1])
        return (batch, time) if module.batch_first and x.dim() == 3 else (time, batch)
    if isinstance(module, _ConvNd):
        spatial = len(module.kernel_size)
        return (prod(x.shape[: -spatial - 1]), *x.shape[-spatial:])
    return None
