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
from secateur.formats.store import load, load_plan, read_report, save
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
    assert read_report(tmp_path / "run") == {"a": 1}
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
    function: Callable[..., Any], log: list[str], stop: int, error: BaseException, kill: bool
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        log.append(function.__name__)
        if len(log) == stop + 1 or (kill and len(log) > stop):
            raise error
        return function(*args, **kwargs)

    return call


def interrupt(monkeypatch: pytest.MonkeyPatch, stop: int, error: BaseException, kill: bool) -> list[str]:
    """Fail at the call number `stop` of all that touches the disk; if killed, at all calls after it too."""
    log: list[str] = []
    for owner, name in [
        (os, "fsync"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (Path, "touch"),
        (Path, "chmod"),
        (store, "save_file"),
        *([(Path, "unlink")] if kill else []),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), log, stop, error, kill))
    return log


def steps_of(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], kill: bool) -> int:
    with monkeypatch.context() as patch:
        log = interrupt(patch, 10**6, Killed(), kill)
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
    total = steps_of(monkeypatch, lambda: save(place, new, new_plan), kill)
    assert total >= 6
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
            suffixes = sorted(path.suffix for path in place.iterdir())
            assert suffixes == [".json", ".safetensors", ".txt"]
    assert len(found) == total
    assert found == sorted(found, reverse=True)
    assert found[0] == "old"
    assert ("new" in found) == kill  # the removal of the old file comes after the new plan.json


def test_an_interrupted_first_save_is_no_result_or_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = pruned()
    place = tmp_path / "run"
    total = steps_of(monkeypatch, lambda: save(place, model, plan), True)
    whole = 0
    for stop in range(total):
        shutil.rmtree(place, ignore_errors=True)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, stop, Killed(), kill=True)
            save(place, model, plan)
        try:
            again = load(place, make)
        except StoreError as error:
            assert "does not exist" in str(error)
        else:
            assert torch.equal(outputs(again), outputs(model))
            whole += 1
    assert whole < total


def test_a_failed_first_save_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = pruned()
    total = steps_of(monkeypatch, lambda: save(tmp_path / "first", model, plan), False)
    for stop in range(total):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
            interrupt(patch, stop, OSError(28, "No space left on device"), kill=False)
            save(tmp_path / "run", model, plan)
        assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_an_interrupt_right_after_the_new_plan_json_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, old_plan), (new, new_plan) = pruned(), pruned()
    save(tmp_path / "run", old, old_plan)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> None:
        replace(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupted)
        save(tmp_path / "run", new, new_plan)
    assert torch.equal(outputs(load(tmp_path / "run", make)), outputs(new))


def test_a_save_while_another_one_loads_or_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader finds one result whole; of two savers the last wins, and no plan.json loses its files."""
    (first, first_plan), (second, second_plan), (third, third_plan) = pruned(), pruned(), pruned()
    place = tmp_path / "run"

    def before(owner: Any, name: str, action: Callable[[], None]) -> None:
        """Run an action before the first call of a function."""
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(owner, name, original)
            action()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    save(place, first, first_plan)
    for name in ("_read_file", "_sha256"):
        before(store, name, lambda: save(place, second, second_plan))
        assert torch.equal(outputs(load(place, make)), outputs(second))
    for name, owner in (("_write", store), ("touch", Path), ("save_file", store), ("replace", Path)):
        before(owner, name, lambda: save(place, second, second_plan))
        save(place, third, third_plan)
        assert torch.equal(outputs(load(place, make)), outputs(third))


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
    with pytest.raises(StoreError, match=r"model-.*copy the folder again"):
        load(folder, make)
    assert read_report(folder) == {"seen": [1.5, None]}
    assert load_plan(folder).method == "random units"
    (folder / "plan.json").unlink()
    with pytest.raises(StoreError, match="not a saved result"):
        load_plan(folder)
    (folder / "plan.json").mkdir()
    with pytest.raises(StoreError, match="not a file"):
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

    with pytest.raises(
        PlanError, match=r"'9.weight' has shape \(5, 8\) instead of \(3, 8\).*needs a factory"
    ):
        load(folder, wider)
    with pytest.raises(PlanError, match=r"'2' is GELU instead of ReLU"):
        load(folder, other)
    with pytest.raises(PlanError, match=r"'8.weight' is not expected"):
        load(folder, untied)
    with pytest.raises(PlanError, match=r"'0.weight' is missing.*and \d+ more"):
        load(folder, lambda: nn.ReLU())
    with pytest.raises(InputError, match="returned a int"):
        load(folder, lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="got a Sequential"):
        load(folder, make())  # type: ignore[arg-type]


def test_a_model_that_the_plan_does_not_make_is_not_saved(tmp_path: Path) -> None:
    _, plan = pruned()
    with pytest.raises(PlanError, match="the model to save"):
        save(tmp_path / "run", make(), plan)
    with pytest.raises(StoreError, match="meta"):
        small, plan = pruned()
        save(tmp_path / "run", small.to("meta"), plan)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_saving_deletes_only_the_files_of_the_last_save(folder: Path) -> None:
    model, plan = pruned()
    (old,) = folder.glob("model-*")
    users = [folder / ".run-abandoned.tmp", folder / f"model-{'0' * 16}.safetensors", folder / "notes.txt"]
    for path in users:
        path.write_text("a file of the user's")
        os.utime(path, (0, 0))
    save(folder, model, plan)
    assert all(path.read_text() == "a file of the user's" for path in users)
    assert not old.exists()


def test_a_folder_gets_the_usual_permissions(folder: Path) -> None:
    plain = folder.parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_plan_that_removes_nothing_is_not_replayed(tmp_path: Path) -> None:
    model = make()
    save(tmp_path / "run", model, Plan(trace(model, torch.randn(2, 1, 6, 6)), "x"))
    with pytest.raises(NothingToPrune):
        load(tmp_path / "run", make)
