"""Processor time in place of the clock, for benchmarks of one thread on a machine that others use, too."""

from __future__ import annotations

import time
import types

import torch

from secateur.measure import latency

__all__ = ["PROCESSOR_TIME", "use_processor_time"]

PROCESSOR_TIME = "measure the processor time of one thread: close to what an idle machine shows"


def use_processor_time() -> None:
    """Make every latency of this process one of processor time, with one thread."""
    torch.set_num_threads(1)
    latency.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
