"""One walk over a network: all batches stop together at each weight, in the order of execution.

A repair solves a layer and goes on with what the solved layer gives.  So the forward passes of all batches
must stand still in front of the same weight, in the original and in the pruned network.  Each pass runs in
its own greenlet, on the model's own code, and stops where `InputHooks` reports an input; the walk lets the
passes go on, one after the other.  A walk costs one forward pass of each network, however deep it is.  It
keeps what the paused passes keep: the tensors that are alive at this point of the model.

Batches may differ in length.  A weight that one batch does not use (an expert) waits for those that do.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.core import InputError
from secateur.execution import explain_errors
from secateur.outputs import floating_outputs
from secateur.repair.spill import Spill
from secateur.statistics.weight_inputs import InputHooks, WeightInput

__all__ = ["Batch", "Cut", "Observed", "Outline", "Pair", "outline", "sweep", "version_of"]

Observed = Mapping[str, tuple[Tensor, int]]


class Batch(NamedTuple):
    """What a model is called with, and how messages name it."""

    where: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Pair(NamedTuple):
    """The inputs of one weight in both networks, for one batch."""

    batch: int
    x: WeightInput
    z: WeightInput


@dataclass(frozen=True, eq=False)
class Cut:
    """Where passes have stopped.  To look at the tensors, iterate over the cut.

    Attributes:
        key: Key of the weight that all of them are about to use.
        pairs: One for each batch that has come here; tensors may be on disk, only their shapes are here.
            Empty as soon as the walk goes on: it would keep the inputs of all batches.
        spill: Where the tensors are.
        once: Whether the passes use the weight once; else this is one of several calls, of one batch.
    """

    key: str
    pairs: list[Pair]
    spill: Spill
    once: bool = True

    def __iter__(self) -> Iterator[Pair]:
        """Yield each pair with its tensors in memory."""
        for pair in self.pairs:
            with self.spill.resident(pair.batch, changes=False):
                yield pair


@dataclass(frozen=True, eq=False)
class Outline:
    """How a forward pass uses the weights.

    Attributes:
        calls: Key of a weight -> how often it is used, in the order of the first use.
        follows: Key of a weight -> key of the weight that reads its result as it is.
        written: Names of buffers that a forward pass writes to.
    """

    calls: Mapping[str, int]
    follows: Mapping[str, str]
    written: frozenset[str] = frozenset()


class _Outliner(InputHooks):
    """Count the uses of the weights, and see which one reads the result of the one before."""

    def __init__(self, observed: Observed) -> None:
        super().__init__(observed, self._count)
        self.calls: Counter[str] = Counter()
        self.follows: dict[str, str] = {}
        self._key = ""
        self._before: tuple[str, Any, int] = ("", None, 0)

    def _count(self, entry: WeightInput) -> None:
        key, result, version = self._before
        if entry.x is result and version_of(entry.x) == version:  # and nobody wrote into it
            self.follows[key] = entry.key
        self.calls[entry.key] += 1
        self._key = entry.key

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._key = ""
        result = super().__torch_function__(func, types, args, kwargs)
        if self._key:
            self._before = (self._key, result, version_of(result))
        return result


@torch.no_grad()
def outline(model: nn.Module, observed: Observed, batch: Batch) -> Outline:
    """Run a model on a batch, twice, and return how it uses the weights.

    Raises:
        InputError: If the second run gives other outputs: no repair can compare such a model with a copy.
    """
    hooks = _Outliner(observed)
    versions = {name: version_of(buffer) for name, buffer in model.named_buffers()}
    with explain_errors(*batch):
        with hooks:
            first = floating_outputs(model(*batch.args, **batch.kwargs))
        first = [x.clone() for x in first]  # an output may be a buffer that the second run writes to
        second = floating_outputs(model(*batch.args, **batch.kwargs))
    if len(first) != len(second) or not all(map(_equal, first, second)):
        raise InputError(
            f"{type(model).__name__} gives other outputs on the second call with the same inputs "
            f"({batch.where}), in evaluation mode: a repair cannot compare it with its pruned copy. Make "
            "the forward pass deterministic, or pass repair=None"
        )
    written = (name for name, buffer in model.named_buffers() if version_of(buffer) != versions.get(name))
    return Outline(dict(hooks.calls), hooks.follows, frozenset(written))


def version_of(value: Any) -> int:
    """Return how often a tensor was written into; 0 where torch does not count that."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two outputs are equal up to the noise of parallel sums."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()), equal_nan=True)


class _Pass:
    """A forward pass that stops at every observed weight.

    The pass has its own modules, because models may store values in their attributes.  They share the
    tensors, except buffers that the pass writes to.
    """

    def __init__(
        self,
        model: nn.Module,
        observed: Observed,
        batch: Batch,
        written: Collection[str],
        track: Callable[[Any, Any], None],
    ) -> None:
        home, settings = getcurrent(), _torch_settings()
        self.stop: WeightInput | None = None

        def pause(entry: WeightInput) -> None:
            # All passes share torch's settings: each must leave them as they were at a stop.
            changed = [name for name, value in _torch_settings().items() if value != settings[name]]
            if changed:
                raise InputError(
                    f"the model calls a layer inside a context that changes torch's {changed[0]}, "
                    "which a refit cannot walk through: use repair='fold'"
                )
            home.switch(entry)

        def run(_: None) -> None:
            with _Watched(observed, pause, track), explain_errors(*batch):
                _share_tensors(model, written)(*batch.args, **batch.kwargs)

        self._greenlet = greenlet(run)

    def advance(self) -> None:
        """Go on to the next weight; at the end of the pass, `stop` is None."""
        self.stop = None  # the pass lets go of the input that it stopped at as soon as it can
        self.stop = self._greenlet.switch(None)

    def close(self) -> None:
        """End the pass here."""
        if not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)


def _torch_settings() -> dict[str, Any]:
    """Return what a context in a model can change for all passes, by name."""
    return {
        "function modes": torch._C._len_torch_function_stack(),
        "autocast": [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
        ],
        "gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "function transforms (such as vmap)": torch._C._functorch.maybe_current_level(),
        "default dtype": torch.get_default_dtype(),
    }


class _Watched(InputHooks):
    """Report what every operation makes, besides the inputs of the weights."""

    def __init__(
        self,
        observed: Observed,
        record: Callable[[WeightInput], None],
        track: Callable[[Any, Any], None],
    ) -> None:
        super().__init__(observed, record)
        self._track = track

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        self._track((args, kwargs), result)
        return result


def _share_tensors(model: nn.Module, written: Collection[str]) -> nn.Module:
    """Copy the tree of modules and the named buffers; the other tensors stay the same objects."""
    values = (x for module in model.modules() for x in tree_leaves(list(vars(module).values())))
    memo: dict[int, Any] = {id(x): x for x in values if isinstance(x, Tensor)}
    memo |= {id(x): x.clone() for name, x in model.named_buffers() if name in written}
    return copy.deepcopy(model, memo)


class _Walk:
    """The passes of all batches through both networks."""

    def __init__(
        self,
        models: tuple[nn.Module, nn.Module],
        observed: tuple[Observed, Observed],
        batches: Sequence[Batch],
        outlined: Outline,
        spill: Spill,
    ) -> None:
        self._order = {key: i for i, key in enumerate(outlined.calls)}
        self._repeated = {key for key, count in outlined.calls.items() if count > 1}
        self._passes = []
        for number, batch in enumerate(batches):
            spill.start(number, (batch.args, batch.kwargs))
            track = partial(spill.track, number)
            both = (
                _Pass(model, known, batch, outlined.written, track)
                for model, known in zip(models, observed, strict=True)
            )
            self._passes.append(tuple(both))
        self._spill = spill

    def _place(self, one: _Pass) -> float:
        """Return how late in the order of execution a pass has stopped."""
        return math.inf if one.stop is None else self._order.setdefault(one.stop.key, len(self._order))

    def advance(self, number: int) -> Iterator[Cut]:
        """Let both passes of a batch go on to the next weight that they share; yield repeated uses."""
        x, z = self._passes[number]
        while True:
            with self._spill.resident(number):
                x.advance()
                z.advance()
                while self._place(x) != self._place(z):  # only one network uses this weight for this batch
                    (x if self._place(x) < self._place(z) else z).advance()
            if x.stop is None or z.stop is None or x.stop.key not in self._repeated:
                return
            cut = Cut(x.stop.key, [Pair(number, x.stop, z.stop)], self._spill, once=False)
            yield cut
            cut.pairs.clear()

    def stops(self) -> dict[int, Pair]:
        """Return, for each batch that has not come to the end, where its passes stand."""
        pairs = ((n, x.stop, z.stop) for n, (x, z) in enumerate(self._passes))
        return {n: Pair(n, x, z) for n, x, z in pairs if x is not None and z is not None}

    def first(self) -> list[Pair]:
        """Return the pairs at the weight that comes first; empty at the end."""
        stops = self.stops()
        key = min((pair.x.key for pair in stops.values()), key=self._order.__getitem__, default="")
        return [pair for pair in stops.values() if pair.x.key == key]

    def close(self) -> None:
        """End all passes."""
        for both in self._passes:
            for one in both:
                one.close()


def sweep(
    models: tuple[nn.Module, nn.Module],
    observed: tuple[Observed, Observed],
    batches: Sequence[Batch],
    outlined: Outline,
    spill: Spill,
) -> Generator[Cut, None, None]:
    """Walk two networks side by side and yield each cut; weights changed there act from there on.

    Args:
        models: The original, and a copy whose sizes may be others, both in evaluation mode.
        observed: For each, what `InputHooks` takes: key -> weight and axis.  The keys agree.
        batches: What to run them on.
        outlined: How the original uses the weights.
        spill: Moves tensors of paused passes to disk if they are too large.
    """
    walk = _Walk(models, observed, batches, outlined, spill)
    try:
        for number in range(len(batches)):
            yield from walk.advance(number)
        once = dict(outlined.calls) == dict.fromkeys(observed[0], 1)
        last = list(outlined.calls)[-1] if once and outlined.calls else ""
        while pairs := walk.first():
            key, numbers = pairs[0].x.key, [pair.batch for pair in pairs]
            yield Cut(key, pairs, spill)
            pairs.clear()
            if key == last and len(numbers) == len(batches):
                return  # what comes after the last weight, such as logits, nobody looks at
            for number in numbers:
                yield from walk.advance(number)
    finally:
        walk.close()
