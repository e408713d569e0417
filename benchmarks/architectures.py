"""Architectures that nobody here wrote: which of them Secateur prunes exactly, and how much of them goes.

Each is built at its smallest size with random weights, loses half of the units of every group (`Units(0.5)`
by magnitude, through `secateur.prune`), and is judged by the oracle of the tests, which knows no plan: see
`compare_torch_pruning.py`.  An architecture whose kernels refuse float64 runs in float32; its indices are
found in float64 all the same.  Torch-Pruning gets the same model with `pruning_ratio=0.5`, its output layer
ignored and its heads declared, in a process of its own.  Needs timm, torchvision, diffusers, transformers,
vit_pytorch and einops beside the extra "peers"; not part of CI.

    python benchmarks/architectures.py --json architectures.jsonl            # resumes where it stopped
    python benchmarks/architectures.py --json architectures.jsonl --table docs/architectures.md
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ["HF_HUB_OFFLINE"] = "1"

import oracles  # noqa: E402
from architecture_bank import ARCHITECTURES, LIBRARIES, Architecture  # noqa: E402
from architecture_bank.entry import in_float32  # noqa: E402
from compare_torch_pruning import PLACES, Outcome, best, guarded, isolated, judge  # noqa: E402
from torch_pruning_runs import KEYS, QUERIES, torch_pruning_half  # noqa: E402

from secateur import prune, shrink  # noqa: E402
from secateur.apply.float64 import in_float64  # noqa: E402
from secateur.core import Plan, Units  # noqa: E402

OURS, THEIRS = "Secateur", "Torch-Pruning"
VERDICTS = {
    "exact": "the network that masking the original gives, to 1e-10 of the largest output (float32: 1e-4)",
    "refused": "an error that says what stands in the way",
    "narrowed": "smaller, but a norm takes its statistics over fewer features: not the masked network",
    "no-op": "nothing was removed, and nothing said so",
    "wrong": "runs, but its output is neither",
    "crash": "an unexpected exception, while pruning or when the pruned network runs",
    "no answer": "stopped at the time limit",
    "not built": "the library does not build it or run it here",
}
LOW_TOLERANCE = 1e-4
MUCH = 0.4  # of the parameters
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
KEY_HEADS = ("num_key_value_heads", "kv_heads")
REFUSALS = 40  # that the page quotes


def prune_half(model: nn.Module, example: Any) -> tuple[nn.Module, Plan]:
    """Prune a model by Secateur to half of the units of every group."""
    args, kwargs = example
    result = prune(
        model, args, Units(0.5), method="magnitude", repair=None, example_kwargs=kwargs, progress=False
    )
    return result.model, result.plan


def runs_in_float64(entry: Architecture, model: nn.Module) -> bool:
    """Return whether a model runs in float64; if it runs in neither type, raise what it raises."""
    args, kwargs = entry.example()
    try:
        with in_float64():
            model(*args, **kwargs)
    except RuntimeError:
        with torch.no_grad():
            args, kwargs = in_float32((args, kwargs))
            in_low_precision(model)(*args, **kwargs)
        return False
    return True


def in_low_precision(model: nn.Module) -> nn.Module:
    """Return a float32 copy of a model."""
    return copy.deepcopy(model).float()


def judge_ours(entry: Architecture, model: nn.Module) -> Outcome:
    """Prune a float64 model by Secateur and judge the result."""
    small, _ = prune_half(model, entry.example())
    verdict, left, deviation = judge(entry, model, small)
    return Outcome(entry.name, OURS, verdict, left, deviation)


def judge_ours_in_float32(entry: Architecture, model: nn.Module) -> Outcome:
    """Prune the float32 copy of a model; find in float64 what is left, and compare in float32."""
    torch.set_default_dtype(torch.float32)
    low = in_low_precision(model)
    small, plan = prune_half(low, in_float32(entry.example()))
    exact = shrink(model, plan, check=False)
    left = oracles.size(small) / oracles.size(model)
    rounded = in_low_precision(exact).state_dict()
    if any(not torch.equal(x, rounded[name]) for name, x in small.state_dict().items()):
        return Outcome(entry.name, OURS, "wrong", left, detail="the plan gives other weights in float64")
    full = in_low_precision(oracles.unshrunk(model, exact))
    worst = 0.0
    for args, kwargs in map(in_float32, oracles.other_examples(entry)):
        with torch.no_grad():
            ours, theirs = (oracles.tensors(network(*args, **kwargs)) for network in (small, full))
        worst = max(worst, oracles.distance(ours, theirs))
    return Outcome(entry.name, OURS, "exact" if worst < LOW_TOLERANCE else "wrong", left, worst)


def judge_theirs(entry: Architecture, model: nn.Module, whole_heads: bool) -> Outcome:
    """Prune a float64 model by Torch-Pruning and judge the result."""
    declared = replace(entry, outputs=output_layers(entry, model), heads=declared_heads)
    verdict, left, deviation = judge(
        entry, model, torch_pruning_half(declared, model, whole_heads=whole_heads)
    )
    return Outcome(entry.name, THEIRS, verdict, left, deviation)


def output_layers(entry: Architecture, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose results are outputs of a model, or of the last one."""
    results: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: results.update({name: output}))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    args, kwargs = entry.example()
    try:
        with in_float64():
            outputs = tree_leaves(model(*args, **kwargs))
    finally:
        for hook in hooks:
            hook.remove()
    direct = tuple(name for name, x in results.items() if any(x is output for output in outputs))
    return direct or tuple(results)[-1:]


def declared_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of every projection to queries, keys and values that states it."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        counts = [getattr(module, name, None) for name in HEADS]
        count = next((n for n in counts if isinstance(n, int)), None)
        if count is None:
            continue
        fewer = next((n for n in (getattr(module, x, None) for x in KEY_HEADS) if isinstance(n, int)), count)
        values = ("value", "v_proj", "v", "v_lin")
        for names, number in ((QUERIES, count), (KEYS, fewer), (values, fewer)):
            layers = (getattr(module, name, None) for name in names)
            heads |= {x: number for x in layers if isinstance(x, nn.Linear)}
    return heads


def attempt(entry: Architecture, tool: str, whole_heads: bool = False) -> Outcome:
    """Build an architecture, prune it by one tool, and judge the result."""
    logging.disable(logging.CRITICAL)
    torch.set_default_dtype(torch.float64)
    try:
        model = oracles.perturb(entry.build())
        double = runs_in_float64(entry, model)
    except Exception as error:
        return Outcome(entry.name, tool, "not built", detail=f"{type(error).__name__}: {error}")
    ours = judge_ours if double else judge_ours_in_float32
    job = partial(judge_theirs, entry, model, whole_heads) if tool == THEIRS else partial(ours, entry, model)
    return guarded(job, entry.name, tool)


def run(entry: Architecture, tool: str, limit: float) -> Outcome:
    """Run one tool on an architecture in a process of its own; Torch-Pruning in both its ways for heads."""
    found: list[Outcome] = []
    for whole in (False, True) if tool == THEIRS else (False,):
        found.append(isolated(partial(attempt, entry, tool, whole), entry.name, tool, limit))
        if found[-1].verdict in ("exact", "no answer", "not built"):
            break
    return best(found) if len(found) > 1 else found[0]


def read(path: Path) -> dict[tuple[str, str], Outcome]:
    """Return the outcomes of an earlier run by model and tool."""
    lines = path.read_text().splitlines() if path.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    return {(outcome.model, outcome.tool): outcome for outcome in outcomes}


Found = Mapping[tuple[str, str], Outcome]


def totals(found: Found) -> list[str]:
    """Write the table of totals: one row a library, and one for all."""
    lines = [
        "| library | tool | built | exact | 40 % or more gone | " + " | ".join(list(VERDICTS)[1:-1]) + " |",
        "|---|---|" + "---:|" * (len(VERDICTS) + 1),
    ]
    rows = {**LIBRARIES, "all": tuple(ARCHITECTURES.values())}
    for library, entries in rows.items():
        for tool in (OURS, THEIRS):
            outcomes = [found[entry.name, tool] for entry in entries if (entry.name, tool) in found]
            if not outcomes:
                continue
            counts = Counter(outcome.verdict for outcome in outcomes)
            built = counts.total() - counts["not built"]
            much = sum(x.verdict == "exact" and 1 - (x.left or 1) >= MUCH for x in outcomes)
            shares = [f"{n} ({n / max(built, 1):.0%})" for n in (counts["exact"], much)]
            rest = [str(counts[verdict]) for verdict in list(VERDICTS)[1:-1]]
            lines.append(f"| {library} | {tool} | {built} | {' | '.join([*shares, *rest])} |")
    return [*lines, ""]


def cell(outcome: Outcome | None) -> str:
    """Write an outcome for the table."""
    if outcome is None:
        return ""
    if outcome.left is None or outcome.verdict == "no-op":
        return outcome.verdict
    return f"{outcome.verdict}, {1 - outcome.left:.0%} gone"


def page(found: Found, ours: float, theirs: float) -> str:
    """Write the page."""
    packages = ("torch", "timm", "torchvision", "transformers", "diffusers", "vit-pytorch", "torch-pruning")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    failed = [x for x in found.values() if x.tool == OURS and x.verdict not in ("exact", "not built")]
    lines = [
        "# Architectures of other libraries",
        "",
        "Architectures at their smallest sizes, random weights, half of the units of every group removed by "
        "magnitude (`Units(0.5)`), beside Torch-Pruning with `pruning_ratio=0.5` (output layer ignored, "
        "heads declared, the better of its two ways to treat heads). Both are judged by the values of the "
        "pruned network's parameters, as in [models.md](models.md). One output counts where a model returns "
        "several. Mixtures of experts, whose kernels refuse float64, are compared in float32; Torch-Pruning "
        "is not judged there.",
        "",
        f"{sum(tool == OURS for _, tool in found)} of {len(ARCHITECTURES)} architectures have run with "
        f"Secateur so far, {sum(tool == THEIRS for _, tool in found)} with Torch-Pruning. "
        f"Written by `python benchmarks/architectures.py` with {versions}; {ours:.0f} seconds of processor "
        f"time each, {theirs:.0f} for Torch-Pruning, which needs less or does not end. The verdicts:",
        "",
        *(f"- **{verdict}**: {meaning}" for verdict, meaning in VERDICTS.items()),
        "",
        "## Totals",
        "",
        *totals(found),
        "## What Secateur refuses, and what fails",
        "",
        *(f"- {x.model}, {x.verdict}: `{first_line(x)}`" for x in failed[:REFUSALS]),
        "",
    ]
    for library, entries in LIBRARIES.items():
        lines += [f"## {library}", "", f"| architecture | {OURS} | {THEIRS} |", "|---|---|---|"]
        for entry in entries:
            both = [found.get((entry.name, tool)) for tool in (OURS, THEIRS)]
            if any(both):
                lines.append(f"| {entry.name.split('/')[1]} | {' | '.join(map(cell, both))} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def first_line(outcome: Outcome) -> str:
    """Return the first line of the details of an outcome, without the paths of this machine."""
    return PLACES.sub("", (outcome.detail.strip().splitlines() or [""])[0])[:250].replace("`", "'")


def warm_up() -> None:
    """Import in this process what every forked process needs: torch.export and the models' libraries."""
    prune_half(ARCHITECTURES["transformers/llama"].build(), ARCHITECTURES["transformers/llama"].example())
    ARCHITECTURES["timm/test_resnet"].build()


def main() -> None:
    """Run the architectures whose names contain a pattern, or write the page from what was run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, required=True, help="outcomes, one a line; these are not run again"
    )
    parser.add_argument("--only", default="", help="part of the names of the architectures to run")
    parser.add_argument("--tool", choices=[OURS, THEIRS], help="one of the two")
    parser.add_argument("--limit", type=float, default=90, help="processor seconds for each of Secateur")
    parser.add_argument("--their-limit", type=float, default=20, help="the same for Torch-Pruning")
    parser.add_argument("--table", type=Path, help="page to write from the outcomes; nothing is run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = read(options.json)
    if options.table:
        options.table.write_text(page(found, options.limit, options.their_limit))
        return
    warm_up()
    names = list(ARCHITECTURES)
    random.Random(0).shuffle(names)  # an interrupted run is a fair sample
    for name in names:
        entry = ARCHITECTURES[name]
        for tool in [options.tool] if options.tool else [OURS, THEIRS]:
            if options.only not in name or (name, tool) in found:
                continue
            outcome = run(entry, tool, options.limit if tool == OURS else options.their_limit)
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            print(f"{name:46s} {tool:14s} {cell(outcome):22s} {first_line(outcome)[:140]}", flush=True)


if __name__ == "__main__":
    main()
