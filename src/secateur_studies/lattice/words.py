"""The paragraph of the study: what came out, in sentences whose numbers are those of the tables."""

from __future__ import annotations

from collections.abc import Iterator

from secateur_studies.lattice.literal import VARIANTS
from secateur_studies.lattice.tables import Row, Rows, mean_of, part

__all__ = ["sentences"]

CHOSEN = {
    "the paper's rule": "paper: irreducible, then mu",
    "random removal": "random",
    "in-strength": "in-strength alone",
    "magnitude": "magnitude",
    "the default": "context from data, then flow (default)",
}


def sentences(rows: Rows) -> Iterator[str]:
    """Say what came out of each part that there are rows for."""
    for say, name in ((_literally, "literal"), (_rigorously, "rigorous"), (_effects, "effect")):
        for data in dict.fromkeys(r["data"] for r in part(rows, name)):
            yield from say(data, part(rows, name, data=data))
    yield from _phonemes([r for r in part(rows, "g2p") if "repair" in r])


def _literally(data: str, rows: Rows) -> Iterator[str]:
    found = [mean_of([r for r in rows if r["variant"] == v.name], "accuracy") for v in VARIANTS]
    means = [f"{x:.3f}" for x in found if x is not None]
    if len(means) == len(found):
        dense, half, _, _, one, _, control = means
        yield (
            f"On {data}, Algorithm 2 with half of W_hh at zero reaches {half} (dense {dense}), and Algorithm "
            f"3 with one row left {one}, where a network that never had a recurrence reaches {control}."
        )


def _rigorously(data: str, rows: Rows) -> Iterator[str]:
    for repair, words in (("none", "without repair"), ("fold", "with the fold")):
        here = [r for r in rows if (r["removed"], r["repair"]) == (0.5, repair)]
        means = {
            name: mean_of([r for r in here if r["criterion"] == criterion], "accuracy")
            for name, criterion in CHOSEN.items()
        }
        said = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
        if said:
            yield f"Half of the units of the LSTM on {data} removed {words}: {said}."


def _effects(data: str, rows: Rows) -> Iterator[str]:
    def of(criterion: str, value: str) -> float:
        return mean_of([r for r in rows if r["criterion"] == criterion], value) or 0.0

    pruned = [r for r in rows if r["criterion"] != "none"]
    norm, exponents = min(r["norm"] for r in pruned), [r["exponent"] for r in pruned]
    silent = "so that Theorem III.7 says nothing" if norm >= 1 else "where Theorem III.7 needs less than 1"
    yield (
        f"On {data} modularity is {of('none', 'modularity'):.3f} with all units, and with half of them "
        f"{of('random', 'modularity'):.3f} (random) and {of('magnitude', 'modularity'):.3f} (magnitude); the "
        f"largest norm of a Jacobian is {of('none', 'norm'):.1f} before and at least {norm:.1f} after, "
        f"{silent}; the Lyapunov exponent is {of('none', 'exponent'):.3f} before and "
        f"{min(exponents):.3f} to {max(exponents):.3f} after."
    )


def _phonemes(rows: Rows) -> Iterator[str]:
    base = mean_of([r for r in rows if r["criterion"] == "whole network"], "error")
    for units in dict.fromkeys(r["units"] for r in rows):
        own = [r for r in rows if (r["units"], r["removed"]) == (units, 0.25)]
        errors = {way: _error(own, *way) for way in dict.fromkeys((r["criterion"], r["repair"]) for r in own)}
        errors = {way: e for way, e in errors.items() if way[0] != "whole network"}
        folded = {way: e for way, e in errors.items() if way[1] == "fold"}
        if folded and base is not None:
            (criterion, _), error = min(folded.items(), key=lambda item: item[1])
            (other, repair), least = min(errors.items(), key=lambda item: item[1])
            yield (
                f"Of g2p-en, a quarter of {units} removed by {criterion} and folded takes the phoneme error "
                f"from {base:.3f} to {error:.3f} ({100 * (error - base):+.1f} points); the least of all ways "
                f"is {least:.3f} ({other}: {repair})."
            )


def _error(rows: Rows, criterion: str, repair: str) -> float:
    same: list[Row] = [r for r in rows if (r["criterion"], r["repair"]) == (criterion, repair)]
    return mean_of(same, "error") or 0.0
