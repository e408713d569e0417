"""Folders of transformers: every family loads with the plain class and computes the same."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from small_transformers import (
    BASE,
    DECODERS,
    ENCODERS,
    EVERY,
    ONLY_UNITS,
    build,
    check_generation,
    compared,
    halve,
    ids,
)
from torch import nn

import secateur as sc
from secateur.apply.deviation import deviation
from secateur.apply.float64 import run_float64
from secateur.core import ExactnessError, InputError, Plan, PlanError, StoreError
from secateur.formats import transformers as folders
from secateur.formats.plan_json import plan_digest

transformers = pytest.importorskip("transformers")


@cache
def halved(family: str) -> tuple[nn.Module, Plan]:
    """Halve what the config of a family can state."""
    return halve(build(family), "embed wte attention attn" if family in ONLY_UNITS else "nothing")


@pytest.mark.parametrize(
    "family", sampled(EVERY, "llama", "qwen3", "gemma3_text", "phi3", "gpt2", "mixtral", "bert")
)
def test_a_family_loads_with_the_plain_class(family: str, tmp_path: Path) -> None:
    small, plan = halved(family)
    model, before = build(family), small.config.to_dict()  # type: ignore[union-attr]
    difference = folders.save_pretrained(tmp_path / "out", small, plan)
    assert difference <= (0 if family in ONLY_UNITS else 1e-5)
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(model) and compared(small, loaded) <= 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["secateur"] == {"plan": plan_digest(plan)}
    changed = {**DECODERS, **ENCODERS}[family][2]
    assert {name: config[name] for name in changed} == changed
    sizes = {k for k, v in config.items() if isinstance(v, int) and before.get(k, v) not in (v, None)}
    assert sizes <= set(changed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if family in DECODERS:
        check_generation(loaded)


@pytest.mark.parametrize("family", sampled(["llama", "qwen3", "gemma3_text", "olmo2"], "qwen3"))
def test_norms_are_rescaled_exactly(family: str, tmp_path: Path) -> None:
    """With a large eps and all axes cut, in float64: the residual stream and the heads by other factors."""
    model = build(family, rms_norm_eps=0.05).double()
    small, plan = halve(model, keep=0.75)
    assert small.config.hidden_size == 32 and plan.keep
    folders.save_pretrained(tmp_path / "out", small, plan)
    loaded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert loaded.config.rms_norm_eps == pytest.approx(0.05 * 32 / loaded.config.hidden_size)
    outputs = (run_float64(m, (), {"input_ids": ids()}) for m in (small, loaded))
    assert deviation(*outputs) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    small, plan = halve(build("gemma3_text").to(dtype))
    assert 0 < folders.save_pretrained(tmp_path / "out", small, plan) <= 16 * torch.finfo(dtype).eps
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype and loaded.config.dtype == dtype


def test_no_secateur_is_needed(tmp_path: Path) -> None:
    small, plan = halved("llama")
    folders.save_pretrained(tmp_path / "out", small, plan)
    torch.save((ids(), small(ids()).logits), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["secateur"] = None
import torch
from transformers import AutoModelForCausalLM
ids, expected = torch.load({str(tmp_path / "expected.pt")!r})
logits = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r})(ids).logits
assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- sizes that no config states


def test_uneven_layers_are_refused_or_padded(tmp_path: Path) -> None:
    model = build("llama")
    graph = sc.trace(model, {"input_ids": ids()})
    hidden = [group for group in graph.groups if "mlp" in group.name]
    plan = Plan(graph, "by hand", {g.name: np.arange(3, 23 + 9 * i) for i, g in enumerate(hidden)})
    small = sc.shrink(model, plan)
    with pytest.raises(InputError, match=r"20 to 29 of 48 .* even=True.*uneven='pad'.*result\.save"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="padded with zeros"):
        assert folders.save_pretrained(tmp_path / "out", small, plan, uneven="pad") <= 1e-5
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert loaded.config.intermediate_size == 29
    gates = [layer.mlp.gate_proj.weight for layer in loaded.model.layers]
    assert [int((gate != 0).any(1).sum()) for gate in gates] == [20, 29]
    with pytest.raises(InputError, match="way to write uneven"):
        folders.save_pretrained(tmp_path / "other", small, plan, uneven="padded")  # type: ignore[arg-type]


def test_heads_with_a_position_of_their_own_are_padded_in_place(tmp_path: Path) -> None:
    """Query heads belong to key-value heads by their order, so zeros must not all come last."""
    model = build("qwen3", num_attention_heads=6, num_key_value_heads=2)
    graph = sc.trace(model, {"input_ids": ids()})
    heads = [group for group in graph.groups if "attn" in group.name and group.size == 3]
    plan = Plan(graph, "by hand", {heads[0].name: np.array([1])})
    small = sc.shrink(model, plan)
    with pytest.warns(UserWarning, match="padded with zeros"):
        assert folders.save_pretrained(tmp_path / "out", small, plan, uneven="pad") <= 1e-5


@pytest.mark.parametrize("family", sampled([f for f in ONLY_UNITS if f != "electra"], "gpt2", "bert"))
def test_what_a_config_cannot_state_is_named_and_padded(family: str, tmp_path: Path) -> None:
    """Heads of families without a free head length, and LayerNorm over fewer features."""
    model = build(family)
    small, plan = halve(model, "nothing" if family in DECODERS else "embed")
    with pytest.raises(InputError, match=r"'.*(weight|bias)'.*uneven='pad'"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    with pytest.warns(UserWarning, match="padded with zeros"):
        assert folders.save_pretrained(tmp_path / "out", small, plan, uneven="pad") <= 1e-5
    config = type(model).from_pretrained(tmp_path / "out").config
    assert config.hidden_size == 32 and config.num_attention_heads == 4


def test_sizes_that_a_config_refuses_together(tmp_path: Path) -> None:
    """Llama wants a width that the number of heads divides."""
    small, plan = halve(build("llama"), "attn mlp", keep=21 / 32)
    with pytest.raises(InputError, match=r"hidden size .21. is not a multiple"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    with pytest.warns(UserWarning, match="padded"):
        folders.save_pretrained(tmp_path / "out", small, plan, uneven="pad")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 24


# --- what travels along


def write_tokenizer(folder: Path) -> Any:
    """Write the files of a small tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 3, "b": 4}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_files_of_the_original_travel_along(tmp_path: Path) -> None:
    original = build("llama")
    original.generation_config.temperature = 0.5
    original.generation_config.do_sample = True
    original.save_pretrained(tmp_path / "original")
    write_tokenizer(tmp_path / "original")
    (tmp_path / "original" / "LICENSE").write_text("terms")
    (tmp_path / "original" / "notes.txt").write_text("private")
    (tmp_path / "original" / "1_Pooling").mkdir()
    (tmp_path / "original" / "1_Pooling" / "config.json").write_text("{}")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "original").eval()
    small, plan = halve(model)
    folders.save_pretrained(tmp_path / "out", small, plan)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names >= {"LICENSE", "chat_template.jinja", "1_Pooling/config.json"} and "notes.txt" not in names
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids == [3, 4]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.5
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.is_file()}) == 1


def test_a_tokenizer_may_be_given(tmp_path: Path) -> None:
    small, plan = halved("llama")
    tokenizer = write_tokenizer(tmp_path / "words")
    folders.save_pretrained(tmp_path / "first", small, plan, tokenizer)
    folders.save_pretrained(tmp_path / "second", small, plan, str(tmp_path / "words"))
    for name in ("first", "second"):
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / name)("b").input_ids == [4]
    with pytest.raises(InputError, match="tokenizer must be"):
        folders.save_pretrained(tmp_path / "third", small, plan, str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"tokenizer must be.*got 3"):
        folders.save_pretrained(tmp_path / "third", small, plan, 3)
    assert not (tmp_path / "third").exists()


def test_a_model_without_a_folder_takes_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "LICENSE").write_text("of another project")
    monkeypatch.chdir(tmp_path)
    folders.save_pretrained(tmp_path / "out", *halved("llama"))
    assert not (tmp_path / "out" / "LICENSE").exists()


# --- bad input


def test_bad_places_are_refused_and_left_alone(tmp_path: Path) -> None:
    small, plan = halved("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"holds files .thesis.tex"):
        folders.save_pretrained(tmp_path / "mine", small, plan)
    with pytest.raises(StoreError, match="is a file"):
        folders.save_pretrained(tmp_path / "file", small, plan)
    with pytest.raises(StoreError, match="cannot write"):
        folders.save_pretrained(tmp_path / "file" / "below", small, plan)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]
    (tmp_path / "empty").mkdir()
    folders.save_pretrained(tmp_path / "empty" / "deep" / "out", small, plan)
    assert (tmp_path / "empty" / "deep" / "out" / "config.json").exists()


def test_heads_whose_length_the_config_omits(tmp_path: Path) -> None:
    """The config of Qwen 2 omits the length of a head, and heads of another length fit the shapes, too."""
    options = {**BASE, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**options)).eval()
    ids = {"input_ids": torch.randint(90, (2, 9))}
    heads = [group.name for group in sc.trace(model, ids).by_kind()["heads"]]
    halves = sc.Units(dict.fromkeys(heads, 0.5))
    result = sc.prune(model, ids, halves, method="magnitude", progress=False)
    assert result.save_pretrained(tmp_path / "out") < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 2, 8)


def test_sizes_with_which_the_class_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, plan = halved("llama")

    def fail(*_: Any) -> None:
        raise InputError("the sizes of two tensors must match")

    outputs = folders._outputs
    monkeypatch.setattr(
        folders, "_outputs", lambda model, plan: outputs(model, plan) if model is small else fail()
    )
    with pytest.raises(ExactnessError, match=r"cannot run: a size in the config.*result\.save"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, plan = halved("gemma3_text")

    def fill_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", fill_disk)
        with pytest.raises(StoreError, match="No space left"):
            folders.save_pretrained(tmp_path / "out", small, plan)
    with monkeypatch.context() as patch:
        patch.setattr("secateur.formats.plain_model.correct_embedding_scale", lambda *_: None)
        with pytest.raises(ExactnessError, match="has outputs that differ"):
            folders.save_pretrained(tmp_path / "out", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(tmp_path: Path) -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    result = sc.prune(mlp, torch.ones(2, 4), sc.Units(0.5), method="magnitude")
    with pytest.raises(InputError, match=r"models of transformers; got Sequential.*result\.save"):
        result.save_pretrained(tmp_path / "out")
    small, plan = halved("llama")
    with pytest.raises(PlanError, match="the model to save"):
        folders.save_pretrained(tmp_path / "out", build("llama"), plan)
    small = copy.deepcopy(small)
    small.config.quantization_config = {"quant_method": "fp8"}  # type: ignore[union-attr]
    with pytest.raises(InputError, match="quantized"):
        folders.save_pretrained(tmp_path / "out", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_result_writes_its_model(tmp_path: Path) -> None:
    budget = sc.Params(0.8, even=True, round_to=4)
    result = sc.prune(build("llama"), {"input_ids": ids()}, budget, method="magnitude")
    assert result.save_pretrained(tmp_path / "out") <= 1e-5
    assert compared(result.model, type(result.model).from_pretrained(tmp_path / "out")) <= 1e-5  # type: ignore[attr-defined]
