"""From the rows of the cells to tables with the published numbers and verdicts beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from secateur.bench.statistics import bootstrap
from secateur_studies.common import Table, verdict
from secateur_studies.mip import published

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

# Points of percent: about the spread over initialisations that the paper states for pruned networks.
TOLERANCE = 3.0
# Points of the share removed beyond which two pruned networks are not compared.
SHARE = 10.0
_RULE = (
    f"reproduced: within {TOLERANCE:g} points, and of points lost within half of what is printed; no verdict "
    f"where the shares removed are more than {SHARE:g} points apart."
)

__all__ = ["TOLERANCE", "claims", "grouped", "interval", "tables", "with_tuning"]


def tables(rows: Mapping[str, Rows]) -> list[Table]:
    """Return the tables that there are rows for, by the name of the cell's job."""
    pruned = with_tuning(rows)
    of_table_2 = [make(pruned) for make in (_table2, _tuned, _printed2, _claims, _valid, _folded)]
    made = [
        *of_table_2,
        *_modes(rows["modes"]),
        _transfer(rows["transfer"]),
        _rescale(rows["rescale"]),
        _snip(rows["snip"]),
    ]
    return [table for table in made if table.rows]


def grouped(rows: Rows, *keys: str) -> dict[tuple, list[Mapping[str, Any]]]:
    """Return rows by the values of some keys, in order of first appearance."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def spread(rows: Rows, key: str) -> str:
    """Word mean and standard deviation of a column; nothing where no row has it.

    Example:
        >>> spread([{"a": 1.0}, {"a": 2.0}], "a"), spread([{"b": 1}], "a")
        ('1.5 ± 0.7', '')
    """
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def average(rows: Rows, key: str) -> float | None:
    """Return the mean of a column, or None where no row has it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return round(mean(values), 3) + 0.0 if values else None  # no -0


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over initialisations; of one, that value twice.

    Example:
        >>> interval([2.0, 2.0, 2.0])
        (2.0, 2.0)
    """
    found = bootstrap(differences)
    return (found.low, found.high) if found.count > 1 else (found.estimate, found.estimate)


def _form(rows: Rows, bounds: str) -> dict[tuple, list[Mapping[str, Any]]]:
    return grouped([row for row in rows if row["bounds"] == bounds], "net", "data")


def _columns(same: Rows, columns: Mapping[str, str]) -> Row:
    found = {title: spread(same, key) for title, key in columns.items()}
    return {title: text for title, text in found.items() if text}


def _table2(rows: Rows) -> Table:
    columns = {
        "REF": "ref",
        "OURS": "ours",
        "RP": "random",
        "CP": "critical",
        "L1": "L1",
        "mean activation": "mean activation",
        "dead only": "dead only",
        "OURS + FT": "ours + ft",
        "RP + FT": "random + ft",
        "CP + FT": "critical + ft",
        "pruned %": "pruned",
        "dead only: pruned %": "pruned dead only",
        "live units removed": "live units removed",
        "solver seconds": "solver seconds",
    }
    found: list[Row] = []
    for (net, data), same in _form(rows, "paper").items():
        what = {"net": net, "data": data, "threshold": same[0]["threshold"], "n": len(same)}
        found.append({**what, **_columns(same, columns)})
    note = (
        f"Test accuracy in percent, mean ± standard deviation over n initialisations; RP is the mean of "
        f"{rows[0]['draws'] if rows else 0} random prunings each. RP, CP, L1 and mean activation remove as "
        "many units a layer as OURS; dead only removes what gives 0 on the same ten images."
    )
    return Table("table2", "Table 2: pruning by threshold, the published form", found, note)


def with_tuning(rows: Mapping[str, Rows]) -> list[Row]:
    """Return the rows of Table 2, the published form with what an epoch of training makes of it."""
    after = {(row["net"], row["data"], row["seed"]): row for row in rows["tuned"]}
    return [
        {**row, **(after.get((row["net"], row["data"], row["seed"]), {}) if row["bounds"] == "paper" else {})}
        for row in rows["pruning"]
    ]


def _tuned(rows: Rows) -> Table:
    names = ("ours", "random", "critical", "L1", "mean activation", "dead only")
    columns = {"REF": "ref"} | {f"{name} + FT": f"{name} + ft" for name in names}
    found = [
        {"net": net, "data": data, "n": len(same), **_columns(same, columns)}
        for (net, data), same in _form(rows, "paper").items()
        if any("ours + ft" in row for row in same)
    ]
    note = "The counts of the published form; every network trained for one more epoch, with Adam at 1e-3."
    return Table("table2-tuned", "Table 2 with fine-tuning", found, note)


_PRINTED = {
    "REF": "ref",
    "RP": "random",
    "CP": "critical",
    "OURS": "ours",
    "OURS + FT": "ours + ft",
    "pruned %": "pruned",
}


def _printed2(rows: Rows) -> Table:
    here, found = _form(rows, "paper"), []
    for (data, net), numbers in published.PRUNING.items():
        same = here.get((net, data), [])
        for title, key in _PRINTED.items():
            # all of VGG-16's pruned networks were trained for an epoch
            ours = f"{key} + ft" if net == "VGG-16" and key in ("random", "critical") else key
            if key in numbers:
                what = {"net": net, "data": data, "what": title}
                found.append(_beside(what, same, ours, numbers[key], numbers.get("pruned")))
        if "ours" in numbers:
            lost = [{"lost": row["ref"] - row["ours"], "pruned": row["pruned"]} for row in same]
            what = {"net": net, "data": data, "what": "points lost"}
            theirs = _minus(numbers["ref"], numbers["ours"])
            found.append(_beside(what, lost, "lost", theirs, numbers.get("pruned")))
    note = f"In percent; {_RULE} MNIST and CIFAR-10 are read from folders that the user names."
    return Table("table2-published", "Table 2 beside the published numbers", found, note if rows else "")


def _beside(what: Row, same: Rows, key: str, printed: float | None, share: float | None = None) -> Row:
    """Put our mean beside a printed number.

    A pruned network at a share of the units that is another than the printed one has no verdict; a printed
    difference is not reproduced by one that is more than half of it away.
    """
    ours, reached = average(same, key), average(same, "pruned")
    apart = share is not None and reached is not None and abs(reached - share) > SHARE
    tolerance = min(TOLERANCE, abs(printed) / 2) if key == "lost" and printed is not None else TOLERANCE
    said = "" if apart and key not in ("ref", "pruned") else verdict(ours, printed, tolerance)
    return {**what, "ours": ours, "published": printed, "verdict": said}


def claims(rows: Rows) -> list[Row]:
    """Return paired differences over initialisations, with what the paper has for them."""
    found = []
    for bounds in ("paper", "valid"):
        for (net, data), same in _form(rows, bounds).items():
            printed = published.PRUNING.get((data, net), {}) if bounds == "paper" else {}
            ft = " + ft" if net == "VGG-16" else ""  # as published
            for one, two in _PAIRS:
                differences = [row[one + ft] - row[two + ft] for row in same if one + ft in row]
                theirs = _minus(printed.get(one + ft, printed.get(one)), printed.get(two))
                what = {"net": net, "data": data, "form": bounds, "difference": f"{one} - {two}"}
                found += [what | _judged(differences, theirs)] if differences else []
    return found


_PAIRS = (
    ("ours", "random"),
    ("random", "critical"),
    ("ours", "L1"),
    ("ours", "mean activation"),
)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(a - b, 3)


def _judged(differences: Sequence[float], printed: float | None) -> Row:
    """Say whether a difference has the same sign each time, and whether it is about as large as printed."""
    low, high = interval(differences)
    middle = mean(differences)
    outcome = "tie" if low <= 0 <= high else "ahead" if low > 0 else "behind"
    same = printed is not None and outcome != "tie" and abs(middle - printed) <= abs(printed) / 2
    outcome = outcome if len(differences) > 1 else "one network"
    return {
        "mean": round(middle, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "n": len(differences),
        "outcome": outcome,
        "published": printed,
        "verdict": "" if printed is None else "reproduced" if same else "differs",
    }


def _claims(rows: Rows) -> Table:
    note = (
        "Points of test accuracy without repair (VGG-16: after an epoch of training, as published), at equal "
        "counts a layer. Ahead and behind: in every initialisation, which chance alone does in one of four "
        "cases with three of them; `low` and `high` are their range. Reproduced: that, and within half of "
        "the published difference."
    )
    return Table("claims", "Who is ahead", claims(rows), note)


def _valid(rows: Rows) -> Table:
    columns = {
        "REF": "ref",
        "ours": "ours",
        "random": "random",
        "critical": "critical",
        "L1": "L1",
        "mean activation": "mean activation",
        "dead only": "dead only",
        "pruned %": "pruned",
        "dead only: pruned %": "pruned dead only",
        "live units removed": "live units removed",
        "solver seconds": "solver seconds",
    }
    found = []
    for (net, data), same in _form(rows, "valid").items():
        lost = mean(row["ref"] - row["ours"] for row in same)
        what = {"net": net, "data": data, "n": len(same)}
        found.append({**what, **_columns(same, columns), "points lost": round(lost, 2)})
    note = (
        "Not in the paper: bounds that hold for every score, so that live units can go; 20 images, relaxed. "
        "Target on FC-3: at least 40 live units more than dead only, at most 2 points lost."
    )
    return Table("valid", "The valid form at threshold 0.1", found, note)


def _folded(rows: Rows) -> Table:
    names = ("ours", "random", "L1", "mean activation", "dead only")
    columns = {"REF": "ref"} | {f"{name} + fold": f"{name} + fold" for name in names}
    found = [
        {"net": net, "data": data, "n": len(same), **_columns(same, columns)}
        for (net, data), same in _form(rows, "valid").items()
    ]
    note = (
        "The counts of the valid form, dead only its own; every criterion with the same least-squares fold."
    )
    return Table("fold", "With a fold", found, note)


def _modes(rows: Rows) -> Iterator[Table]:
    """Tables 1 (threshold 0.01) and 6 (both thresholds, without the imbalanced mode)."""
    titles = {
        0.01: ("table1", "Table 1 (and half of 6): class by class, imbalanced, all at once; threshold 0.01"),
        0.1: ("table6", "Table 6: the same at threshold 0.1"),
    }
    for threshold, (name, title) in titles.items():
        known = {
            (data, mode): (published.REFERENCE[data], *numbers)
            for (data, mode, at), numbers in published.MODES.items()
            if at == threshold
        }
        same = [row for row in rows if row["threshold"] == threshold]
        yield Table(name, title, _keyed(same, ("data", "mode"), known), _NOTE)


_NOTE = (
    "LeNet-5, in percent; points lost: accuracy of the whole network less that of the pruned one. "
    f"{_RULE.capitalize()}"
)


def _keyed(rows: Rows, keys: tuple[str, ...], known: Mapping[tuple, tuple[float | None, ...]]) -> list[Row]:
    """For what was run and for what is printed: accuracy, points lost, share pruned, beside what is printed.

    `known` holds the printed accuracy of the whole network, of the pruned one, and the share.
    """
    here, found = grouped(rows, *keys), []
    for key in dict.fromkeys([*here, *known]):
        same = [{**row, "lost": row["ref"] - row["ours"]} for row in here.get(key, [])]
        whole, accuracy, share = known.get(key, (None, None, None))
        what = {**dict(zip(keys, key, strict=True)), "n": len(same), "REF": average(same, "ref")}
        printed = {"ours": accuracy, "lost": _minus(whole, accuracy), "pruned": share}
        asked = printed if same else {k: number for k, number in printed.items() if number is not None}
        found += [_beside({**what, "what": _WHAT[k]}, same, k, number, share) for k, number in asked.items()]
    return found if rows else []


_WHAT = {"ours": "accuracy", "lost": "points lost", "pruned": "pruned %"}


def _transfer(rows: Rows) -> Table:
    keys = ("net", "source", "target")
    found = _keyed(rows, keys, published.TRANSFER)
    here = grouped(rows, *keys)
    for row in found:
        same = here.get(tuple(row[key] for key in keys), [])
        row["random mask"] = average(same, "random") if row["what"] == "accuracy" else None
    title = "Table 3: mask from one data set, retrained on another from the same initialisation"
    return Table("table3", title, found, f"In percent; {_RULE}")


def _rescale(rows: Rows) -> Table:
    named = [{**row, "objective": f"s - {row['c']:g}"} for row in rows]
    known = {
        (data, f"s - {c:g}"): (published.REFERENCE_4[data], *numbers)
        for (data, c), numbers in published.RESCALE.items()
    }
    found = _keyed(named, ("data", "objective"), known)
    note = (
        f"{_NOTE} With layer means c takes the same from every layer, so that it can move the scores within "
        "the solver's gap only; in the authors' program, which divides a convolution's sum by the number of "
        "its weights, it weighs layers differently."
    )
    return Table("table4", "Table 4: s - 2, s - 1 and s in the objective, threshold 0.05", found, note)


def _snip(rows: Rows) -> Table:
    renamed = [{**row, "ours": row["masked"]} for row in rows]
    known = {key: (published.REFERENCE_5[key[2]], *numbers) for key, numbers in published.SNIP.items()}
    found = _keyed(renamed, ("method", "source", "target"), known)
    note = (
        f"{_NOTE} Every method removes as many units a layer as ours. Shares printed with CIFAR-10 repeat "
        "its accuracies and are left out; those printed with one data set throughout are of parameters."
    )
    title = "Table 5: at initialisation, beside SNIP by neurons (lambda 1, threshold 0.2)"
    return Table("table5", title, found, note)
