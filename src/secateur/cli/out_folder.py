"""The folder of ``secateur prune --out``: one of transformers if possible, else one of Secateur's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from secateur.cli.options import PAGE, check_writable
from secateur.cli.printing import print_line, warn
from secateur.core import ExactnessError, InputError, StoreError
from secateur.formats.store import DOCUMENT, REPORT
from secateur.html import write_html
from secateur.pretrained import is_pretrained, load_tokenizer
from secateur.report import Report
from secateur.result import Result

__all__ = ["add_report", "check_out_folder", "save_result"]

GGUF = ".gguf"


def check_out_folder(folder: Path | None, onnx: bool, model: str) -> None:
    """Check that a pruned model can be written into a folder.

    Raises:
        InputError: If `onnx` is given without a folder, or for a folder of transformers.
        StoreError: If the folder is not writable, or holds the user's own files.
    """
    if folder is not None:
        check_writable(folder, replaced=[PAGE], mark=DOCUMENT)
        if is_pretrained(model) and folder.is_dir() and any(folder.iterdir()):
            raise StoreError(f"{folder} holds files: name a new folder, or an empty one")
        if is_pretrained(model) and onnx:
            raise InputError("--onnx is not for folders of transformers: use Result.to_onnx in Python")
    elif onnx:
        raise InputError("--onnx writes into the folder that --out names: give --out")


def save_result(
    result: Result,
    folder: Path | None,
    model: str,
    tokenizer: Any,
    uneven: Literal["pad", "code"],
    onnx: bool,
) -> None:
    """Write a pruned model and its report.

    Args:
        result: What `prune` returned.
        folder: Where; None for nowhere.
        model: Name of the original.  A folder of transformers becomes another one, if its config can state
            the sizes.
        tokenizer: The tokenizer or its folder, if it is not that of the model.
        uneven: What to do if its config cannot state the sizes; see `Result.save_pretrained`.
        onnx: Whether to write model.onnx, too.
    """
    own = not is_pretrained(model)
    if folder is None or own or not _save_pretrained(result, folder, model, tokenizer, uneven):
        _save(result, folder, onnx)


def _save_pretrained(
    result: Result, folder: Path, model: str, tokenizer: Any, uneven: Literal["pad", "code"]
) -> bool:
    """Write a folder of transformers and the report; return False if it cannot state the sizes."""
    tokens: Any = tokenizer
    if tokens is None and model.endswith(GGUF):
        tokens = load_tokenizer(model)
    try:
        result.save_pretrained(folder, tokens)
    except (InputError, ExactnessError) as error:
        try:
            result.save_pretrained(folder, tokens, uneven=uneven)
        except (InputError, ExactnessError):
            warn(f"no folder of transformers was written, but one that secateur.load reads: {error}")
            return False
        how = {
            "pad": "filled up with units of zeros, so the folder has more parameters than the report",
            "code": "the folder has a modelling file and loads with trust_remote_code=True",
        }
        warn(f"{how[uneven]}: {error}")
    add_report(result.report, folder)
    return True


def add_report(report: Report, folder: Path) -> None:
    """Write a report into a folder that `from_pretrained` loads, and say where both are."""
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    page = write_html(report, folder / PAGE)
    print_line(f"saved in {folder}, which from_pretrained loads without Secateur; report: {page}")


def _save(result: Result, folder: Path | None, onnx: bool) -> None:
    """Write weights, plan, report and, if asked for, an ONNX file; that first, since it may be refused."""
    if folder is None:
        warn("nothing was saved: name a folder with --out")
        return
    if onnx:
        any_batch = result.to_onnx(folder / "model.onnx")
        print_line(
            f"model.onnx takes {'any batch size' if any_batch else 'inputs of the example sizes only'}"
        )
    result.save(folder)
    print_line(f"saved in {folder}; report: {write_html(result.report, folder / PAGE)}")
