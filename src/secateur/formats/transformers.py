"""Folders of transformers: a pruned model that `from_pretrained` loads without Secateur.

The folder is written to a draft beside its place, loaded again with the plain class and compared; then it is
renamed.  So an error leaves nothing behind.
"""

from __future__ import annotations

import copy
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from secateur.apply.deviation import deviation
from secateur.apply.float64 import run_float64
from secateur.apply.kept_tensors import check_shapes
from secateur.core import ExactnessError, InputError, Plan, StoreError, brief, shorten, unknown
from secateur.core.indices import kept_shapes
from secateur.core.paths import flush, to_path
from secateur.execution import call, duplicate, evaluating
from secateur.formats.modelling_file import auto_map, import_class, write_modelling_file
from secateur.formats.plain_model import UNEVEN, PlainModel, Uneven, plain_models
from secateur.formats.plan_json import plan_digest
from secateur.formats.transformers_config import build_on_meta
from secateur.outputs import floating_outputs
from secateur.tracing.export import silenced, without_fused_attention

__all__ = ["KEY", "check_model", "check_place", "publish", "save_pretrained", "write_companions"]

KEY = "secateur"  # of config.json
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
ROUNDING = 1e-2  # larger differences are not due to rounding
HALF = (torch.float16, torch.bfloat16)
# Files that travel along: of the tokenizer, a processor and sentence-transformers, and licenses.
COMPANIONS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "*processor_config.json",
    "modules.json",
    "sentence_*config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "LICENSE*",
    "NOTICE*",
)


def save_pretrained(
    folder: str | Path, model: nn.Module, plan: Plan, tokenizer: Any = None, uneven: Uneven = "error"
) -> float:
    """Write a pruned transformers model as an ordinary folder; see `Result.save_pretrained`."""
    place = to_path(folder).resolve()
    check_model(model, plan)
    if uneven not in UNEVEN:
        raise InputError(unknown("way to write uneven layers", str(uneven), UNEVEN))
    check_place(place)
    best = float("inf")
    for plain in plain_models(model, plan, uneven):
        with _draft_of(place) as draft:
            _write_model(draft, model, plain, plan)
            best = min(best, difference := _compare(draft, model, plan, plain))
            if difference <= _tolerance(model):
                write_companions(draft, model, tokenizer)
                publish(draft, place)
                return difference
    how = "cannot run" if best == float("inf") else f"has outputs that differ by {best:.1e} of the largest"
    raise ExactnessError(
        f"{type(model).__name__} with the sizes of the pruned model {how}: a size in the config changes more "
        f"than shapes. {place} was not written; result.save keeps any plan"
    )


# --- checks before anything is written


def check_model(model: Any, plan: Plan) -> None:
    """Raise `InputError` unless a model is one of transformers with ordinary weights, and the plan's.

    Raises:
        PlanError: If the plan leaves another model.
    """
    try:
        from transformers import PreTrainedModel
    except ImportError as error:
        raise InputError("models of transformers need the package: pip install 'secateur[hf]'") from error
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"this writes models of transformers; got {type(model).__name__}. If it wraps one, "
            "prune that one; result.save keeps any model"
        )
    quantized = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if getattr(model.config, "quantization_config", None) is not None or quantized:
        where = f" ({quantized[0]!r})" if quantized else ""
        raise InputError(
            f"the weights are quantized{where}: prune the model in float32 or bfloat16, save it, and "
            "quantize the folder"
        )
    shapes = kept_shapes(plan.graph, plan.keep)
    check_shapes(model, shapes, "the model to save", "Save the model that this plan pruned")


def check_place(place: Path) -> None:
    """Refuse a place that is taken, except by an empty folder."""
    if place.exists() and not place.is_dir():
        raise StoreError(f"{place} is a file: choose a folder")
    names = sorted(path.name for path in place.iterdir()) if place.exists() else []
    if names:
        raise StoreError(f"{place} holds files ({shorten(names)}): choose a new folder, or remove this one")


# --- writing and comparing


@contextmanager
def _draft_of(place: Path) -> Iterator[Path]:
    """Make a folder beside a place, and remove it at the end if it is still there."""
    draft = place.with_name(f".{place.name}-{uuid4().hex[:16]}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write {place}: {error}. Nothing was left there; choose a folder that can be written, "
            "with enough space"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_model(draft: Path, model: Any, plain: PlainModel, plan: Plan) -> None:
    config, note = copy.deepcopy(plain.config), {"plan": plan_digest(plan)}
    setattr(config, KEY, note | dict(plain.sizes or {}))
    if plain.sizes is not None:
        config.auto_map = auto_map(model)
        write_modelling_file(draft, model)
    # On the meta device it takes no memory; the weights are those of the state dict.
    writer = build_on_meta(_class_of(draft, model, plain), config).to(model.dtype)
    if model.can_generate():
        writer.generation_config = model.generation_config
    with silenced():
        writer.save_pretrained(draft, state_dict=dict(plain.state))


def _class_of(draft: Path, model: Any, plain: PlainModel) -> Any:
    return type(model) if plain.sizes is None else import_class(draft, model)


def _compare(draft: Path, model: Any, plan: Plan, plain: PlainModel) -> float:
    """Load a folder with its class; return how much its outputs on the example inputs deviate."""
    cls = _class_of(draft, model, plain)
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded, report = cls.from_pretrained(draft, output_loading_info=True, local_files_only=True)
    wrong = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[key]]
    if wrong:
        raise StoreError(f"{type(model).__name__} does not find its weights in its folder: {shorten(wrong)}")
    dtype = torch.float32 if model.dtype in HALF else model.dtype
    loaded = loaded.to(model.device, dtype)
    loaded.set_attn_implementation(model.config._attn_implementation)
    reference = duplicate(model).to(dtype) if model.dtype in HALF else model
    expected = _outputs(reference, plan)
    try:
        difference = deviation(expected, _outputs(loaded, plan))
    except InputError:  # all shapes fit, but not what the class computes: four heads of 3 instead of two of 6
        return float("inf")
    if _tolerance(model) < difference < ROUNDING:
        # A deep network with rescaled weights may differ by its own rounding: float64 takes that away.
        inputs = plan.graph.example_inputs, plan.graph.example_kwargs
        with suppress(RuntimeError):  # grouped products of experts refuse float64
            difference = deviation(*(run_float64(m, *inputs) for m in (reference, loaded)))
    return difference


def _outputs(model: nn.Module, plan: Plan) -> list[Tensor]:
    with evaluating(model), without_fused_attention(), torch.random.fork_rng():
        torch.manual_seed(0)
        return floating_outputs(call(model, plan.graph.example_inputs, plan.graph.example_kwargs))


def _tolerance(model: Any) -> float:
    """Return how much outputs may deviate: rounding, and in half precision that of rescaled weights."""
    return 16 * torch.finfo(model.dtype).eps if model.dtype in HALF else TOLERANCE[model.dtype]


def write_companions(draft: Path, model: Any, tokenizer: Any = None) -> None:
    """Write the tokenizer; without one, copy the files that belong to it from the original's folder."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(draft)
        return
    if tokenizer is not None and not (isinstance(tokenizer, (str, Path)) and Path(tokenizer).is_dir()):
        raise InputError(
            f"tokenizer must be a tokenizer of transformers or its folder; got {brief(tokenizer)}"
        )
    name = tokenizer or getattr(model.config, "_name_or_path", "")
    if not name or not Path(name).is_dir():  # the empty path would be the working directory
        return
    source = Path(name)
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            target = draft / path.relative_to(source)
            if path.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def publish(draft: Path, place: Path) -> None:
    """Wait until all files are on the disk, and give the folder its name."""
    mode = stat.S_IMODE((draft / "config.json").stat().st_mode)
    for path in (p for p in draft.rglob("*") if p.is_file()):
        path.chmod(mode)  # safetensors creates files that only the owner can read
        flush(path)
    if place.exists():
        place.rmdir()  # empty, or else an error
    draft.replace(place)
