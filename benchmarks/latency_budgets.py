"""Budgets of 70 and 50 % of the time: how close the measured network comes, on six kinds of networks.

Run `python benchmarks/latency_budgets.py` on an idle machine (needs torchvision, transformers and, for
EfficientNet-Lite0, efficientnet-lite-pytorch).  Prints one JSON line a case.  Weights are random: they do not
matter for the time.  The pruned network is measured once more at the end, so that the figure is not the one
that the correction chose by.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processor_time import PROCESSOR_TIME, use_processor_time
from torch import Tensor, nn

import secateur as sc
from secateur.core import SecateurError
from secateur.core.markdown import markdown_table
from secateur.latency_budget import time_models

PIXELS = (3, 224, 224)


class Classifier(nn.Module):
    """Two LSTM layers of 512 units, and a linear layer on the last output."""

    def __init__(self) -> None:
        """Read 128 numbers at each step."""
        super().__init__()
        self.rnn, self.last = nn.LSTM(128, 512, 2, batch_first=True), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, features] to [B, 10]."""
        return self.last(self.rnn(x)[0][:, -1])


def resnet18() -> tuple[nn.Module, Any]:
    """Return ResNet-18 and images of 224 x 224."""
    from torchvision.models import resnet18

    return resnet18(), torch.randn(2, *PIXELS)


def mobilenet_v2() -> tuple[nn.Module, Any]:
    """Return MobileNetV2 and images of 224 x 224."""
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(), torch.randn(2, *PIXELS)


def efficientnet_lite0() -> tuple[nn.Module, Any]:
    """Return EfficientNet-Lite0 and images of 224 x 224."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0"), torch.randn(2, *PIXELS)


def lstm() -> tuple[nn.Module, Any]:
    """Return the classifier and sequences of 32 steps."""
    return Classifier(), torch.randn(2, 32, 128)


def vit() -> tuple[nn.Module, Any]:
    """Return a vision transformer of six layers of 384 features and images of 224 x 224."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, 6, 6, 384, 1536), torch.randn(2, *PIXELS)


def llama() -> tuple[nn.Module, Any]:
    """Return two blocks of the shape of Llama 3.2 1B, but for a small vocabulary, and 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32}
    config = LlamaConfig(
        vocab_size=1000, num_hidden_layers=2, num_key_value_heads=8, use_cache=False, **sizes
    )
    return LlamaForCausalLM(config), {"input_ids": torch.randint(1000, (2, 128))}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "ResNet-18": resnet18,
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-Lite0": efficientnet_lite0,
    "LSTM": lstm,
    "ViT": vit,
    "Llama block": llama,
}


def measure(name: str, keep: float, batch: int, threads: int, scope: str) -> dict[str, Any]:
    """Prune one network to a share of its time and describe what came of it."""
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    model.eval()
    budget = sc.Latency(keep, scope, batch=batch, threads=threads)  # type: ignore[arg-type]
    start = time.perf_counter()
    row: dict[str, Any] = {"network": name, "batch": batch, "threads": threads, "keep": keep}
    try:
        result = sc.prune(model, example, budget, method="magnitude", check=False, progress=False)
    except SecateurError as error:
        return {**row, "refused": str(error)}
    (note,) = result.report.notes["latency"]
    again = time_models(model, result.model, result.graph, budget)
    macs = [x.cost.macs for x in (result.report.before, result.report.after)]
    return {
        **row,
        "original_ms": round(note["original"], 3),
        "predicted": round(note["predicted"] / note["original"], 3),
        "measured": round(note["measured"] / note["original"], 3),
        "again": round(again.ratio, 3),
        "spread": round(again.spread, 3),
        "within_5_percent": abs(again.ratio / keep - 1) <= 0.05,
        "plans": note["plans"],
        "step": note["step"],
        "macs": round(macs[1] / macs[0], 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(lines: list[str]) -> str:
    """Return JSON lines as a Markdown table: shares of the original's time."""
    rows = []
    for row in map(json.loads, lines):
        case = {"network": row["network"], "batch": row["batch"], "budget": f"{row['keep']:.0%}"}
        if "refused" in row:
            rows.append({**case, "measured": row["refused"]})
            continue
        rows.append(
            {
                **case,
                "original": f"{row['original_ms']:.3g} ms",
                "predicted": f"{row['predicted']:.1%}",
                "measured": f"{row['again']:.1%}",
                "within 5 %": "yes" if row["within_5_percent"] else "no",
                "spread": f"{row['spread']:.1%}",
                "plans": row["plans"],
                "step": row["step"],
                "MACs": f"{row['macs']:.0%}",
            }
        )
    return markdown_table(rows, tuple(dict.fromkeys(key for row in rows for key in row)))


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, with commas")
    parser.add_argument("--batches", default="1,32", help="examples in a pass, with commas")
    parser.add_argument("--keep", default="0.7,0.5", help="shares of the time, with commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--scope", default="layer", help="layer, global or erk")
    parser.add_argument("--processor-time", action="store_true", help=PROCESSOR_TIME)
    parser.add_argument("--table", type=Path, help="print a file of such lines as Markdown instead")
    options = parser.parse_args()
    if options.table:
        print(table(options.table.read_text().splitlines()))
        return
    warnings.filterwarnings("ignore", "without data")
    if options.processor_time:
        use_processor_time()
        options.threads = 1
    for name in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            for keep in map(float, options.keep.split(",")):
                row = measure(name.strip(), keep, batch, options.threads, options.scope)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
