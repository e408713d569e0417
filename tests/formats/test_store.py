"""Saved results: the same outputs bit for bit, the old folder or the new one, and clear errors."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank import BANK
from oracles import half_plan, run
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, NothingToPrune, Plan, PlanError, StoreError
from secateur.formats import store
from secateur.formats.plan_json import plan_to_json
from secateur.formats.store import load, load_plan, load_report, save
from secateur.formats.weights import load_weights
from secateur.tracing.trace import trace

Make = Callable[[], nn.Module]


def make() -> nn.Module:
    """Make a small CNN with tied layers and fresh random weights at each call."""
    hidden = nn.Linear(8, 8, bias=False)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.ReLU(),
        hidden,
        nn.ReLU(),
        hidden,
        nn.Linear(8, 3),
    )


def pruned(build: Make = make, shape: tuple[int, ...] = (2, 1, 6, 6)) -> tuple[nn.Module, Plan]:
    model = build()
    dtype = next(model.parameters()).dtype
    plan = half_plan(trace(model, torch.randn(shape, dtype=dtype)), seed=3)
    return shrink(model, plan, check=False), plan


def outputs(model: nn.Module, shape: tuple[int, ...] = (4, 1, 6, 6)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, plan = pruned()
    save(tmp_path / "run", model, plan, {"seen": [1.5, None]}, {"torch": "2"})
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_same_outputs_bit_for_bit_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model, plan = pruned(lambda: make().to(dtype))
    model[1].running_mean.normal_()
    save(tmp_path / "run", model, plan)
    again = load(tmp_path / "run", make)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(outputs(again), outputs(model))
    assert again[6].weight is again[8].weight
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "LSTM, 2 layers, bidirectional, time first",
        "nn.TransformerEncoder, norm last",
        "Small GPT, tied",
        "Bare nn.Parameter",
        "MobileNetV2 (depthwise)",
        "Rotary positions",
    ],
)
def test_every_kind_of_model_comes_back(tmp_path: Path, name: str) -> None:
    entry = BANK[name]
    model, example = entry.build(), entry.example()
    plan = half_plan(trace(model, example[0], example_kwargs=example[1]))
    small = shrink(model, plan, check=False)
    save(tmp_path / "run", small, plan)
    again = load(tmp_path / "run", entry.make)
    for x in (example, entry.example(batch=entry.batch + 1, seed=5)):
        assert all(map(torch.equal, run(again, x), run(small.eval(), x)))


def test_modes_and_flags_come_back(tmp_path: Path) -> None:
    model, plan = pruned()
    model.eval()
    model[1].train()
    model[0].weight.requires_grad_(False)
    save(tmp_path / "run", model, plan)
    again = load(tmp_path / "run", make)
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(outputs(again), outputs(model))


def test_the_order_of_memory_comes_back(tmp_path: Path) -> None:
    """Kernels choose their path by strides, so the same numbers in another order give other bits."""
    model, plan = pruned(lambda: make().to(memory_format=torch.channels_last))
    model = model.to(memory_format=torch.channels_last)
    model[9].weight.data = model[9].weight.t().contiguous().t()
    save(tmp_path / "run", model, plan)
    again = load(tmp_path / "run", make)
    assert [p.stride() for p in again.parameters()] == [p.stride() for p in model.parameters()]
    assert not again[9].weight.is_contiguous()
    assert torch.equal(outputs(again), outputs(model))


def test_plan_masks_and_report_come_back(tmp_path: Path) -> None:
    model = make()
    graph = trace(model, torch.randn(2, 1, 6, 6))
    masks = {"4.weight": np.random.default_rng(0).random((8, 96)) < 0.5}
    plan = Plan(graph, "x", {}, masks, seed=4, notes={"4.weight": {"gap": float("inf")}})
    save(tmp_path / "run", shrink(model, plan), plan, {"a": 1})
    again = load_plan(tmp_path / "run")
    assert plan_to_json(again) == plan_to_json(plan)
    assert np.array_equal(again.masks["4.weight"], masks["4.weight"])
    assert again.notes["4.weight"]["gap"] == float("inf")
    assert load_report(tmp_path / "run") == {"a": 1}
    loaded = load(tmp_path / "run", make)
    assert torch.equal(loaded[4].weight != 0, torch.from_numpy(masks["4.weight"]))


def test_no_file_in_the_folder_is_a_pickle(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2
    assert names[1] == "plan.json"
    document = json.loads((folder / "plan.json").read_text())
    assert document["body"]["about"][0].startswith("random units")
    header = int.from_bytes((folder / names[0]).read_bytes()[:8], "little")
    json.loads((folder / names[0]).read_bytes()[8 : 8 + header])


# --- the old folder or the new one


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs but `finally`."""


def counted(
    function: Callable[..., Any], log: list[str], stop: int, error: BaseException
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        log.append(function.__name__)
        if len(log) > stop:
            raise error
        return function(*args, **kwargs)

    return call


def interrupt(monkeypatch: pytest.MonkeyPatch, stop: int, error: BaseException, kill: bool) -> list[str]:
    """Fail at the call number `stop` of all that touches the disk; if killed, nothing is tidied up either."""
    log: list[str] = []
    for owner, name in [
        (os, "fsync"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (Path, "unlink"),
        (store, "save_file"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), log, stop, error))
    if kill:
        monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    return log


def steps_of(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> int:
    with monkeypatch.context() as patch:
        log = interrupt(patch, 10**6, Killed(), kill=False)
        action()
    return len(log)


@pytest.mark.parametrize("kill", [True, False])
def test_an_interrupted_save_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    old, old_plan = pruned()
    new, new_plan = pruned()
    wanted = {name: outputs(model) for name, model in (("old", old), ("new", new))}
    place = tmp_path / "run"
    save(place, old, old_plan)
    (place / "mine.txt").write_text("a file of the user's")
    total = steps_of(monkeypatch, lambda: save(place, new, new_plan))
    assert total >= 8
    found = []
    for stop in range(total):
        shutil.rmtree(place)
        save(place, old, old_plan)
        (place / "mine.txt").write_text("a file of the user's")
        error = Killed() if kill else OSError(28, "No space left on device")
        with monkeypatch.context() as patch, pytest.raises(Killed if kill else StoreError):
            interrupt(patch, stop, error, kill)
            save(place, new, new_plan)
        got = outputs(load(place, make))
        found += [name for name in wanted if torch.equal(got, wanted[name])]
        assert (place / "mine.txt").exists()
        if not kill:
            assert not list(tmp_path.rglob("*.tmp"))
    assert len(found) == total
    assert found == sorted(found, reverse=True)
    assert found[0] == "old"
    save(place, new, new_plan)
    assert sorted(p.suffix for p in place.iterdir() if not p.name.endswith(".tmp")) == [
        ".json",
        ".safetensors",
        ".txt",
    ]


def test_an_interrupted_first_save_leaves_nothing_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = pruned()
    place = tmp_path / "run"
    total = steps_of(monkeypatch, lambda: save(place, model, plan))
    whole = 0
    for stop in range(total):
        shutil.rmtree(place, ignore_errors=True)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, stop, Killed(), kill=True)
            save(place, model, plan)
        if place.exists():
            assert torch.equal(outputs(load(place, make)), outputs(model))
            whole += 1
    assert 0 < whole < total


def test_saving_twice_is_saving_once(tmp_path: Path) -> None:
    model, plan = pruned()
    save(tmp_path / "run", model, plan)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    save(tmp_path / "run", model, plan)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


# --- damage


def test_truncation_of_every_file_is_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in sorted({0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}):
            path.write_bytes(whole[:size])
            with pytest.raises(StoreError, match=path.name):
                load(folder, make)
        path.write_bytes(whole)
    assert isinstance(load(folder, make), nn.Module)


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = bytearray(path.read_bytes())
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            changed = whole.copy()
            changed[at] ^= 0x15
            path.write_bytes(changed)
            with pytest.raises(StoreError, match=path.name):
                load(folder, make)
        path.write_bytes(whole)


def test_missing_files_and_folders(folder: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        load(folder / "elsewhere", make)
    (model,) = folder.glob("model-*")
    model.rename(model.with_suffix(".gone"))
    with pytest.raises(StoreError, match=r"model-.*copy the folder anew"):
        load(folder, make)
    assert load_report(folder) == {"seen": [1.5, None]}
    assert load_plan(folder).method == "random units"
    (folder / "plan.json").unlink()
    with pytest.raises(StoreError, match="no saved result"):
        load_plan(folder)
    (folder / "plan.json").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        load_plan(folder)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"format": 1}', '{"format": 1, "sha256": "", "body": {}}']
)
def test_a_document_of_another_kind(folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text)
    with pytest.raises(StoreError, match=r"plan.json"):
        load(folder, make)


def test_a_newer_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = pruned()
    monkeypatch.setattr(store, "FORMAT", 2)
    save(folder, model, plan)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"format 2.*upgrade"):
        load(folder, make)


def test_wrong_factories(folder: Path) -> None:
    def wider() -> nn.Module:
        model = make()
        model[9] = nn.Linear(8, 5)
        return model

    def other() -> nn.Module:
        model = make()
        model[2] = nn.GELU()
        return model

    def untied() -> nn.Module:
        model = make()
        model[8] = nn.Linear(8, 8, bias=False)
        return model

    with pytest.raises(PlanError, match=r"9.weight is \(5, 8\), not \(3, 8\).*plan.json needs a factory"):
        load(folder, wider)
    with pytest.raises(PlanError, match=r"'2' is GELU, not ReLU"):
        load(folder, other)
    with pytest.raises(PlanError, match=r"8.weight is \(8, 8\), not wanted"):
        load(folder, untied)
    with pytest.raises(PlanError, match=r"0.weight is missing.*and \d+ more"):
        load(folder, lambda: nn.ReLU())
    with pytest.raises(InputError, match="returned a int"):
        load(folder, lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="got a Sequential"):
        load(folder, make())  # type: ignore[arg-type]


def test_a_model_that_the_plan_does_not_make_is_not_saved(tmp_path: Path) -> None:
    _, plan = pruned()
    with pytest.raises(PlanError, match="the model to be saved"):
        save(tmp_path / "run", make(), plan)
    with pytest.raises(StoreError, match="meta"):
        small, plan = pruned()
        save(tmp_path / "run", small.to("meta"), plan)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = pruned()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot save to .*file"):
        save(tmp_path / "file", model, plan)
    with pytest.raises(StoreError, match="cannot save to"):
        save(tmp_path / "file" / "deeper", model, plan)
    assert (tmp_path / "file").read_text() == "x"

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"Permission denied.*choose a folder"):
        save(tmp_path / "run", model, plan)


def test_what_killed_saves_left_is_removed_after_a_day(folder: Path) -> None:
    model, plan = pruned()
    old, young = (folder / f".run-{letter * 32}.tmp" for letter in "ab")
    for draft in (old, young):
        draft.mkdir()
    os.utime(old, (0, 0))
    save(folder, model, plan)
    assert not old.exists()
    assert young.exists()


def test_a_folder_gets_the_usual_permissions(folder: Path) -> None:
    plain = folder.parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_plan_that_removes_nothing_cannot_be_replayed(tmp_path: Path) -> None:
    model = make()
    save(tmp_path / "run", model, Plan(trace(model, torch.randn(2, 1, 6, 6)), "x"))
    with pytest.raises(NothingToPrune):
        load(tmp_path / "run", make)


# --- weights of the user's


def test_weights_of_the_users(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model, other = make(), make()
    save_model(model, str(tmp_path / "w.safetensors"))
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(outputs(other), outputs(model))


def test_a_pickle_is_read_only_when_asked_for_by_name(tmp_path: Path) -> None:
    model, other = make(), make()
    before = outputs(other)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(StoreError, match="allow_pickle=True"):
        load_weights(other, tmp_path / "w.pt")
    assert torch.equal(outputs(other), before)
    with pytest.raises(StoreError) as seen:
        load_weights(make(), tmp_path / "w.pt")
    exec("\n".join(line.strip() for line in str(seen.value).splitlines()[1:]))
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(outputs(other), outputs(model))
    load_weights(other := make(), tmp_path / "w.pt", allow_pickle=True)
    assert torch.equal(outputs(other), outputs(model))
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(StoreError, match="cannot be read as tensors"):
        load_weights(other, tmp_path / "whole.pt", allow_pickle=True)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = make()
    before = outputs(model)
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    state["9.weight"] = torch.ones(4, 8)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(StoreError, match=r"'9.weight' is \(4, 8\) there and \(3, 8\) in the model"):
        load_weights(model, tmp_path / "w.safetensors")
    save_file({f"x.{name}": value for name, value in state.items()}, tmp_path / "other.safetensors")
    words = r"only the file has 'x\.0\.bias', .* and 10 more; only the model has '0\.weight', .*Give w"
    with pytest.raises(StoreError, match=words):
        load_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="does not exist"):
        load_weights(model, tmp_path / "none.safetensors")
    (tmp_path / "junk").write_bytes(b"junk")
    for allow in (False, True):
        with pytest.raises(StoreError, match="junk"):
            load_weights(model, tmp_path / "junk", allow_pickle=allow)
    assert torch.equal(outputs(model), before)
