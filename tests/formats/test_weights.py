"""Checkpoints as people have them: found by names and shapes, or refused with a way out."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from secateur.core import InputError, SecateurError, StoreError
from secateur.formats.weights import load_weights, split_key
from secateur.specs import make_model
from secateur.zoo import lenet5, resnet20

State = dict[str, Tensor]


def make() -> nn.Module:
    """Make a small network with tied layers and new random weights at each call."""
    hidden = nn.Linear(8, 8, bias=False)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 8), hidden, hidden
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][k], states[1][k]) for k in states[0]
    )


def optimizer_state(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return optimizer.state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


class Lightning(nn.Module):
    """A training module around the model, with a loss that has weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss(weight=torch.ones(3))


WRAPPINGS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "state dict": (lambda m: m.state_dict(), ""),
    "training": (
        lambda m: {"step": 7, "model_state": m.state_dict(), "optimizer_state": optimizer_state(m)},
        "model_state",
    ),
    "state_dict": (lambda m: {"epoch": 3, "state_dict": m.state_dict(), "best": 0.9}, "state_dict"),
    "model": (lambda m: {"model": m.state_dict(), "args": {"lr": 0.1}}, "model"),
    "nested": (lambda m: {"state": {"ema": m.state_dict(), "decay": 0.999}}, "state/ema"),
    "list": (lambda m: [1, m.state_dict()], "1"),
    "DataParallel": (lambda m: nn.DataParallel(m).state_dict(), "module."),
    "compiled": (lambda m: torch.compile(m).state_dict(), ""),
    "DataParallel, compiled": (
        lambda m: {"net": prefixed("module._orig_mod.", m.state_dict())},
        "net/module.",
    ),
    "Lightning": (
        lambda m: {
            "epoch": 1,
            "state_dict": Lightning(m).state_dict(),
            "optimizer_states": [optimizer_state(m)],
            "hyper_parameters": {"lr": 0.1},
        },
        "state_dict/model.",
    ),
    "averaged": (lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(), "module."),
}


@pytest.mark.parametrize("factory", [lenet5, resnet20], ids=["lenet5", "resnet20"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_state_dict_is_found_and_named(tmp_path: Path, factory: Any, wrapping: str) -> None:
    model, other = factory(), factory()
    wrap, key = WRAPPINGS[wrapping]
    torch.save(wrap(model), tmp_path / "w.pt")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_weights(other, tmp_path / "w.pt")
    assert equal(other, model)
    assert [str(w.message).rpartition(" ")[2] for w in seen] == ([repr(key)] if key else [])
    if key:
        assert seen[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_weights(other := factory(), tmp_path / "w.pt", key)
        assert equal(other, model)


def test_every_kind_of_file(tmp_path: Path) -> None:
    model = make()
    state = model.state_dict()
    save_model(model, str(tmp_path / "tied once.safetensors"))
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "all.safetensors")
    torch.save(state, tmp_path / "new.bin")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "torch 0.4.pt")
    torch.save({k: v for k, v in state.items() if not k.startswith("4.")}, tmp_path / "last of tied.pt")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pt")
    for path in sorted(tmp_path.iterdir()):
        other = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_weights(other, path)
        assert torch.allclose(other[3].weight, model[3].weight, atol=1e-3), path
        assert other[4].weight is other[5].weight
        assert equal(other, model) or path.name == "half.pt"


def test_several_that_fit_are_listed(tmp_path: Path) -> None:
    model, average = make(), make()
    torch.save({"model": model.state_dict(), "ema": average.state_dict(), "step": 3}, tmp_path / "w.pt")
    other = make()
    with pytest.raises(
        StoreError, match=r"2 state dicts that fit Sequential: 'model', 'ema'.*w.pt:model.*key='model'"
    ):
        load_weights(other, tmp_path / "w.pt")
    for key, source in (("model", model), ("ema", average)):
        load_weights(other, tmp_path / "w.pt", key)
        assert equal(other, source)
        load_weights(other, *split_key(f"{tmp_path / 'w.pt'}:{key}"))
        assert equal(other, source)
    with pytest.raises(StoreError, match=r"no state dict 'emma'; did you mean 'ema'"):
        load_weights(other, tmp_path / "w.pt", "emma")
    teacher = prefixed("student.", model.state_dict()) | prefixed("teacher.", average.state_dict())
    torch.save({"state_dict": teacher}, tmp_path / "two.pt")
    with pytest.raises(StoreError, match=r"'state_dict/student.', 'state_dict/teacher.'"):
        load_weights(other, tmp_path / "two.pt")
    load_weights(other, tmp_path / "two.pt", "state_dict/teacher.")
    assert equal(other, average)
    with pytest.raises(InputError, match="key must be a str"):
        load_weights(other, tmp_path / "two.pt", 3)  # type: ignore[arg-type]


def test_a_file_and_a_key_in_one_text(tmp_path: Path) -> None:
    file = tmp_path / "a:b.pt"
    file.touch()
    assert split_key(str(file)) == (file, None)
    assert split_key(f"{file}:model") == (file, "model")
    assert split_key(f"{file}:model:ema") == (file, "model:ema")
    (tmp_path / "a:b.pt:model").touch()
    assert split_key(f"{file}:model") == (tmp_path / "a:b.pt:model", None)
    for missing in ("none.pt", "none.pt:model", r"C:\none.pt", ":", ":key"):
        assert split_key(missing) == (Path(missing), None)
    with pytest.raises(InputError, match="NUL"):
        split_key("a\0b")


def test_the_command_line_takes_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = lenet5()
    torch.save({"model": model.state_dict(), "ema": lenet5().state_dict()}, "w.pt")
    made, _ = make_model("secateur.zoo:lenet5", "w.pt:model")
    assert equal(made, model)
    with pytest.raises(StoreError, match="Choose one"):
        make_model("secateur.zoo:lenet5", "w.pt")


def test_what_fits_is_loaded_by_choice(tmp_path: Path) -> None:
    model, other = make(), make()
    head = other[3].bias.detach().clone()
    state = prefixed("module.", model.state_dict()) | {"module.extra": torch.ones(3)}
    del state["module.3.bias"]
    torch.save({"state_dict": state, "optimizer": optimizer_state(model)}, tmp_path / "w.pt")
    with pytest.raises(
        StoreError, match=r"only the file has 'extra'; only the model has '3.bias'.*strict=False"
    ):
        load_weights(other, tmp_path / "w.pt")
    with pytest.warns(UserWarning) as seen:
        load_weights(other, tmp_path / "w.pt", strict=False)
    texts = [str(w.message) for w in seen]
    assert texts[0].endswith("found under 'state_dict/module.'")
    assert texts[1].endswith("only the file has 'extra'; only the model has '3.bias'; the rest is loaded")
    assert torch.equal(other[3].bias, head)
    assert torch.equal(other[3].weight, model[3].weight)
    state["module.0.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(StoreError, match=r"'0.bias' is \(7,\) in the file and \(6,\) in the model"):
        load_weights(other, tmp_path / "w.pt", strict=False)
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(StoreError, match=r"only the file has 'a'"):
        load_weights(other, tmp_path / "w.pt", strict=False)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model, before = make(), make()
    before.load_state_dict(model.state_dict())
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    forms: list[tuple[Any, str]] = [
        (
            state | {"3.weight": torch.ones(4, 8)},
            r"'3.weight' is \(4, 8\) in the file and \(8, 96\) in the model",
        ),
        (state | {"0.bias": torch.ones(6, dtype=torch.int64)}, r"'0.bias' is \(6,\) integer"),
        (state | {"0.bias": torch.ones(6, dtype=torch.complex64)}, r"'0.bias' is \(6,\) complex"),
        (state | {"0.bias": torch.ones(6).to_sparse()}, r"'0.bias' is \(6,\) sparse"),
        ({"x": state | {"3.bias": torch.ones(5)}}, r"w.pt:x does not fit.*'3.bias' is \(5,\) in the file"),
        (
            {k.replace("3.", "fc."): v for k, v in state.items()},
            r"only the file has 'fc.bias'.*only the model has '3.weight' \(the file has 'fc.weight'\)",
        ),
        ({"a": 1, "b": [2]}, "holds no tensors with names"),
        (torch.ones(3), "holds no tensors with names"),
        ({}, "holds no tensors with names"),
        ({"n" * 10**6: torch.ones(1)}, "only the file has 'nnn"),
        ({"." * 10**6 + "3.bias": torch.ones(1)}, r"only the file has '\.\.\."),
    ]
    for content, words in forms:
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(StoreError, match=words) as seen:
            load_weights(model, tmp_path / "w.pt")
        assert len(str(seen.value)) < 2000
        assert equal(model, before)
    with pytest.raises(InputError, match="no weights"):
        load_weights(nn.ReLU(), tmp_path / "w.pt")


def test_unreadable_files(tmp_path: Path) -> None:
    model = make()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("junk", b"junk"),
        ("empty", b""),
        ("zip", b"PK\3\4"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match=name):
            load_weights(model, tmp_path / name)
    with pytest.raises(StoreError, match="does not exist"):
        load_weights(model, tmp_path / "none.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"the folder .* has no weights: none of model.safetensors"):
        load_weights(model, tmp_path / "folder")
    with pytest.raises(InputError, match="File name too long"):
        load_weights(model, "n" * 5000)
    with pytest.raises(InputError, match="path"):
        load_weights(model, None)  # type: ignore[arg-type]


def converted(error: SecateurError, change: Callable[[str], str] = lambda text: text) -> None:
    """Run the lines of Python in an error message in a new process."""
    code = change("\n".join(line.strip() for line in str(error).splitlines()[1:]))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_torchscript_archives_are_named_and_the_conversion_works(tmp_path: Path) -> None:
    model, other = make(), make()
    torch.jit.trace(model.eval(), torch.randn(2, 1, 6, 6)).save(str(tmp_path / "net.pt"))
    with pytest.raises(StoreError, match="is a TorchScript archive") as seen:
        load_weights(other, tmp_path / "net.pt")
    converted(seen.value)
    load_weights(other, tmp_path / "net.state.pt")
    assert equal(other, model)


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_python_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    model, other = lenet5(), lenet5()
    torch.save({"state_dict": model.state_dict(), "evil": Touch(tmp_path / "run")}, tmp_path / "evil.pt")
    with pytest.raises(StoreError, match="could run code"):
        load_weights(other, tmp_path / "evil.pt")
    assert not (tmp_path / "run").exists()
    args = argparse.Namespace(lr=0.1)
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "args.pt")
    with pytest.raises(StoreError, match=r"the first: argparse.Namespace\)") as seen:
        load_weights(other, tmp_path / "args.pt")
    converted(seen.value, lambda code: code.replace("content.state_dict()", "content['state_dict']"))
    load_weights(other, tmp_path / "args.state.pt")
    assert equal(other, model)
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(StoreError, match=r"the first: torch\.nn\.modules") as seen:
        load_weights(other, tmp_path / "whole.pt")
    converted(seen.value)
    load_weights(other := lenet5(), tmp_path / "whole.state.pt")
    assert equal(other, model)


def test_checkpoints_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    model.save_pretrained(tmp_path / "one")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    for path in (
        tmp_path / "shards" / "model.safetensors.index.json",
        tmp_path / "shards",
        tmp_path / "one" / "model.safetensors",
        tmp_path / "one",
    ):
        other = transformers.BertForMaskedLM(config)
        load_weights(other, path)
        assert equal(other, model)
    part = transformers.BertModel(config, add_pooling_layer=False)
    with pytest.warns(UserWarning, match="found under 'bert.'"):
        load_weights(part, tmp_path / "one")
    assert equal(part, model.bert)
    with pytest.raises(StoreError, match=r"one file of several, give .*index.json"):
        load_weights(other, shards[0])


def test_hostile_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    torch.save(make().state_dict(), tmp_path / "w.pt")
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100000):
        index.write_text(text)
        with pytest.raises(StoreError, match="is not the index"):
            load_weights(make(), index)
    for shard in ("../w.pt", str(tmp_path / "w.pt"), ".."):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(StoreError):
            load_weights(make(), index)
