"""What half of the multiply-accumulates is worth in time: eager, compiled and in ONNX Runtime.

Run `python benchmarks/runtimes.py > rows.jsonl` on an idle machine (needs what `latency_budgets.py` needs, a
C++ compiler for `torch.compile`, and the extra `onnx`), then `--table rows.jsonl`.  The original and the
pruned network are measured in turn in the same runtime, with the same threads; weights are random, which
does not matter for the time.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_budgets import NETWORKS
from processor_time import PROCESSOR_TIME, use_processor_time
from torch import Tensor, nn

import secateur as sc
from secateur.core.markdown import markdown_table
from secateur.measure.latency import resize_batch, time_in_turn, timed, using_threads

CPU = torch.device("cpu")
Batch = Tensor | dict[str, Tensor]
Runner = Callable[[nn.Module, Batch, int], Callable[[], Any]]


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model with one tensor or with keyword arguments."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def eager(model: nn.Module, batch: Batch, threads: int) -> Callable[[], Any]:
    """Return a pass of the model as it is."""
    return lambda: call(model, batch)


def compiled(model: nn.Module, batch: Batch, threads: int) -> Callable[[], Any]:
    """Return a pass of the compiled model."""
    torch.compiler.reset()
    fast: Any = torch.compile(model, dynamic=False)
    return lambda: call(fast, batch)


def onnx_runtime(model: nn.Module, batch: Batch, threads: int) -> Callable[[], Any]:
    """Return a pass of the exported model in ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        named = batch if isinstance(batch, dict) else None
        args = () if isinstance(batch, dict) else (batch,)
        torch.onnx.export(model, args, path, kwargs=named, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tensors = batch.values() if isinstance(batch, dict) else (batch,)
    feed = {x.name: tensor.numpy() for x, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feed)


RUNTIMES: dict[str, Runner] = {"eager": eager, "compiled": compiled, "ONNX Runtime": onnx_runtime}


def halve(name: str, step: int) -> tuple[nn.Module, nn.Module, Any, float]:
    """Return a network, the same with half of its multiply-accumulates, an input and what is left."""
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    model.eval()
    budget = sc.Macs(0.5, round_to=step)
    result = sc.prune(model, example, budget, method="magnitude", check=False, progress=False)
    macs = [x.cost.macs for x in (result.report.before, result.report.after)]
    return model, result.model.eval(), example, macs[1] / macs[0]


def compare(models: tuple[nn.Module, nn.Module], batch: Any, runtime: str, threads: int) -> dict[str, Any]:
    """Measure both networks in turn in a runtime."""
    with torch.inference_mode(), using_threads(threads):
        runs = {i: timed(RUNTIMES[runtime](model, batch, threads), CPU) for i, model in enumerate(models)}
        times = time_in_turn(runs, 15, 2, 40.0, random.Random(0), shortest=0.03)
    ratios = np.array(times[0]) / np.array(times[1])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {
        "original_ms": float(1e3 * np.median(times[0])),
        "speedup": float(middle),
        "spread": float((high - low) / middle),
    }


def operations(models: tuple[nn.Module, nn.Module], batch: Any) -> list[dict[str, Any]]:
    """Return the eager processor time of both networks by operation: what does not shrink, and what does."""
    runs, found = 20, []
    for model in models:
        with torch.inference_mode(), using_threads(1):
            call(model, batch)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(runs):
                    call(model, batch)
        found.append({x.key: 1e-3 * x.self_cpu_time_total / runs for x in profile.key_averages()})
    largest = sorted(found[0], key=lambda name: -found[0][name])[:5]
    rows = [{"operation": name, "ms": found[0][name], "pruned": found[1].get(name, 0.0)} for name in largest]
    whole = [sum(times.values()) for times in found]
    rest = [total - sum(row[key] for row in rows) for total, key in zip(whole, ("ms", "pruned"), strict=True)]
    rows.append({"operation": "all others", "ms": rest[0], "pruned": rest[1]})
    return [{**row, "left": f"{row['pruned'] / row['ms']:.0%}"} for row in rows]


def table(lines: list[str]) -> str:
    """Return JSON lines as a Markdown table: a row for each network, batch and number of threads."""
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in map(json.loads, lines):
        case = row["network"], row["batch"], row["threads"]
        cells = rows.setdefault(case, dict(zip(("network", "batch", "threads"), case, strict=True)))
        cells["MACs left"] = f"{row['macs']:.0%}"
        text = row["failed"] if "failed" in row else f"{row['original_ms']:.3g} ms, {row['speedup']:.2f} x"
        cells[row["runtime"]] = text
    listed = list(rows.values())
    return markdown_table(listed, tuple(dict.fromkeys(key for row in listed for key in row)))


def main() -> None:
    """Measure every case, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, with commas")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="names, with commas")
    parser.add_argument("--batches", default="1,64", help="examples in a pass, with commas")
    parser.add_argument("--threads", default="1,2", help="threads, with commas")
    parser.add_argument("--step", type=int, default=16, help="widths are multiples of this")
    parser.add_argument("--processor-time", action="store_true", help=PROCESSOR_TIME)
    parser.add_argument("--operations", action="store_true", help="print eager time by operation, batch 1")
    parser.add_argument("--table", type=Path, help="print a file of such lines as Markdown instead")
    options = parser.parse_args()
    if options.table:
        print(table(options.table.read_text().splitlines()))
        return
    warnings.filterwarnings("ignore", "without data")
    if options.processor_time:
        use_processor_time()
        options.threads = "1"
    for name in options.networks.split(","):
        model, small, example, macs = halve(name, options.step)
        if options.operations:
            print(
                f"{name}\n\n{markdown_table(operations((model, small), resize_batch((example,), 0, 1)[0]))}\n"
            )
            continue
        for batch in map(int, options.batches.split(",")):
            (resized,) = resize_batch((example,), 0, batch)
            for threads in map(int, options.threads.split(",")):
                for runtime in options.runtimes.split(","):
                    row = {"network": name, "batch": batch, "threads": threads, "runtime": runtime}
                    row["macs"] = round(macs, 3)
                    start = time.perf_counter()
                    try:
                        row |= compare((model, small), resized, runtime, threads)
                    except Exception as error:
                        row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                    print(json.dumps({**row, "seconds": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
