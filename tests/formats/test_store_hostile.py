"""Saved results in hostile hands: factories of other models, foreign files, resealed documents."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import half_plan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PlanError, SecateurError, StoreError
from secateur.formats import fingerprint
from secateur.formats.store import load, load_plan, load_report, save
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
        ({"slope": 0.5}, r"outputs differ by .*'act' has negative_slope=0.5; saved: negative_slope=0.01"),
        ({"stride": 2}, r"shapes \[\[2, 4, 3, 3\]\], and the saved one \[\[2, 4, 6, 6\]\]"),
        ({"scale": 7.0}, r"computes something else than the saved one.*outputs differ by 6.0e\+00"),
        ({"eps": 1e-3}, r"outputs differ by .*'norm' has 4, eps=0.001"),
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
    """Adds noise in evaluation mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1, dtype=x.dtype)


class NotFinite(nn.Sequential):
    """Takes the logarithm of anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.log().sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", [Noisy, NotFinite])
def test_models_whose_outputs_cannot_be_compared(tmp_path: Path, kind: type[nn.Sequential]) -> None:
    def make(slope: float = 0.01) -> nn.Module:
        return kind(nn.Linear(6, 8), nn.LeakyReLU(slope), nn.Linear(8, 3))

    place = saved(tmp_path / "run", make(), torch.rand(2, 6) + 0.5)
    document = json.loads((place / "plan.json").read_text())
    assert "outputs" not in document["body"]["fingerprint"]
    for _ in range(3):
        load(place, make)
    with pytest.raises(PlanError, match=r"other settings.*'1' has negative_slope=0.5"):
        load(place, lambda: make(0.5))


def test_a_fingerprint_changes_neither_the_model_nor_the_randomness() -> None:
    model, x = Small().train(), torch.randn(2, 2, 6, 6)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = fingerprint.take(model, (x,), {})
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
    found = json.loads(json.dumps(fingerprint.take(model, (ids,), kwargs)))
    assert found["shapes"] == [[2, 2, 4]]
    fingerprint.compare(model, found, "")
    with pytest.raises(PlanError, match="outputs differ"):
        fingerprint.compare(Words(), found, "")
    assert "outputs" not in fingerprint.take(model, (torch.zeros(5000, dtype=torch.long),), kwargs)


def test_saves_without_a_fingerprint_still_load(folder: Path) -> None:
    reseal(folder, lambda body: body.pop("fingerprint"))
    assert load(folder, lambda: Small(scale=7.0)).scale == 7.0


# --- names of classes


def test_a_renamed_class_is_taken_and_said(folder: Path) -> None:
    class Renamed(Small):
        pass

    with pytest.warns(UserWarning, match="the class was called Small, the factory makes .*Renamed") as seen:
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
        with pytest.raises(StoreError, match=r"plan.json is not of an earlier save.*move it"):
            save(tmp_path, small, plan)
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
        assert (tmp_path / "plan.json").read_text() == text
    (tmp_path / "plan.json").unlink()
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(StoreError, match=r"plan.json is no file"):
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
        lambda: load_report(path),
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


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "plan.json"
    body = json.loads(path.read_text())["body"]
    change(body)
    text = json.dumps(body, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{{"format": 1,\n"sha256": "{digest}",\n"body": {text}}}')


def places(tree: Any, path: tuple[Any, ...] = (), depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every entry of a document, as deep as that."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries if depth else ():
        yield (*path, key)
        yield from places(value, (*path, key), depth - 1)


@pytest.mark.filterwarnings("ignore:the class was called")
def test_no_missing_or_mistyped_field_ends_in_a_raw_error(folder: Path) -> None:
    whole = (folder / "plan.json").read_text()
    gone = object()
    found = 0
    wrong = itertools.cycle([None, 5, -1, "x", [], {}, [["a"]]])
    for way in places(json.loads(whole)["body"]):
        if way[0] in ("about", "versions") or (way[0] == "report" and len(way) > 1):
            continue
        for value in (gone, next(wrong)):
            (folder / "plan.json").write_text(whole)

            def change(body: dict[str, Any], way: tuple[Any, ...] = way, value: Any = value) -> None:
                for key in way[:-1]:
                    body = body[key]
                if value is gone:
                    del body[way[-1]]
                else:
                    body[way[-1]] = value

            reseal(folder, change)
            try:
                load(folder, Small)
            except SecateurError:
                found += 1
    assert found > 100


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        (("files",), None, "field 'files' is a NoneType, not a dict"),
        (("model",), 5, "field 'model' is a int, not a dict"),
        (("files", "model", "name"), "../x.safetensors", "names '../x.safetensors', which no save writes"),
        (("model", "training"), [5], "field 'model/training/0' is no name"),
        (("model", "strides"), {"inlet.weight": [0, 0, 0, 0]}, "field 'model/strides/inlet.weight'"),
        (("plan",), {"a": 1}, "field 'plan' holds no plan"),
        (("plan", "network"), 5, "field 'network' of Plan is a int"),
        (("plan", "keep"), 5, "field 'keep' of Plan is a int"),
        (("plan", "keep", "inlet"), {"$ints": [[0, 10**12, 1]], "shape": [10**12]}, "runs of fewer than 1"),
        (("plan", "keep", "inlet"), {"$ints": [[2**63, 4, 1]], "shape": [4]}, "no plan: OverflowError"),
        (("plan", "keep", "inlet"), {"$ints": [[0.5, 4, 1]], "shape": [4]}, "runs that are no integers"),
        (("plan", "keep", "inlet"), {"$ints": [[6, 4, 1]], "shape": [4]}, "has unit 8 at index 2"),
    ],
)
def test_errors_name_the_field(folder: Path, way: tuple[str, ...], value: Any, words: str) -> None:
    def change(body: dict[str, Any]) -> None:
        for key in way[:-1]:
            body = body[key]
        assert way[-1] in body
        body[way[-1]] = value

    reseal(folder, change)
    with pytest.raises((StoreError, PlanError), match=words):
        load(folder, Small)


def test_fields_that_are_missing_are_named(folder: Path) -> None:
    whole = (folder / "plan.json").read_text()
    for way in ("files", "model", "plan", "report", "files/model", "files/model/sha256", "model/ties"):
        (folder / "plan.json").write_text(whole)

        def change(body: dict[str, Any], way: str = way) -> None:
            *path, last = way.split("/")
            for key in path:
                body = body[key]
            del body[last]

        reseal(folder, change)
        for read in (lambda: load(folder, Small), lambda: load_plan(folder), lambda: load_report(folder)):
            with pytest.raises(StoreError, match=f"has no field '{way}'"):
                read()


def test_nesting_too_deep(folder: Path) -> None:
    whole = (folder / "plan.json").read_text()
    for text in ("[" * 100000, whole.replace('"body": {', '"body": {"x":' + "[" * 50000 + "]" * 50000 + ",")):
        (folder / "plan.json").write_text(text)
        with pytest.raises(StoreError, match=r"plan.json is damaged"):
            load(folder, Small)


def test_tensors_of_another_kind(folder: Path) -> None:
    (path,) = folder.glob("model-*")
    tensors = load_file(path)
    for name, tensor, words in (
        ("inlet.bias", torch.zeros(4).long(), "'inlet.bias' was saved as torch.int64, and is torch.float32"),
        ("inlet.bias", torch.zeros(5), r"inlet.bias is \(4,\), not \(5,\)"),
        ("norm.num_batches_tracked", torch.zeros(()), "saved as torch.float32, and is torch.int64"),
    ):
        save_file({**tensors, name: tensor}, folder / "draft")
        digest = hashlib.sha256((folder / "draft").read_bytes()).hexdigest()
        new = (folder / "draft").rename(folder / f"model-{digest[:16]}.safetensors")
        said = {"name": new.name, "bytes": new.stat().st_size, "sha256": digest}
        reseal(folder, lambda body, said=said: body["files"].update(model=said))
        with pytest.raises((StoreError, PlanError), match=words):
            load(folder, Small)


def test_plans_in_lists_come_back(tmp_path: Path) -> None:
    model = Small()
    plan = Plan(trace(model, X), "by hand", {"inlet": [0, 1, 2, 5]})  # type: ignore[dict-item]
    save(tmp_path / "run", shrink(model, plan), plan)
    assert np.array_equal(load_plan(tmp_path / "run").keep["inlet"], [0, 1, 2, 5])
    load(tmp_path / "run", Small)
