"""What a folder of transformers can state of a pruned model: a config, and the weights for it.

Where no config states the sizes, removed units may come back as zeros: first as many as make layers of the
same kind equally wide, then all units on an axis that the config cannot state.  Or the config states the
sizes with these units, and a modelling file the smaller ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from secateur.apply.experts import find_mixtures
from secateur.apply.kept_tensors import state_without_places
from secateur.core import Group, InputError, IntArray, Plan, shorten
from secateur.core.indices import kept_shapes, padded_axes
from secateur.formats.modelling_file import list_sizes
from secateur.formats.plain_state import correct_embedding_scale, correct_norms, narrow_layer_norm
from secateur.formats.transformers_config import ConfigSearch, build_on_meta
from secateur.formats.zero_padding import pad_with_zeros, widen, widen_to_even

__all__ = ["UNEVEN", "PlainModel", "Uneven", "plain_models"]

Uneven = Literal["error", "pad", "code"]
UNEVEN = ("error", "pad", "code")
Keep = Mapping[str, IntArray]
CODE_OR_ZEROS = (
    "Give uneven='pad', which fills up with units of zeros (exact, loads everywhere, saves less), "
    "or uneven='code', which writes a modelling file (exact, loads with trust_remote_code=True)"
)
FEW = 64  # more units than that are not tried one count after the other


@dataclass(frozen=True)
class PlainModel:
    """A config of transformers, the weights by name, and the sizes that only a modelling file can state."""

    config: Any
    state: Mapping[str, Tensor]
    sizes: Mapping[str, Any] | None = None


def plain_models(model: Any, plan: Plan, uneven: Uneven) -> Iterator[PlainModel]:
    """Yield what a folder may state, the likeliest first.

    Raises:
        InputError: If no config states the sizes, and zeros are not allowed or do not help.
    """
    _check_experts(model, plan)
    wide: Keep = {name: kept for name, kept in plan.keep.items() if not plan.graph.group(name).padded}
    padded = list(padded_axes(plan.graph, plan.keep))
    if padded and uneven == "error":
        raise InputError(
            f"positions within heads have gone ({shorten([name for name, _ in padded])}), which no config "
            f"states. {CODE_OR_ZEROS}; or use result.save, which keeps any plan"
        )
    while isinstance(search := _search(model, plan, wide), _Missing):
        wider = _widen(model, plan, wide, search)
        if uneven == "error" or wider is None:
            raise InputError(_refusal(plan, search, wider is not None))
        wide = wider
    if uneven == "code" and kept_shapes(plan.graph, wide) != kept_shapes(plan.graph, plan.keep):
        sizes, state = list_sizes(model, plan, wide), model.state_dict()
    else:
        _warn_of_padding(plan, wide)
        sizes, state = None, pad_with_zeros(model, plan.graph, plan.keep, wide)
    for config in search.configs():
        yield replace(_correct(model, config, dict(state)), sizes=sizes)


def _check_experts(model: Any, plan: Plan) -> None:
    """Refuse mixtures that kept unequal numbers of experts."""
    counts = {name: mixture.count for name, mixture in find_mixtures(model).items()} if plan.experts else {}
    if len(set(counts.values())) > 1:
        listed = shorten([f"{count} in {name!r}" for name, count in counts.items()])
        raise InputError(
            f"the mixtures keep unequal numbers of experts ({listed}), and a config has one number. Keep "
            "equally many in each; or use result.save, which keeps any plan"
        )


@dataclass(frozen=True)
class _Missing:
    """Why no config fits some sizes.

    Attributes:
        reason: As text.
        axis: The axis that no config states, or None.
        refused: Whether a config states the sizes, and its class does not accept them together.
    """

    reason: str
    axis: tuple[str, int] | None
    refused: bool = False


def _search(model: Any, plan: Plan, keep: Keep) -> ConfigSearch | _Missing:
    """Return a search that finds a config, or why there is none."""
    shapes = _state_shapes(model, plan, keep)
    if (weight := narrow_layer_norm(model, shapes)) is not None:
        return _Missing(
            f"the plain LayerNorm of {weight!r} would centre fewer features in another way", (weight, 0)
        )
    search = ConfigSearch(model, shapes)
    if next(search.configs(), None) is not None:
        return search
    return _Missing(search.explain(), search.unstated, search.refused is not None)


def _state_shapes(model: Any, plan: Plan, keep: Keep) -> dict[str, tuple[int, ...]]:
    shapes = kept_shapes(plan.graph, keep)
    return {name: shapes[plan.graph.aliases.get(name, name)] for name in state_without_places(model)}


def _widen(model: Any, plan: Plan, wide: Keep, missing: _Missing) -> Keep | None:
    """Return wider layers: first equal counts, then the original width where no config states another."""
    graph = plan.graph
    even = widen_to_even(graph, {name: plan.keep[name] for name in wide})
    if any(len(wide[name]) < len(even[name]) for name in wide):
        return even
    sets = [
        [g for g in groups if len(wide.get(g.name, range(g.size))) < g.size]
        for groups in graph.with_even_layers().counted_together()
    ]
    sets = [groups for groups in sets if groups]
    if missing.refused:
        return _widen_until_accepted(model, plan, wide, sets)
    tensor, axis = missing.axis or ("", 0)
    owned = graph.aliases.get(tensor, tensor), axis
    counts = {
        tied.name: tied.size
        for groups in sets
        if any((slot.tensor, slot.axis) == owned for group in groups for slot in group.slots)
        for tied in groups
    }
    return widen(graph, wide, counts) if counts else None


def _widen_until_accepted(model: Any, plan: Plan, wide: Keep, sets: Sequence[Sequence[Group]]) -> Keep | None:
    """Return the layers, one kind of them wider, with the fewest parameters that a config accepts.

    What is refused is, as far as known, a width that the number of heads does not divide.
    """
    found = []
    for groups in sets:
        size, count = groups[0].size, len(wide[groups[0].name])
        for more in range(count + 1, min(count + FEW, size) + 1):
            wider = widen(plan.graph, wide, dict.fromkeys((g.name for g in groups), more))
            if isinstance(_search(model, plan, wider), ConfigSearch):
                found.append(wider)
                break
    return min(found, key=lambda keep: _parameters(plan, keep), default=None)


def _correct(model: Any, config: Any, state: dict[str, Tensor]) -> PlainModel:
    correct_norms(model, state, config)
    correct_embedding_scale(model, build_on_meta(type(model), config), state)
    return PlainModel(config, state)


def _refusal(plan: Plan, missing: _Missing, paddable: bool) -> str:
    """Describe which sizes a folder cannot state, and what to do."""
    why, advice = missing.reason, "Keep these units (ignored_layers=)"
    padding = f"; or g{CODE_OR_ZEROS[1:]}"
    counts = _uneven_counts(plan)
    if counts:
        why = f"layers of the same kind keep unequal counts ({shorten(counts)}), and a config has one number"
        advice = "Prune with an even budget, for instance Params(0.8, even=True)"
    elif missing.refused:
        advice = "Prune to multiples (round_to=)"
    return f"{why}. {advice}{padding if paddable else ''}; or use result.save, which keeps any plan"


def _uneven_counts(plan: Plan) -> list[str]:
    """Describe the sets of groups in the same place of repeated layers that keep unequal counts."""
    described = []
    for groups in plan.graph.with_even_layers().counted_together():
        counts = [len(plan.keep.get(g.name, range(g.size))) for g in groups]
        if len(set(counts)) > 1:
            described.append(f"{min(counts)} to {max(counts)} of {groups[0].size} as in {groups[0].name!r}")
    return described


def _warn_of_padding(plan: Plan, wide: Keep) -> None:
    before, after, total = (_parameters(plan, keep) for keep in (plan.keep, wide, {}))
    if after > before:
        warnings.warn(
            f"padded with zeros: the folder has {after:,} parameters instead of {before:,} (the original: "
            f"{total:,}), because its config cannot state the sizes of every layer",
            stacklevel=5,
        )


def _parameters(plan: Plan, keep: Keep) -> int:
    shapes = kept_shapes(plan.graph, keep)
    return sum(math.prod(shapes[name]) for name in plan.graph.parameters)
