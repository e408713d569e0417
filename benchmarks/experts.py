"""Which whole experts to keep: those that add most, in sum or in the mean (REAP), most tokens, random ones.

A small Mixtral, and a small OLMoE whose weights of experts do not add up to 1, are trained here, on the
bytes of two kinds of text that Python comes with: the help topics of `pydoc`, and the source of the standard
library.  The first four fifths of each train and calibrate, the rest judges.  Prints the tables of
docs/language-models.md, "Whole experts".

    python benchmarks/experts.py
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator
from importlib import import_module
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig

import secateur as sc
from secateur.apply.experts import drop_experts, find_mixtures
from secateur.core.markdown import markdown_table
from secateur.measure.expert_use import measure_expert_use
from secateur.measure.metrics import perplexity

LENGTH, BATCH, DRAWS = 64, 16, 5
MODULES = ("argparse", "asyncio.tasks", "collections", "datetime", "decimal", "inspect", "logging", "pathlib")
MODULES += ("subprocess", "tarfile", "threading", "turtle", "typing", "unittest.mock", "zipfile")
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.02,
}
MIXTRAL = MixtralConfig(**SIZES, intermediate_size=64, num_local_experts=8)
OLMOE = OlmoeConfig(
    **SIZES,
    intermediate_size=32,
    num_experts=16,
    num_experts_per_tok=4,
    eos_token_id=None,
    norm_topk_prob=False,
)


def texts() -> dict[str, tuple[Tensor, Tensor]]:
    """Return by name the tokens that train and those that judge."""
    found = {
        "help": "\n".join(topics.topics.values()),
        "source": "\n".join(inspect.getsource(import_module(name)) for name in MODULES),
    }
    tokens = {name: torch.tensor(list(text.encode())) for name, text in found.items()}
    return {name: (x[: len(x) * 4 // 5], x[len(x) * 4 // 5 :]) for name, x in tokens.items()}


def sequences(tokens: Tensor, count: int, seed: int) -> Tensor:
    """Return sequences from random places [count, length]."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - LENGTH, (count,), generator=draw)
    return torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])


def train(config: Any, steps: int, parts: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """Return a model trained on both kinds of text."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        ids = torch.cat([sequences(x, BATCH // 2, step) for x, _ in parts.values()])
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        schedule.step()
    model.config.output_router_logits = False
    return model.eval()


def choices(
    model: Any, batches: list[Any]
) -> Iterator[tuple[str, Callable[[int], list[dict[str, list[int]]]]]]:
    """Yield ways to choose: a name, and the number that stay -> the experts that stay, of each draw."""
    use = measure_expert_use(model, batches)
    for by in ("total", "mean", "tokens"):
        yield by, lambda n, by=by: [{m: best(getattr(x, by), n) for m, x in use.items()}]
    draw = torch.Generator().manual_seed(0)
    mixtures = find_mixtures(model)
    yield (
        f"random, {DRAWS} draws",
        lambda n: [
            {m: best(torch.rand(x.count, generator=draw), n) for m, x in mixtures.items()}
            for _ in range(DRAWS)
        ],
    )


def best(scores: Tensor, count: int) -> list[int]:
    """Return the numbers of the largest scores, rising."""
    return scores.argsort(descending=True)[:count].sort().values.tolist()


def judge(model: Any, parts: dict[str, tuple[Tensor, Tensor]]) -> list[float]:
    """Return the perplexity by byte on each kind of text."""
    return [perplexity(model, [{"input_ids": sequences(x, 64, 1)}]) for _, x in parts.values()]


def compare_choices(model: Any, parts: dict[str, tuple[Tensor, Tensor]], batches: list[Any]) -> str:
    """Return a table of perplexities without experts, chosen in several ways."""
    whole = " / ".join(f"{x:.2f}" for x in judge(model, parts))
    total = next(iter(find_mixtures(model).values())).count
    counts = {f"{count} of {total}": count for count in (total, 7 * total // 8, 6 * total // 8, total // 2)}
    rows = [{"experts that stay": "all", f"{total} of {total}": whole}]
    for name, keep in choices(model, batches):
        row = {"experts that stay": name}
        for column, count in list(counts.items())[1:]:
            found = [judge(drop_experts(model, kept), parts) for kept in keep(count)]
            means = [statistics.mean(x) for x in zip(*found, strict=True)]
            row[column] = " / ".join(f"{x:.2f}" for x in means)
        rows.append(row)
    return markdown_table(rows, right=list(counts))


def compare_axes(model: Any, parts: dict[str, tuple[Tensor, Tensor]], batches: list[Any]) -> str:
    """Return a table of perplexities at equal parameters, the more whole experts gone, the fewer units."""
    rows = []
    example = {"input_ids": batches[0]["input_ids"][:2]}
    for experts in (None, 7, 6, 5):
        budget = sc.Params(0.65, of="body", even=True)
        whole = ["kind:hidden"]
        result = sc.prune(
            model, example, budget, batches, experts=experts, ignored_layers=whole, progress=False
        )
        figures = " / ".join(f"{x:.2f}" for x in judge(result.model, parts))
        units = result.report.kinds["expert units"]
        body = (result.report.after.cost.body or 0) / (result.report.before.cost.body or 1)
        row = {"experts in each": experts or 8, "units": f"{units['kept']} of {units['units']}"}
        rows.append({**row, "body": f"{body:.1%}", "perplexity": figures})
    return markdown_table(rows, right=("units", "body", "perplexity"))


def main() -> None:
    """Train, choose, judge."""
    parts = texts()
    batches = [{"input_ids": sequences(x, 8, 10_000 + i)} for i in range(4) for x, _ in parts.values()]
    mixtral = train(MIXTRAL, 1200, parts)
    print(compare_choices(mixtral, parts, batches))
    print(compare_axes(mixtral, parts, batches))
    print(compare_choices(train(OLMOE, 600, parts), parts, batches))


if __name__ == "__main__":
    main()
