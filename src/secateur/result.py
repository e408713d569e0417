"""What a pruning gives: the model, the plan, the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateur.batches import as_batches
from secateur.comparison import with_measurements
from secateur.core import InputError, Plan, PruningGraph, StoreError, brief
from secateur.core.paths import write_text
from secateur.execution import check_flags, one_at_a_time
from secateur.formats import store
from secateur.formats.certificate import hash_batches, make_certificate
from secateur.measure.metrics import Metric
from secateur.report import Report
from secateur.views import narrow_example

__all__ = ["Result", "load_report"]


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns.

    Attributes:
        model: The pruned model, a new module.
        plan: What went, and why: one plan on the original model, whatever the number of steps.
        report: Before and after, and how it came about.
        graph: What tracing found in the original model.
        original: The original model, to measure against.
    """

    model: nn.Module
    plan: Plan
    report: Report
    graph: PruningGraph
    original: nn.Module

    @one_at_a_time
    def measure(
        self,
        holdout: Iterable[Any] | None = None,
        metric: str | Metric | None = None,
        *,
        latency: bool = False,
        batch_sizes: Sequence[int] = (1, 64),
        batch_axis: int = 0,
        name: str | None = None,
        prompt: Tensor | None = None,
    ) -> Result:
        """Compare the pruned model with the original; return the result with these numbers in its report.

        Args:
            holdout: Batches that neither the method nor the repair looked at.  Without them, the outputs are
                compared on the example inputs.
            metric: Name of a metric or a callable (model, batches) -> float, more is better.  By default the
                accuracy if the targets are class numbers, else none.
            latency: Whether to measure the latency of both models, in alternation.
            batch_sizes: Batch sizes of the latency, ten seconds for each at most.
            batch_axis: Axis of the batch in the example inputs.
            name: Name of the held-out batches.  The report keeps the metric of each name; with a name, the
                outputs are compared on a few sequences only.
            prompt: Token numbers [1, length] for a causal language model; its tokens per second are measured
                from there.

        Raises:
            InputError: If an argument is invalid, or a model cannot run on the batches.
        """
        check_flags(latency=latency)
        if not isinstance(name, str | None):
            raise InputError(f"name must be a string, such as 'test'; got {brief(name)}")
        batches = None if holdout is None else as_batches(holdout)
        report = with_measurements(
            self.report,
            self.original,
            self.model,
            self.plan,
            batches,
            metric,
            batch_sizes=batch_sizes if latency else (),
            batch_axis=batch_axis,
            name=name,
            prompt=prompt,
        )
        if isinstance(batches, list):  # a loader may draw others at the next pass
            report = replace(report, holdout={**report.holdout, name or "": hash_batches(batches)})
        return replace(self, report=report)

    def certificate(self, path: str | Path | None = None) -> dict[str, Any]:
        """Return a certificate: what anyone with the original model can recompute, by `secateur verify`.

        It holds hashes of the original, the plan and the result, the versions, how exact the removal was and
        on which inputs, the sizes and the metrics.  `save` writes it into the folder.

        Args:
            path: A JSON file to write the certificate to.

        Raises:
            StoreError: If the file cannot be written.
        """
        made = make_certificate(self.original, self.model, self.plan, self.report)
        if path is not None:
            write_text(path, json.dumps(made, indent=1, allow_nan=False))
        return made

    def save(self, folder: str | Path) -> None:
        """Write model, plan, report and certificate to a folder; `load` reads it back.

        Raises:
            StoreError: If the folder cannot be written; it then stays as it was.
        """
        report = self.report
        store.save(folder, self.model, self.plan, report.to_dict(), report.versions, self.certificate())

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, *, uneven: Literal["error", "pad", "code"] = "error"
    ) -> float:
        """Write the pruned model as a folder of transformers, which `from_pretrained` loads without Secateur.

        The config gets the new sizes.  RMSNorm is rescaled where the width of the residual stream was cut.
        The folder is loaded again with the plain class and compared on the example inputs before it gets its
        name; an error leaves nothing behind.

        Args:
            folder: Created; it may exist if it is empty.
            tokenizer: A tokenizer of transformers, or a folder with its files.  By default those files are
                copied from the folder that the original was loaded from.
            uneven: What to do if the config cannot state the sizes, because layers of the same kind keep
                unequal counts or because it has no number for them: ``"error"``; ``"pad"`` with units of
                zeros, which is exact and saves less; or ``"code"``, which writes a modelling file into the
                folder, which then loads with ``trust_remote_code=True``.  Budgets with ``even=True`` need
                none of these.

        Returns:
            The largest difference of the outputs, relative to the largest output.

        Raises:
            InputError: If the model is not from transformers or is quantized, or if its config cannot state
                the sizes.
            ExactnessError: If the loaded model does not compute what the pruned one does.
            StoreError: If the folder holds files or cannot be written.
        """
        from secateur.formats.transformers import save_pretrained  # transformers is an extra

        return save_pretrained(folder, self.model, self.plan, tokenizer, uneven)

    def to_gguf(
        self,
        path: str | Path,
        dtype: Literal["f32", "f16", "bf16", "q8_0"] = "f16",
        tokenizer: Any = None,
    ) -> float:
        """Write the pruned language model as a GGUF file, for llama.cpp (extra hf).

        Llama, Mistral, Mixtral, Qwen 2 and 3, Qwen 3 MoE and Gemma 3 whose layers keep equal counts are
        written as their own architecture; Llama and Mistral with unequal counts as ``deci``.  The file is
        read back and compared tensor by tensor before it gets its name.

        Args:
            path: The file, replaced if it exists.
            dtype: Type of the matrices.  With ``"q8_0"``, rows are ``f16`` if their length is not a multiple
                of 32.
            tokenizer: A fast BPE tokenizer of transformers, or a folder with its files; by default that of
                the folder that the original was loaded from.  Without any the file has none.

        Returns:
            The largest difference of a tensor after reading it, relative to its largest entry.

        Raises:
            InputError: If the model is of another family, or llama.cpp computes something else for it.
            ExactnessError: If the file does not hold the tensors of the model.
            StoreError: If the file cannot be written.
        """
        from secateur.formats.gguf import write_gguf  # gguf is an extra

        return write_gguf(path, self.model, self.plan, dtype, tokenizer)

    def to_onnx(self, path: str | Path) -> bool:
        """Write the pruned model as an ONNX file (extra onnx); return whether it accepts any batch size.

        Raises:
            CaptureError: If the model cannot be exported.
            ExactnessError: If the file does not compute what the model does.
        """
        from secateur.formats.onnx import export_any_batch  # onnx is an extra

        args, kwargs = narrow_example(self.graph, self.plan.keep)
        example = args if args else dict(kwargs)
        return export_any_batch(self.model, example, path)

    def __repr__(self) -> str:
        """Return a summary of a few lines."""
        return repr(self.report)


def load_report(folder: str | Path) -> Report:
    """Return the report of a saved result.

    Raises:
        StoreError: If the folder is missing, damaged, of a newer version, or has no report.
    """
    saved = store.read_report(folder)
    if saved is None:
        raise StoreError(f"{folder} was saved without a report")
    return Report.from_dict(saved)
