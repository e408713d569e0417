"""Saved results in hostile hands: factories of other models, foreign files, resealed documents."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import half_plan
from resealed import reseal
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PlanError, StoreError
from secateur.core.paths import read_bounded, write_text
from secateur.formats.fingerprint import check_fingerprint, take_fingerprint
from secateur.formats.store import load, load_plan, read_report, save
from secateur.html import read_runs, read_sections
from secateur.tracing.trace import trace


class Small(nn.Module):
    """A CNN whose behaviour depends on what its tensors do not show."""

    def __init__(self, slope: float = 0.01, stride: int = 1, scale: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(2, 8, 3, padding=1, stride=stride)
        self.act = nn.LeakyReLU(slope)
        self.outlet = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, eps=eps)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.outlet(self.act(self.inlet(x)))) * self.scale


X = torch.linspace(-1, 1, 2 * 2 * 6 * 6).reshape(2, 2, 6, 6)


def saved(folder: Path, model: nn.Module, x: Any = X) -> Path:
    plan = half_plan(trace(model, x), seed=3)
    save(folder, shrink(model, plan, check=False), plan, {"a": 1})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "run", Small())


# --- other models of the same shapes


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"slope": 0.5},
            r"outputs differ by .*'act' is LeakyReLU\(negative_slope=0.5\), saved: LeakyReLU\(.*=0.01\)",
        ),
        ({"stride": 2}, r"shapes \[\[2, 4, 3, 3\]\], the saved model \[\[2, 4, 6, 6\]\]"),
        ({"scale": 7.0}, r"computes something else than the saved model.*outputs differ by 6.0e\+00"),
        ({"eps": 1e-3}, r"outputs differ by .*'norm' is BatchNorm2d\(4, eps=0.001"),
    ],
)
def test_a_factory_of_another_model_of_the_same_shapes(
    folder: Path, other: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        load(folder, lambda: Small(**other))
    assert isinstance(load(folder, Small), Small)


def test_what_is_without_effect_may_be_otherwise(tmp_path: Path) -> None:
    def make(p: float = 0.1) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(p), nn.ReLU(), nn.Linear(8, 3))

    place = saved(tmp_path / "run", make(), torch.randn(2, 6))
    assert load(place, lambda: make(0.5))[1].p == 0.5  # type: ignore[index,union-attr]


class Noisy(nn.Sequential):
    """Adds noise of its own generator in evaluation mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + np.random.default_rng().random()


class NotFinite(nn.Sequential):
    """Takes the logarithm of anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.log().sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", [Noisy, NotFinite])
def test_models_with_incomparable_outputs(tmp_path: Path, kind: type[nn.Sequential]) -> None:
    def make(slope: float = 0.01) -> nn.Module:
        return kind(nn.Linear(6, 8), nn.LeakyReLU(slope), nn.Linear(8, 3))

    place = saved(tmp_path / "run", make(), torch.rand(2, 6) + 0.5)
    document = json.loads((place / "plan.json").read_text())
    assert "outputs" not in document["body"]["fingerprint"]
    for _ in range(3):
        load(place, make)
    with pytest.warns(UserWarning, match=r"other settings.*'1' is LeakyReLU\(negative_slope=0.5") as seen:
        load(place, lambda: make(0.5))
    assert seen[0].filename == __file__


def test_a_fingerprint_changes_neither_the_model_nor_the_randomness() -> None:
    model, x = Small().train(), torch.randn(2, 2, 6, 6)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = take_fingerprint(model, (x,), {})
    assert "outputs" in json.loads(json.dumps(found))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.norm.training


def test_inputs_that_are_indices_or_keywords_are_made_again() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, ids: Tensor, *, more: dict[str, Any]) -> Tensor:
            return self.table(ids)[more["keep"]] * more["by"]

    model, ids = Words(), torch.tensor([[0, 4], [1, 2], [3, 3]])
    kwargs = {"more": {"keep": torch.tensor([True, False, True]), "by": 2.0}}
    found = json.loads(json.dumps(take_fingerprint(model, (ids,), kwargs)))
    assert found["shapes"] == [[2, 2, 4]]
    check_fingerprint(model, found, "")
    with pytest.raises(PlanError, match="outputs differ"):
        check_fingerprint(Words(), found, "")
    assert "outputs" not in take_fingerprint(model, (torch.zeros(5000, dtype=torch.long),), kwargs)


def test_saves_without_a_fingerprint_still_load(folder: Path) -> None:
    reseal(folder, lambda body: body.pop("fingerprint"))
    assert load(folder, lambda: Small(scale=7.0)).scale == 7.0


# --- names of classes


def test_a_renamed_class_is_taken_and_said(folder: Path) -> None:
    class Renamed(Small):
        pass

    with pytest.warns(UserWarning, match="class was called Small, the factory's is called .*Renamed") as seen:
        again = load(folder, Renamed)
    assert seen[0].filename == __file__
    assert torch.equal(again.inlet.weight, load(folder, Small).inlet.weight)


# --- files


def test_a_foreign_plan_json_is_left_as_it_is(tmp_path: Path) -> None:
    model = Small()
    plan = half_plan(trace(model, X))
    small = shrink(model, plan, check=False)
    for text in ('{"my": "own plan"}', "", '{"format": 1}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(StoreError, match=r"plan.json was not written by an earlier save.*move it"):
            save(tmp_path, small, plan)
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
        assert (tmp_path / "plan.json").read_text() == text
    (tmp_path / "plan.json").unlink()
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(StoreError, match=r"plan.json is not a file"):
        save(tmp_path, small, plan)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    (tmp_path / "plan.json").rmdir()
    save(tmp_path, small, plan)
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text()[:500])
    save(tmp_path, small, plan)
    load(tmp_path, Small)


def test_all_files_get_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        place = saved(tmp_path / "run", Small())
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o640}


@pytest.mark.parametrize("path", [None, 5, b"run", "a\0b"])
def test_what_is_no_path(path: Any) -> None:
    model = Small()
    plan = half_plan(trace(model, X))
    for call in (
        lambda: load(path, Small),
        lambda: load_plan(path),
        lambda: read_report(path),
        lambda: save(path, model, plan),
    ):
        with pytest.raises(InputError, match="path"):
            call()


def test_factories_that_fail(folder: Path) -> None:
    def broken() -> nn.Module:
        raise OSError("no such checkpoint")

    def needy(width: int) -> nn.Module:
        return Small()

    with pytest.raises(InputError, match=r"broken failed: OSError: no such checkpoint"):
        load(folder, broken)
    with pytest.raises(InputError, match=r"needy failed: TypeError: .*width.*called without arguments"):
        load(folder, needy)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"returned a NoneType"):
        load(folder, lambda: None)  # type: ignore[arg-type,return-value]


# --- resealed documents


def change(folder: Path, way: tuple[str, ...], value: Any) -> None:
    def put(body: Any) -> None:
        for key in way[:-1]:
            body = body[key]
        body[way[-1]] = value

    reseal(folder, put)


BIG = {"$type": "Group", "name": "inlet", "size": 2**40, "slots": {"$tuple": []}}


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        (("files", "model", "name"), "../x.safetensors", "names '../x.safetensors', which save does not"),
        (("files", "model", "name"), "x", "names 'x', which save does not write"),
        (("plan",), {"a": 1}, "a dict instead of a plan"),
        (("plan", "keep"), 5, "keep must map group names to unit numbers"),
        (("plan", "keep", "inlet"), {"$ints": [[0, 10**12, 1]], "shape": [10**12]}, "more than"),
        (("plan", "keep", "inlet"), {"$ints": [[2**63, 4, 1]], "shape": [4]}, "not a plan: OverflowError"),
        (("plan", "keep", "inlet"), {"$ints": [[6, 4, 1]], "shape": [4]}, "has unit 8 at index 2"),
        (("plan", "graph", "groups"), {"$tuple": [BIG]}, "groups hold more than"),
        (("plan", "notes"), {"x": [{"$ints": [[0, 2**20, 1]], "shape": [2**20]}] * 9}, "more than"),
        (("model",), None, "model is a NoneType, not a dict"),
        (("model", "ties"), [], "model.ties is a list, not a dict"),
        (("model", "modules"), {"": None}, "is damaged"),
        (("model", "strides"), {"inlet.weight": ["a", None, 1, 2]}, "is damaged"),
        (("files",), {}, "names no file of the model"),
        (("files", "model"), {"name": "x"}, "does not describe the file 'model'"),
        (("fingerprint",), "outputs", "fingerprint is a str, not a dict"),
        (("fingerprint", "inputs"), [{"tensor": "float32", "shape": [2**40], "values": None}], "fails on"),
    ],
)
def test_errors_name_the_field(folder: Path, way: tuple[str, ...], value: Any, words: str) -> None:
    change(folder, way, value)
    with pytest.raises((StoreError, PlanError), match=words):
        load(folder, Small)


@pytest.mark.parametrize("attribute", ["__class__.__call__", "forward.__func__.x", "kind.width", "place.x"])
def test_a_plan_changes_the_model_only_and_no_class(tmp_path: Path, attribute: str) -> None:
    class Holder(Small):
        kind, place = type("Kind", (), {"width": 8}), os

    place = saved(tmp_path / "run", Holder())
    size = {"$type": "SizeAttribute", "module": "", "attribute": attribute, "value": 8}
    index = {"$tuple": [{"$ints": [[0, 8, 1], [0, 8, 1]], "shape": [2, 8]}]}
    size |= {"groups": {"$tuple": ["inlet"]}, "index": index}
    change(place, ("plan", "graph", "sizes"), {"$tuple": [size]})
    with pytest.raises(PlanError, match="is not an attribute of the model"):
        load(place, Holder)
    assert Holder.kind.width == 8
    assert isinstance(Holder()(X), Tensor)


def test_a_save_deletes_nothing_outside_its_folder(folder: Path) -> None:
    (folder.parent / "mine").write_text("a file of the user's")
    change(folder, ("files", "model", "name"), "../mine")
    saved(folder, Small())
    assert (folder.parent / "mine").exists()
    load(folder, Small)


def test_a_plan_json_that_is_no_plain_file_or_too_large(folder: Path) -> None:
    path = folder / "plan.json"
    with path.open("r+b") as file:
        file.truncate(2**33)  # sparse: it takes no space
    with pytest.raises(StoreError, match="at most 268435456 are read"):
        load(folder, Small)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a file"):
        load(folder, Small)
    with pytest.raises(StoreError, match="not a file"):
        saved(folder, Small())


def test_nesting_too_deep(folder: Path) -> None:
    whole = (folder / "plan.json").read_text()
    for text in ("[" * 100000, whole.replace('"body": {', '"body": {"x":' + "[" * 50000 + "]" * 50000 + ",")):
        (folder / "plan.json").write_text(text)
        with pytest.raises(StoreError, match=r"plan.json is damaged"):
            load(folder, Small)


def test_plans_in_lists_come_back(tmp_path: Path) -> None:
    model = Small()
    plan = Plan(trace(model, X), "by hand", {"inlet": [0, 1, 2, 5]})  # type: ignore[dict-item]
    save(tmp_path / "run", shrink(model, plan), plan)
    assert np.array_equal(load_plan(tmp_path / "run").keep["inlet"], [0, 1, 2, 5])
    load(tmp_path / "run", Small)


def test_a_loop_of_links_and_a_wrong_path_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, None, 3):
        with pytest.raises(InputError, match="path"):
            write_text(path, "text")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="path"):
            load_plan(path)  # type: ignore[arg-type]


def test_inputs_of_a_fingerprint_are_bounded_together(folder: Path) -> None:
    many = {"tensor": "float32", "shape": [2**20], "values": None}
    change(folder, ("fingerprint", "inputs"), {"$tuple": [{"$tuple": [many] * 300}, {}]})
    with pytest.raises(PlanError, match="inputs of more than"):
        load(folder, Small)


@pytest.mark.parametrize("name", ["runs.json", "sensitivity.json", "plan.json"])
def test_pipes_are_never_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(StoreError, match="is not a file"):
        read_bounded(tmp_path / name)
    if name == "sensitivity.json":
        with pytest.warns(UserWarning, match="is not a file"):
            assert read_sections(tmp_path) == []
    else:
        with pytest.raises(StoreError, match="is not a file"):
            read_runs(tmp_path)
