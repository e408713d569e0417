"""Collect the statistics that a method asks for, in one pass over the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import own_tokens, predicts_next_token
from secateur.core import InputError, Layer, Moments, PruningGraph, Statistics, unknown
from secateur.execution import (
    Together,
    all_finite,
    check_seed,
    explain_errors,
    plain_tensors,
    read_batches,
    tensors_by_name,
    tensors_of,
    to_model,
    untouched,
)
from secateur.processes import current_processes, sum_over_processes, undivided
from secateur.statistics.activation_sample import ActivationSample
from secateur.statistics.attention_logits import AttentionLogits
from secateur.statistics.gradients import SynapticFlow, gradients
from secateur.statistics.loss import Loss, default_loss, draw_projections, projection_loss
from secateur.statistics.moments import InputMoments
from secateur.statistics.token_gates import TokenGates, gates_keys, takes_token_gates
from secateur.statistics.unit_gates import Gates
from secateur.statistics.weight_inputs import InputHooks, WeightInput

__all__ = ["NEEDS", "checked_batches", "collect_statistics", "consumer_layers", "observe_inputs"]

NEEDS = ("activations", "chain", "flow", "gradients", "gram", "images", "moments", "programs", "taylor")
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
_WITH_DATA = {"activations", "gradients", "gram", "images", "moments", "programs", "taylor"}
_DERIVATIVES = {"gradients", "taylor"}
_UNDIVIDED = {"activations", "images", "programs"}  # not sums over batches
_LABELLED = {"images", "programs"}  # inputs and their classes


def collect_statistics(
    model: nn.Module,
    graph: PruningGraph,
    batches: Iterable[Any] | None,
    needs: Iterable[str],
    seed: int = 0,
    *,
    loss: Loss | None = None,
    max_patch: int = 1152,
    grams: Iterable[str] | None = None,
    roots: bool = False,
) -> Statistics:
    """Run a model on data and collect the statistics that a method needs.

    The model runs in evaluation mode on its own device and is restored afterwards: modes, buffers,
    `requires_grad`, `.grad` and the random generators.  Activations are not kept, except for the
    sample that "activations" asks for.  Inside `split_over_processes` each process runs on a part of the
    batches, unless "activations", "images" or "programs" are asked for.

    Args:
        model: The model that was traced.
        graph: Its trace.
        batches: Iterable of batches; `secateur.batches` says what one may be.
        needs: What to collect: any of `NEEDS`.  The weights are always included.
        seed: Seed of the pass (a shuffling loader, sampling inside the model) and of the statistics.
        loss: (outputs, targets) -> one number, the mean over a batch's examples; by default the
            cross-entropy for class numbers, the mean squared error for floating targets, and a random
            projection of the outputs if there are no targets (`draw_projections`).
        max_patch: A convolution gets the Gram matrix of its patches up to this many features (channels
            times kernel positions), and above it that of its channels, shared by all positions.
        grams: Names of the weights whose inputs get a Gram matrix; by default the
            consumers of the groups.
        roots: Whether the rows themselves take the place of Gram matrices of more than twice as many features
            (`Moments.root`).

    Returns:
        Moments and Gram matrices in float64 by the weight that multiplies the input (the uses of a tied
        weight add up; a grouped convolution has the features of all its groups, in the order of the
        channels); gradients in float64, summed over the batches; Taylor scores by group; the synaptic
        flow as a function of masks.

    Raises:
        InputError: If a need is unknown, data or targets are missing, weights, inputs or activations hold
            NaN or infinities (the message names the layer), or the model or the loss rejects the data.

    Example:
        >>> from secateur.tracing.trace import trace
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> graph = trace(mlp, torch.ones(2, 4))
        >>> statistics = collect_statistics(mlp, graph, [(torch.ones(5, 4), None)], {"gram"})
        >>> statistics.moments["2.weight"].gram.shape
        torch.Size([8, 8])
    """
    wanted = _check_needs(needs, graph)
    check_seed(seed)
    _check_weights(model, graph)
    run = _Pass(model, graph, wanted, loss, seed)
    roots = roots and current_processes().count == 1  # a sum of matrices goes over all processes, rows do not
    moments = _input_moments(model, graph, wanted, max_patch, grams, roots)
    split = undivided() if wanted & _UNDIVIDED else nullcontext()
    with untouched(model, seed), split:
        processes = current_processes()
        for number, (where, args, kwargs, targets) in enumerate(checked_batches(batches, model, wanted)):
            if processes.owns(number):
                run(where, args, kwargs, targets, moments)
            else:
                run.skip(where, args, kwargs, targets)
        run.add_other_processes(moments)
        chain = _chain(model, graph) if "chain" in wanted else None
        programs = _programs(model, run.images, seed) if "programs" in wanted else None
    if run.taylor and not any(bool(scores.any()) for scores in run.taylor.values()):
        raise InputError("taylor: no unit changes the loss, so it cannot rank them")
    return Statistics(
        weights=tensors_of(model),
        moments=_finished_moments(graph, moments),
        logits={} if run.logits is None else run.logits.moments(),
        gradients=run.gradients,
        taylor=run.taylor,
        flow=SynapticFlow(model, graph) if "flow" in wanted else None,
        chain=chain,
        images=_concatenated(run.images) if wanted & _LABELLED else None,
        programs=programs,
        activations=run.sample.activations() if run.sample is not None else {},
        seed=seed,
    )


class _Pass:
    """Sums over the batches."""

    def __init__(
        self, model: nn.Module, graph: PruningGraph, wanted: set[str], loss: Loss | None, seed: int
    ) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.taylor: dict[str, Tensor] = {}
        self.images: list[tuple[Any, Any]] = []
        self.sample = ActivationSample(graph) if "activations" in wanted else None
        self.logits = None
        if wanted & {"gram", "moments"} and any(map(gates_keys, graph.groups)):
            self.logits = AttentionLogits(model, graph, "gram" in wanted)
        self._model, self._graph, self._wanted, self._loss = model, graph, wanted, loss
        self._generator = torch.Generator().manual_seed(seed)
        self._gates: Gates | TokenGates | None = None

    def __call__(
        self, where: str, args: Args, kwargs: Kwargs, targets: Any, moments: Mapping[str, InputMoments]
    ) -> None:
        """Add one batch."""
        with explain_errors(where, args, kwargs):
            inputs = self._watch(moments)
            if self._wanted & _DERIVATIVES:
                inputs = self._derive(where, args, kwargs, targets, inputs)
            if inputs is not None:
                with torch.no_grad(), inputs:
                    self._model(*args, **kwargs)
        if self._wanted & _LABELLED:
            self.images.append((args[0] if args else next(iter(kwargs.values())), targets))

    def skip(self, where: str, args: Args, kwargs: Kwargs, targets: Any) -> None:
        """Leave a batch to another process, but draw the random numbers that it takes."""
        if self._wanted & _DERIVATIVES:
            with explain_errors(where, args, kwargs):
                self._find_targets(args, kwargs, targets)

    def add_other_processes(self, moments: Mapping[str, InputMoments]) -> None:
        """Add the sums of all processes that share the batches."""
        if current_processes().count > 1:
            for x in moments.values():
                x.add_other_processes()
            if self.logits is not None:
                self.logits.add_other_processes()
            self.gradients = sum_over_processes(self.gradients)
            self.taylor = sum_over_processes(self.taylor)

    def _find_targets(self, args: Args, kwargs: Kwargs, targets: Any) -> tuple[Loss, Any]:
        """Return the loss and its targets.

        Without targets it is that of the next tokens, or else of a random projection of the outputs.
        """
        if targets is None and self._loss in (None, default_loss) and predicts_next_token(self._model):
            targets = own_tokens(self._model, args, kwargs)
        if self._loss is None:
            self._loss = projection_loss if targets is None else default_loss
        if self._loss is projection_loss:
            with torch.no_grad():
                targets = draw_projections(self._model(*args, **kwargs), self._generator)
        return self._loss, targets

    def _derive(
        self,
        where: str,
        args: Args,
        kwargs: Kwargs,
        targets: Any,
        inputs: AbstractContextManager[Any] | None,
    ) -> AbstractContextManager[Any] | None:
        """Add the derivatives of the loss; return the hooks unless they saw the inputs on the way."""
        loss, targets = self._find_targets(args, kwargs, targets)
        if "gradients" in self._wanted:
            gradient = gradients(self._model, args, kwargs, targets, loss)
            self._add(self.gradients, gradient, where, args, kwargs)
        if "taylor" in self._wanted:
            self._gates = self._gates or self._make_gates(targets, loss)
            if isinstance(self._gates, TokenGates) and self.sample is None:  # a sample takes whole batches
                scores, inputs = self._gates(args, kwargs, targets, inputs), None
            else:
                scores = self._gates(args, kwargs, targets)
            self._add(self.taylor, scores, where, args, kwargs)
        return inputs

    def _make_gates(self, targets: Any, loss: Loss) -> Gates | TokenGates:
        read = all(self._graph.consumers(group) or gates_keys(group) for group in self._graph.groups)
        tokens = isinstance(targets, Tensor) and targets.ndim == 2 and not targets.is_floating_point()
        kind = TokenGates if read and tokens and takes_token_gates(self._model) else Gates
        return kind(self._model, self._graph, loss)

    def _watch(self, moments: Mapping[str, InputMoments]) -> AbstractContextManager[Any] | None:
        """Return what watches attentions and inputs of weights while the model runs, if anything does."""
        watches: list[AbstractContextManager[Any]] = [] if self.logits is None else [self.logits]
        if moments or self.sample is not None:
            watches.append(observe_inputs(self._model, self._graph, self._recorder(moments)))
        return Together(watches) if watches else None

    def _recorder(self, moments: Mapping[str, InputMoments]) -> Callable[[WeightInput], None]:
        def record(entry: WeightInput) -> None:
            seen = entry._replace(x=entry.x.detach())
            if moments:
                moments[entry.key].add(seen)
            if self.sample is not None:
                self.sample.add(seen)

        return record

    def _add(
        self, total: dict[str, Tensor], terms: Mapping[str, Tensor], where: str, args: Args, kwargs: Kwargs
    ) -> None:
        for name, x in terms.items():
            if not all_finite(x):
                raise InputError(
                    f"the derivative of the loss by {name!r} is not finite in {where}"
                    f"{_culprit(self._model, self._graph, args, kwargs)}"
                )
            total[name] = x.double() if name not in total else total[name] + x.double()


def checked_batches(
    batches: Iterable[Any] | None, model: nn.Module, wanted: set[str]
) -> Iterator[tuple[str, Args, dict[str, Any], Any]]:
    """Yield each batch as (where, args, kwargs, targets), checked, on the model's device."""
    if not (data := wanted & _WITH_DATA):
        return
    what = ", ".join(sorted(data))
    if batches is None or isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise InputError(f"{what}: data is an iterable of (inputs, targets); got {type(batches).__name__}")
    for where, args, kwargs, targets in read_batches(batches, model):
        if targets is None and wanted & _LABELLED:
            raise InputError(
                f"{where} has no targets, but the method looks at inputs by their class (images): give "
                "batches (inputs, targets)"
            )
        yield where, args, kwargs, targets


def consumer_layers(graph: PruningGraph) -> dict[str, Layer]:
    """Return the layers with an input, by the key of that input."""
    return {graph.input_key(layer): layer for layer in graph.layers if layer.in_axis is not None}


def observe_inputs(
    model: nn.Module, graph: PruningGraph, record: Callable[[WeightInput], None]
) -> InputHooks:
    """Return a context in which `record` gets the input of each layer's weight, at every use."""
    tensors = tensors_by_name(model)
    axes = {key: (layer.weight, layer.in_axis) for key, layer in consumer_layers(graph).items()}
    return InputHooks(
        {k: (tensors[name], axis) for k, (name, axis) in axes.items() if axis is not None}, record
    )


def _input_moments(
    model: nn.Module,
    graph: PruningGraph,
    wanted: set[str],
    max_patch: int,
    grams: Iterable[str] | None,
    roots: bool,
) -> dict[str, InputMoments]:
    if not wanted & {"gram", "moments"}:
        return {}
    names = consumer_layers(graph)
    if grams is None:
        full = {graph.input_key(layer) for group in graph.groups for layer, _ in graph.consumers(group)}
    else:
        full = set(grams)
        for name in full - set(names):
            raise InputError(unknown("weight with an input", name, list(names)))
    return {name: InputMoments("gram" in wanted and name in full, max_patch, roots) for name in names}


def _finished_moments(graph: PruningGraph, inputs: Mapping[str, InputMoments]) -> dict[str, Moments]:
    finished = {}
    for name, accumulated in inputs.items():
        moments = accumulated.moments()
        if moments is not None:
            # Any NaN or infinity in the input is also in the sum of its squares.
            if not torch.isfinite(moments.second).all():
                raise InputError(f"NaN or infinite activations reach {_layer_name(graph, name)}")
            finished[name] = moments
    return finished


def _culprit(model: nn.Module, graph: PruningGraph, args: Args, kwargs: Kwargs) -> str:
    """Name the first layer that NaN or infinite activations reach."""
    reached: list[str] = []

    def check(entry: WeightInput) -> None:
        if not all_finite(entry.x):
            reached.append(entry.key)

    with torch.no_grad(), observe_inputs(model, graph, check):
        model(*args, **kwargs)
    return f": NaN or infinite activations reach {_layer_name(graph, reached[0])}" if reached else ""


def _layer_name(graph: PruningGraph, key: str) -> str:
    layer = consumer_layers(graph)[key]
    return f"layer {layer.name!r} (weight {layer.weight!r})"


def _chain(model: nn.Module, graph: PruningGraph) -> Any:
    inputs = (*graph.example_inputs, *graph.example_kwargs.values())
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise InputError(f"chain: a chain has one input tensor; the model was traced with {len(inputs)}")
    from secateur.statistics.relu_chain import affine_relu_chain  # scipy takes a while to import

    return affine_relu_chain(model, to_model(inputs[0], model))


def _concatenated(kept: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    for inputs, targets in kept:
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            raise InputError("images: inputs and targets must be one tensor each")
    return torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])


def _programs(
    model: nn.Module, kept: list[tuple[Any, Any]], seed: int
) -> Callable[[Tensor, Tensor], tuple[Any, ...]]:
    x, y = _concatenated(kept)
    if y.is_floating_point() or y.ndim != 1:
        raise InputError(
            "programs: the auxiliary networks learn classes: give one class number for each input"
        )
    from secateur.statistics.auxiliary_heads import attach_auxiliaries, parts  # as above

    with explain_errors("the batches", (x,), {}):
        return partial(parts, attach_auxiliaries(model, kept, seed=seed))


def _check_needs(needs: Iterable[str], graph: PruningGraph) -> set[str]:
    wanted = {needs} if isinstance(needs, str) else set(needs)
    for need in wanted - set(NEEDS):
        raise InputError(unknown("statistic", str(need), NEEDS))
    if graph.inside and wanted & {"chain", "programs"}:
        raise InputError(
            f"chain: the integer program needs the whole network, from its input to its output; of this one "
            f"only {', '.join(graph.inside)} can be exported. Use another method, such as 'matroid'"
        )
    return wanted


def _check_weights(model: nn.Module, graph: PruningGraph) -> None:
    tensors = {**plain_tensors(model), **tensors_of(model)}
    for name, shape in graph.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
            here = tuple(tensors[name].shape) if name in tensors else "missing"
            raise InputError(
                f"the graph was traced from another model: {name!r} has shape {shape} there and {here} here"
            )
    for name, _ in model.named_parameters():
        if tensors[name].is_meta:
            raise InputError(f"{name!r} is on the meta device and has no values: load weights first")
        if not all_finite(tensors[name]):
            raise InputError(f"NaN or infinite values among the weights of {name!r}")
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            raise InputError(f"NaN in the buffer {name!r}")
