"""Certificates: what somebody who has the original model can recompute of a saved result.

A certificate holds the hashes of the original's tensors, the plan and the result's tensors, the versions, how
exact the removal was and on which inputs, the sizes of both models, and the metrics with the hash of their
batches.  `verify_folder` recomputes it line by line, up to the first line that differs.  It reads JSON and
safetensors files of bounded size, and runs no code but that of the verifier's own model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.apply.check_inputs import SEED
from secateur.apply.exactness import verify
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, SecateurError, StoreError
from secateur.core.jsonable import plain
from secateur.core.paths import read_bounded, to_path
from secateur.execution import check_module, duplicate, one_at_a_time
from secateur.formats import store
from secateur.formats.fingerprint import describe_inputs, make_inputs
from secateur.formats.model_tensors import gather_tensors
from secateur.formats.plan_json import plan_digest
from secateur.measure.cost import nbytes, nonzero, parameters
from secateur.measure.metrics import Metric, evaluate
from secateur.repair.checkpoint import hash_tensors
from secateur.report import Report
from secateur.views import narrow_example, view

__all__ = ["hash_batches", "make_certificate", "read_certificate", "verify_folder"]

MOST_COMPARED = 2**26  # parameters; the comparison takes several copies in float64
TOLERANCE = 1e-3  # of a metric: other machines round otherwise, and an example may change its class
NOT_PROVEN = (
    "who made the folder: sign the certificate for that",
    "that the versions are true, and how the repair found its weights",
    "anything about inputs and batches other than those compared",
)
LINES = {
    "not proven": list,
    "versions": dict,
    "plan": str,
    "original": str,
    "result": str,
    "shrunk": str,
    "inputs": object,
    "exactness": dict,
    "sizes": dict,
    "metrics": dict,
}


def hash_batches(batches: Sequence[Any]) -> str:
    """Return the SHA-256 of batches: their tensors, in order, and what else is in them.

    Example:
        >>> import torch
        >>> a = hash_batches([torch.ones(2), (torch.zeros(2), 1)])
        >>> a == hash_batches([torch.ones(2), (torch.zeros(2), 1)]), a == hash_batches([torch.ones(2)])
        (True, False)
    """
    digest = hashlib.sha256()
    for batch in batches:
        leaves, form = tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)
        digest.update(str(form).encode())
        for leaf in leaves:
            digest.update((hash_tensors({"": leaf}) if isinstance(leaf, Tensor) else repr(leaf)).encode())
    return digest.hexdigest()


@one_at_a_time
def make_certificate(original: nn.Module, small: nn.Module, plan: Plan, report: Report) -> dict[str, Any]:
    """Return the certificate of a pruning, as JSON can hold it.

    Args:
        original: The original model.
        small: The pruned and repaired model.
        plan: What was removed; its graph has the example inputs.
        report: The report.

    Raises:
        StoreError: If a model has a tensor that safetensors cannot hold.
    """
    inputs = None
    try:
        if parameters(original) > MOST_COMPARED:
            raise ValueError(f"the model has more than {MOST_COMPARED} parameters")
        inputs = describe_inputs(plan.graph.example_inputs, plan.graph.example_kwargs)
        exactness = _measure_exactness(original, _with_inputs(plan, inputs))
    except (ValueError, SecateurError) as error:
        exactness = {"not compared": str(error).splitlines()[0]}
    return plain(
        {
            "not proven": NOT_PROVEN,
            "versions": report.versions,
            "plan": plan_digest(plan),
            "original": _hash(original),
            "result": _hash(small),
            "shrunk": _hash(shrink(original, plan, check=False)),
            "inputs": inputs,
            "exactness": exactness,
            "sizes": {"before": _sizes(original), "after": _sizes(small)},
            "metrics": _metrics_of(report),
        }
    )


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Return the certificate in a file that `Result.certificate` wrote.

    Raises:
        StoreError: If the file is missing or too large, or is not a certificate.
    """
    try:
        return _check_form(json.loads(read_bounded(to_path(path))), path)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not a certificate: {error}") from error


@one_at_a_time
def verify_folder(
    folder: str | Path,
    model: nn.Module,
    batches: Sequence[Any] | None = None,
    *,
    metric: str | Metric | None = None,
    name: str = "",
    certificate: Mapping[str, Any] | None = None,
) -> list[str]:
    """Recompute what the certificate of a saved result states.

    Args:
        folder: The saved result; nothing in it is trusted.
        model: The original model, from a source that the verifier trusts; left as it is.
        batches: The held-out batches.  Without them, the metrics are only compared with the report.
        metric: The metric, if it is a function of the user's.
        name: Which held-out batches these are, if the report has several.
        certificate: What `read_certificate` returned; by default the one in the folder.

    Returns:
        What agrees, a line each.

    Raises:
        StoreError: If a line differs, which the message names, or if the folder cannot be read.
        InputError: If an argument is invalid.
    """
    check_module(model)
    body = store.read_body(folder)
    given = _check_form(body.get("certificate") if certificate is None else certificate, folder)
    try:
        return list(_compare(folder, body, given, model, batches, metric, name))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the certificate of {folder} is damaged ({type(error).__name__}: {error})"
        ) from error


def _compare(
    folder: str | Path,
    body: Mapping[str, Any],
    given: Mapping[str, Any],
    model: nn.Module,
    batches: Sequence[Any] | None,
    metric: str | Metric | None,
    name: str,
) -> Iterator[str]:
    """Yield what agrees; raise `StoreError` at the first line that differs."""
    plan, report = store.load_plan(folder), Report.from_dict(body.get("report") or {})
    _agree("not proven", given["not proven"], list(NOT_PROVEN), "this version")
    yield _agree("versions", given["versions"], body.get("versions"), "the folder")
    yield _agree("plan", given["plan"], plan_digest(plan), "the folder")
    yield _agree("original", given["original"], _hash(model), "your model")
    yield _agree("result", given["result"], _hash_sorted(store.read_tensors(folder)), "the folder")
    small = store.load(folder, lambda: duplicate(model))
    shrunk = _hash(shrink(model, plan, check=False))
    yield _agree("shrunk", given["shrunk"], shrunk, "your model without the removed units")
    if given["inputs"] is None:
        yield f"exactness: not compared, {given['exactness']['not compared']}"
    else:
        plan = _with_inputs(plan, given["inputs"])
        _check_inputs(plan, body["fingerprint"])
        yield _compare_exactness(given["exactness"], _measure_exactness(model, plan))
    sizes = {"before": _sizes(model), "after": _sizes(small)}
    yield _agree("sizes", given["sizes"], sizes, "this computation")
    yield _agree("sizes in the report", given["sizes"], _sizes_in(report), "the report")
    yield _agree("metrics", given["metrics"], _metrics_of(report), "the report")
    if batches is None:
        yield "metrics: not recomputed without their batches"
        return
    stated = given["metrics"].get(name)
    if stated is None:
        raise InputError(f"there are no metrics on batches named {name!r}: {sorted(given['metrics'])}")
    yield _agree("batches", stated["batches"], hash_batches(batches), "your batches")
    seen, small = view(model, plan.graph.interface), view(small, plan.graph.interface, plan)
    for when, network in (("before", seen), ("after", small)):
        value = evaluate(network, batches, metric or stated["metric"], original=seen)
        yield _compare_metric(f"{stated['metric']} {when}", stated[when], value)


def _compare_exactness(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Compare what two checks found; the deviation differs between machines, within the bound."""
    said, same = ({key: x for key, x in each.items() if key != "deviation"} for each in (stated, found))
    line = _agree("exactness", said, same, "this comparison")
    if not 0 <= stated["deviation"] <= found["bound"]:
        raise StoreError(
            f"exactness differs: the certificate states a deviation of "
            f"{stated['deviation']}, which is not within the bound {found['bound']}"
        )
    return line


def _compare_metric(line: str, stated: float, found: float) -> str:
    """Compare two values of a metric; other machines round differently."""
    if not abs(found - stated) <= TOLERANCE * max(1.0, abs(stated)):
        raise StoreError(f"{line} differs: stated {stated}, recomputed {found}")
    return f"{line}: {found:.6g}"


def _agree(line: str, stated: Any, found: Any, whose: str) -> str:
    if stated != found:
        raise StoreError(f"{line} differs: the certificate states {stated!r}, {whose} gives {found!r}")
    return f"{line}: {stated}" if isinstance(stated, str) else line


def _check_form(document: Any, path: str | Path) -> dict[str, Any]:
    """Return a document that has the lines of a certificate, or raise `StoreError`."""
    if document is None:
        raise StoreError(f"{path} has no certificate: save the result again, with this version")
    for line, kind in LINES.items():
        if not isinstance(document, dict) or not isinstance(document.get(line, LINES), kind):
            raise StoreError(f"{path} has no certificate that can be read: {line!r} is missing or damaged")
    return document


def _hash(model: nn.Module) -> str:
    return _hash_sorted(gather_tensors(model))


def _hash_sorted(tensors: Mapping[str, Tensor]) -> str:
    return hash_tensors(dict(sorted(tensors.items())))


def _with_inputs(plan: Plan, inputs: Any) -> Plan:
    """Return the plan with inputs that everybody can make again in place of the example."""
    args, kwargs = make_inputs(inputs)
    return replace(plan, graph=replace(plan.graph, example_inputs=args, example_kwargs=kwargs))


def _check_inputs(plan: Plan, fingerprint: Mapping[str, Any]) -> None:
    """Raise `StoreError` unless the fingerprint of the result was taken on the same inputs, if it has any."""
    described = describe_inputs(*narrow_example(plan.graph, plan.keep))
    if "inputs" in fingerprint:
        _agree("inputs", described, fingerprint["inputs"], "the folder")


def _measure_exactness(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """Compare the masked model with the shrunk one."""
    found = verify(mask(model, plan), shrink(model, plan, check=False), plan, "cpu")
    return {"seed": SEED, **found.describe()}


def _sizes(model: nn.Module) -> dict[str, int]:
    return {"parameters": parameters(model), "nonzero": nonzero(model), "bytes": nbytes(model)}


def _sizes_in(report: Report) -> dict[str, dict[str, int]]:
    """Return the sizes of both models that a report states."""
    costs = {"before": report.before.cost, "after": report.after.cost}
    return {
        when: {"parameters": cost.parameters, "nonzero": cost.nonzero, "bytes": cost.bytes}
        for when, cost in costs.items()
    }


def _metrics_of(report: Report) -> dict[str, Any]:
    """Return the metrics by name of their batches, with the hash of the batches."""
    metrics = {}
    for name, digest in report.holdout.items():
        before, after = (x.metrics.get(name, x.metric) for x in (report.before, report.after))
        if before is not None:
            metrics[name] = {"metric": report.metric, "batches": digest, "before": before, "after": after}
    return plain(metrics)
