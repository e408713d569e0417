"""Secateur and Torch-Pruning on every model of the test bank: who returns the network that was asked for?

Each tool is asked to remove half of the units of every layer but the output, in a process of its own
with a time limit.  Both are judged by the same oracle (`tests/oracles.py`), which knows no plan: the
values of the pruned network's parameters say which entries of the original they are; the original
with all other entries set to zero says what the output must be, on inputs that neither tool has
seen, at two batch sizes, in float64.

    python benchmarks/compare_torch_pruning.py --write docs/models.md
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import oracles  # noqa: E402
from bank import BANK, FAMILIES, Entry  # noqa: E402
from torch_pruning_runs import secateur_half, torch_pruning_half  # noqa: E402

from secateur.core import SecateurError  # noqa: E402

PLACES = re.compile(
    "|".join([r"\S*/site-packages/", *(f"{re.escape(x)}/" for x in [str(ROOT), *sys.path] if x)])
)
VERDICTS = {
    "exact": "the network that masking the original gives, to 1e-10 of the largest output",
    "refused": "an error that says what stands in the way; nothing is changed",
    "narrowed": "smaller, but a LayerNorm, RMSNorm or GroupNorm takes its statistics over fewer features: "
    "not the masked network",
    "no-op": "nothing was removed, and nothing said so",
    "wrong": "runs, but its output is neither: other units' entries are gone, or an attention scale changed",
    "crash": "an unexpected exception, while pruning or when the pruned network runs",
    "no answer": "stopped at the time limit",
}


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a model: a verdict, the share of parameters left, and details."""

    model: str
    tool: str
    verdict: str
    left: float | None = None
    deviation: float | None = None
    seconds: float | None = None
    detail: str = ""


def judge(entry: Entry, original: nn.Module, small: nn.Module) -> tuple[str, float, float]:
    """Return the verdict, the share of parameters left and the deviation of a pruned network."""
    left = oracles.size(small) / oracles.size(original)
    for example in oracles.other_examples(entry):
        oracles.run(copy.deepcopy(small), example)  # a model may keep the state of its last batch
    deviation = oracles.deviation(entry, original, small)
    if deviation < oracles.TOLERANCE:
        return ("exact" if left < 1 else "no-op"), left, deviation
    full = oracles.renormalised(original, small)
    if full is not None and oracles.gap(entry, small, full) < oracles.TOLERANCE:
        return "narrowed", left, deviation
    return "wrong", left, deviation


def attempt(entry: Entry, tool: str, prune: Callable[[Entry, nn.Module], nn.Module]) -> Outcome:
    """Prune one model by one tool and judge the result."""
    original = oracles.perturb(entry.build())

    def job() -> Outcome:
        start = time.process_time()
        small = prune(entry, original)
        seconds = time.process_time() - start
        return Outcome(entry.name, tool, *judge(entry, original, small), seconds)

    return guarded(job, entry.name, tool)


def guarded(job: Callable[[], Outcome], name: str, tool: str) -> Outcome:
    """Return the outcome of a job, also where it ends in an error."""
    try:
        return job()
    except oracles.NotAPart as error:
        return Outcome(name, tool, "wrong", detail=str(error))
    except SecateurError as error:
        return Outcome(name, tool, "refused", detail=f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome(name, tool, "crash", detail=f"{type(error).__name__}: {error}")


def isolated(job: Callable[[], Outcome], name: str, tool: str, limit: float) -> Outcome:
    """Run a job in a forked process; stop it after `limit` seconds of processor time."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work(pipe: Connection) -> None:
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        pipe.send(job())

    process = context.Process(target=work, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            return Outcome(name, tool, "no answer", detail=f"stopped after {limit:.0f} s")
        return Outcome(name, tool, "crash", detail=f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def best(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome whose verdict stands first among `VERDICTS`."""
    return min(outcomes, key=lambda outcome: list(VERDICTS).index(outcome.verdict))


def ours(entry: Entry, limit: float) -> Outcome:
    """Run Secateur on an entry."""
    return isolated(lambda: attempt(entry, "Secateur", secateur_half), entry.name, "Secateur", limit)


def theirs(entry: Entry, limit: float) -> Outcome:
    """Run Torch-Pruning on an entry, in each of its ways to treat heads."""
    found: list[Outcome] = []
    for whole in (False, True) if entry.heads else (False,):
        prune = partial(torch_pruning_half, whole_heads=whole)
        job = partial(attempt, entry, "Torch-Pruning", prune)
        found.append(isolated(job, entry.name, "Torch-Pruning", limit))
        if found[-1].verdict in ("exact", "no answer"):
            break
    return best(found)


def cell(outcome: Outcome) -> str:
    """Write an outcome for the table."""
    if outcome.left is None or outcome.verdict == "no-op":
        return outcome.verdict
    return f"{outcome.verdict}, {outcome.left:.0%} left"


def totals(outcomes: Iterable[Outcome], families: Iterable[str]) -> list[str]:
    """Write the table of totals over some families."""
    names = {entry.name for family in families for entry in FAMILIES[family]}
    counts: dict[str, Counter[str]] = {"Secateur": Counter(), "Torch-Pruning": Counter()}
    for outcome in outcomes:
        if outcome.model in names:
            counts[outcome.tool][outcome.verdict] += 1
    lines = ["| | Secateur | Torch-Pruning |", "|---|---|---|"]
    lines += [f"| {v} | {counts['Secateur'][v]} | {counts['Torch-Pruning'][v]} |" for v in VERDICTS]
    return [*lines, f"| models | {counts['Secateur'].total()} | {counts['Torch-Pruning'].total()} |", ""]


def page(outcomes: list[Outcome], limit: float) -> str:
    """Write docs/models.md."""
    found = {(outcome.model, outcome.tool): outcome for outcome in outcomes}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch-pruning", "torch", "transformers"))
    lines = [
        "# Models",
        "",
        "Every model of the test bank, half of the units of every layer but the output removed, by Secateur "
        "(a random half of every group) and by Torch-Pruning (`pruning_ratio=0.5`, L2 magnitude, otherwise "
        "its defaults; output layer ignored, heads declared, attributes of attention modules set anew as in "
        "its examples, the better of its two ways to treat heads).",
        "",
        f"Written by `python benchmarks/compare_torch_pruning.py --write docs/models.md` with {versions}, "
        f"Python {platform.python_version()}; {limit:.0f} seconds of processor time each.",
        "",
        "Both are judged by the values of the pruned network's parameters, which say which entries of the "
        "original they are. The original with all other entries set to zero must give the same output "
        "in float64 on inputs that neither tool has seen, at two batch sizes. The verdicts:",
        "",
        *(f"- **{verdict}**: {meaning}" for verdict, meaning in VERDICTS.items()),
        "",
        "## Totals",
        "",
        "Networks that people build:",
        "",
        *totals(outcomes, [family for family in FAMILIES if family not in ("Hard cases", "Hugging Face")]),
        "Hugging Face families, tiny configurations:",
        "",
        *totals(outcomes, ["Hugging Face"]),
        "Hard cases, made to catch careless rules:",
        "",
        *totals(outcomes, ["Hard cases"]),
    ]
    for family, entries in FAMILIES.items():
        lines += [f"## {family}", "", "| model | Secateur | Torch-Pruning |", "|---|---|---|"]
        rows = [e.name for e in entries if (e.name, "Secateur") in found]
        lines += [
            f"| {name} | {cell(found[name, 'Secateur'])} | {cell(found[name, 'Torch-Pruning'])} |"
            for name in rows
        ]
        lines += ["", *details(found, rows)]
    return "\n".join(lines).rstrip() + "\n"


def details(found: dict[tuple[str, str], Outcome], names: list[str]) -> list[str]:
    """Quote the first line of what was said of models that were refused or crashed."""
    lines = []
    for name in names:
        for tool in ("Secateur", "Torch-Pruning"):
            outcome = found[name, tool]
            if outcome.detail and outcome.verdict != "no answer":
                first = PLACES.sub("", outcome.detail.strip().splitlines()[0])[:200].replace("`", "'")
                lines.append(f"- {name}, {tool}: `{first}`")
    return [*lines, ""] if lines else []


def before(path: Path | None) -> dict[tuple[str, str], Outcome]:
    """Return the outcomes of an interrupted run by model and tool."""
    if path is None or not path.exists():
        return {}
    outcomes = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
    return {(outcome.model, outcome.tool): outcome for outcome in outcomes}


def main() -> None:
    """Compare on the models whose names contain a pattern, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the models to run")
    parser.add_argument("--limit", type=float, default=60, help="processor seconds for each model and tool")
    parser.add_argument("--write", type=Path, help="page to write, in Markdown")
    parser.add_argument(
        "--json", type=Path, help="raw outcomes, one a line; those that it has are not run again"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = before(options.json)
    for name, entry in BANK.items():
        for tool, run in TOOLS.items():
            if options.only in name and (name, tool) not in found:
                found[name, tool] = run(entry, options.limit)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(asdict(found[name, tool])) + "\n")
                print(f"{name:48s} {tool:14s} {cell(found[name, tool])}", flush=True)
    if options.write:
        options.write.write_text(page(list(found.values()), options.limit))
    else:
        print("\n".join(totals(found.values(), FAMILIES)))


TOOLS = {"Secateur": ours, "Torch-Pruning": theirs}

if __name__ == "__main__":
    main()
