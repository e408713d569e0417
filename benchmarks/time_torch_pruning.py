"""How long it takes to decide and to shrink: Secateur and Torch-Pruning on the same networks.

Run `python benchmarks/time_torch_pruning.py` (some minutes).  One JSON line a network: medians of the CPU
seconds of one process and one thread, the tools in turn.  Torch-Pruning: building the pruner (with its
dependency graph) and `step()`.  Secateur: tracing without `torch.export` (whose time stands apart),
deciding by magnitude, shrinking; the check in float64 that the shrunk network computes what the masked
one does, which Torch-Pruning does not make, stands apart too.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bank.huggingface import build  # noqa: E402
from bank.resnet import ResNet, vgg16_bn  # noqa: E402

from secateur.apply.shrink import shrink  # noqa: E402
from secateur.core import Units  # noqa: E402
from secateur.pruning import plan  # noqa: E402
from secateur.tracing.trace import trace  # noqa: E402

LLAMA = {
    "hidden_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
    "vocab_size": 2000,
    "use_cache": False,
}
Times = dict[str, float]


def secateur_seconds(model: nn.Module, example: Any) -> Times:
    """Time each stage of Secateur."""
    export, captured = torch.export.export, [0.0]

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return export(*args, **kwargs)
        finally:
            captured[0] += time.process_time() - start

    torch.export.export = timed
    try:
        marks = [time.process_time()]
        network = trace(model, example)
    finally:
        torch.export.export = export
    marks.append(time.process_time())
    decided = plan(network, "magnitude", Units(0.5))
    marks.append(time.process_time())
    shrink(model, decided, check=False)
    marks.append(time.process_time())
    shrink(model, decided)
    marks.append(time.process_time())
    traced, planned, shrunk, checked = (b - a for a, b in itertools.pairwise(marks))
    own = traced - captured[0] + planned + shrunk
    return {
        "export": captured[0],
        "trace": traced - captured[0],
        "plan": planned,
        "shrink": shrunk,
        "own": own,
        "check": checked - shrunk,
    }


def torch_pruning_seconds(model: nn.Module, example: Any) -> Times:
    """Time building and stepping Torch-Pruning's pruner on a copy."""
    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    marks = [time.process_time()]
    pruner = tp.pruner.BasePruner(
        model, example, tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[last]
    )
    marks.append(time.process_time())
    pruner.step()
    marks.append(time.process_time())
    return {"build": marks[1] - marks[0], "step": marks[2] - marks[1], "own": marks[2] - marks[0]}


def medians(rows: list[Times]) -> Times:
    """Return the median of each time, rounded to milliseconds."""
    return {key: round(median(row[key] for row in rows), 3) for key in rows[0]}


def measure(
    model: nn.Module, example: Any, tools: dict[str, Callable[..., Times]], repeats: int
) -> dict[str, Times]:
    """Run the tools in turn, once to warm up and then `repeats` times."""
    rows: dict[str, list[Times]] = defaultdict(list)
    for round_ in range(repeats + 1):
        for name, tool in tools.items():
            times = tool(model, example)
            if round_:
                rows[name].append(times)
    return {name: medians(row) for name, row in rows.items()}


def main() -> None:
    """Time every network; Torch-Pruning does not return on grouped queries and is left out there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each tool")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    both = {"secateur": secateur_seconds, "torch_pruning": torch_pruning_seconds}
    small, large = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 224, 224)
    llama = {"input_ids": torch.randint(2000, (2, 16))}
    cases: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Callable[..., Times]]]] = {
        "VGG-16-BN, 32 x 32": (lambda: vgg16_bn(64), small, both),
        "ResNet-18, 32 x 32": (lambda: ResNet((2, 2, 2, 2), 64), small, both),
        "ResNet-18, 224 x 224": (lambda: ResNet((2, 2, 2, 2), 64, 1000), large, both),
        "Llama, 16 layers, 8 heads, 2 key-value heads": (
            lambda: build("LlamaConfig", "LlamaForCausalLM", **LLAMA).float(),
            llama,
            {"secateur": secateur_seconds},
        ),
    }
    for name, (make, example, tools) in cases.items():
        found: dict[str, Any] = measure(make().eval(), example, tools, options.repeats)
        if "torch_pruning" in found:
            found["ratio"] = round(found["secateur"]["own"] / found["torch_pruning"]["own"], 2)
        print(json.dumps({"network": name, **found, "threads": 1, "repeats": options.repeats}), flush=True)


if __name__ == "__main__":
    main()
