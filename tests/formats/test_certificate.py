"""Certificates: a genuine folder passes, and whatever was changed in it is named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from resealed import reseal
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur.cli.main import app
from secateur.core import InputError, SecateurError, StoreError
from secateur.formats.certificate import hash_batches, read_certificate, verify_folder

SOURCE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)).eval()

def other():
    return make().requires_grad_(False).apply(lambda m: m.reset_parameters() if hasattr(m, "weight") else 0)

def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long())]
"""
FLAG = {"shape": [1], "values": [1]}
namespace: dict[str, Any] = {}
exec(SOURCE, namespace)
make, batches = namespace["make"], namespace["batches"]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genuine") / "run"
    result = sc.prune(make(), torch.ones(2, 6), sc.Units(0.5), batches(), method="activation", repair="fold")
    result.measure(batches()).save(folder)
    return folder


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(genuine, tmp_path / "run")


def refused(folder: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SecateurError) as seen:
        verify_folder(folder, *(args or (make(),)), **kwargs)
    return str(seen.value)


def test_a_genuine_folder_passes(genuine: Path) -> None:
    model = make()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    lines = verify_folder(genuine, model, batches())
    names = [line.partition(":")[0] for line in lines]
    assert names[:6] == ["versions", "plan", "original", "result", "shrunk", "exactness"]
    assert names[6:] == [
        *("sizes", "sizes in the report", "metrics", "batches", "accuracy before", "accuracy after")
    ]
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())
    assert verify_folder(genuine, model)[-1] == "metrics: not recomputed without their batches"


def test_a_changed_weight_is_named(folder: Path) -> None:
    (path,) = folder.glob("model-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # one bit
    path.write_bytes(bytes(content))
    assert f"{path} was changed after it was saved" in refused(folder)
    digest = hashlib.sha256(content).hexdigest()
    reseal(folder, lambda body: body["files"]["model"].update(sha256=digest))
    assert "result differs" in refused(folder)


def put(*way: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: Any) -> None:
        for key in way[:-1]:
            body = body[key]
        assert body[way[-1]] != value
        body[way[-1]] = value

    return change


def change_unit(body: dict[str, Any]) -> None:
    kept = body["plan"]["keep"]["0"]
    kept["$ints"] = [[0, 8, 1]] if kept["$ints"] != [[0, 8, 1]] else [[1, 8, 1]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (change_unit, "plan differs"),
        (put("plan", "seed", value=7), "plan differs"),
        (put("versions", "torch", value="1.0"), "versions differs"),
        (put("certificate", "versions", "torch", value="1.0"), "versions differs"),
        (put("certificate", "plan", value="0" * 64), "plan differs"),
        (put("certificate", "original", value="0" * 64), "original differs"),
        (put("certificate", "result", value="0" * 64), "result differs"),
        (put("certificate", "shrunk", value="0" * 64), "shrunk differs"),
        (put("certificate", "exactness", "bound", value=1.0), "exactness differs"),
        (put("certificate", "exactness", "deviation", value=1e-3), "exactness differs"),
        (put("certificate", "exactness", "reacts", value=False), "exactness differs"),
        (put("certificate", "sizes", "after", "parameters", value=1), "sizes differs"),
        (put("report", "before", "cost", "parameters", value=10**6), "sizes in the report differs"),
        (put("certificate", "metrics", "", "after", value=1.0), "metrics differs"),
        (put("report", "after", "metric", value=1.0), "metrics differs"),
        (put("certificate", "metrics", "", "batches", value="0" * 64), "metrics differs"),
        (put("certificate", value=None), "has no certificate: save the result again"),
        (put("certificate", value=[1]), "has no certificate that can be read"),
        (put("certificate", "plan", value=3), "'plan' is missing or damaged"),
        (put("certificate", "exactness", value={}), "exactness differs"),
        (put("certificate", "inputs", value=3), "is damaged"),
        (put("certificate", "inputs", value=[[{**FLAG, "tensor": "load"}], {}]), "not a type of torch"),
        (put("report", value=None), "not the report of a pruning"),
    ],
)
def test_every_changed_line_is_named(folder: Path, change: Callable[[Any], None], line: str) -> None:
    reseal(folder, change)
    assert line in refused(folder)


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if not isinstance(value, (dict, list)):
        yield way
        return
    for key, x in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(x, (*way, key))


def changed(x: Any) -> Any:
    if isinstance(x, str):
        return x[:-1] + ("0" if x[-1] != "0" else "1")
    return not x if isinstance(x, bool) else 1 if x is None else x + 1


def test_every_single_field_of_a_certificate_counts(folder: Path, genuine: Path) -> None:
    model, original = make(), (genuine / "plan.json").read_text()
    fields = list(leaves(json.loads(original)["body"]["certificate"]))
    assert len(fields) > 30
    for *way, key in fields:

        def change(body: Any, way: Any = way, key: Any = key) -> None:
            at = body["certificate"]
            for name in way:
                at = at[name]
            at[key] = changed(at[key])

        (folder / "plan.json").write_text(original)
        reseal(folder, change)
        line = way[0] if way else key
        said = refused(folder, model, batches())
        assert said.startswith(f"{line} differs") or "is damaged" in said, (way, key, said)


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "empty": lambda path, other: path.write_bytes(b""),
    "half": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "a byte longer": lambda path, other: path.write_bytes(path.read_bytes() + b"x"),
    "another run's": lambda path, other: shutil.copy(other, path),
    "missing": lambda path, other: path.unlink(),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path, other: (path.unlink(), path.symlink_to("/dev/zero")),
    "huge": lambda path, other: os.truncate(path, 2**40),
    "a pickle": lambda path, other: path.write_bytes(pickle.dumps(Runs(path.with_name("ran")))),
    "torch's pickle": lambda path, other: torch.save(Runs(path.with_name("ran")), path),
}


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "run"
    sc.prune(make(), torch.ones(2, 6), sc.Units(0.75), method="magnitude").save(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["plan.json", "model-*.safetensors"])
def test_every_damaged_file_is_refused_and_nothing_in_it_runs(
    folder: Path, other_run: Path, kind: str, damage: Callable[[Path, Path], Any]
) -> None:
    (path,), (other,) = folder.glob(kind), other_run.glob(kind)
    damage(path, other)
    said = refused(folder)
    assert str(folder) in said and len(said) < 1000
    assert not (folder / "ran").exists()


def test_metrics_changed_everywhere_are_recomputed(folder: Path) -> None:
    def change(body: Any) -> None:
        put("certificate", "metrics", "", "after", value=0.99)(body)
        put("report", "after", "metric", value=0.99)(body)

    reseal(folder, change)
    assert verify_folder(folder, make())
    assert "accuracy after differs: stated 0.99, recomputed" in refused(folder, make(), batches())


def test_another_original_and_other_batches_are_named(folder: Path) -> None:
    model = make()
    with torch.no_grad():
        model[0].weight.view(torch.int32)[0, 0] ^= 1
    assert "original differs" in refused(folder, model)
    assert "original differs" in refused(folder, nn.Linear(6, 3))
    x, y = batches()[0]
    assert "batches differs" in refused(folder, make(), [(x, 1 - y)])
    assert "no metrics on batches named 'other'" in refused(folder, make(), batches(), name="other")
    with pytest.raises(InputError, match="model must be"):
        verify_folder(folder, None)  # type: ignore[arg-type]


def test_a_certificate_that_came_by_another_way(genuine: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    result = sc.prune(make(), torch.ones(2, 6), sc.Units(0.5), method="magnitude")
    assert result.certificate(path) == read_certificate(path)
    assert "plan differs" in refused(folder, make(), certificate=read_certificate(path))
    result.save(tmp_path / "again")
    assert verify_folder(tmp_path / "again", make(), certificate=read_certificate(path))
    path.write_text("[" * 10**5)
    for text in ("[" * 10**5, "{}", "3", "\ud800".encode("utf-8", "surrogatepass").decode("latin1")):
        path.write_text(text)
        with pytest.raises(StoreError, match="certificate"):
            read_certificate(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is not a file"):
        read_certificate(path)


def test_inputs_that_cannot_be_described_are_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    words = torch.zeros(2, 3000, dtype=torch.long)
    result = sc.prune(model, words, sc.Units(0.5), method="magnitude", check=False)
    result.save(tmp_path / "run")
    lines = verify_folder(tmp_path / "run", model)
    assert "exactness: not compared, these inputs cannot be stored" in lines


def test_hashes_of_batches_see_forms_types_and_order() -> None:
    x = torch.ones(2)
    kinds = [
        [x],
        [x, x],
        [(x, x)],
        [{"a": x}],
        [{"b": x}],
        [x.double()],
        [x[:, None]],
        [(x, 1)],
        [(x, 2)],
    ]
    assert len({hash_batches(batches) for batches in kinds}) == len(kinds)


def test_the_command_line(genuine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE)
    run = partial(CliRunner().invoke, app)
    done = run(["verify", str(genuine), "--model", "net.py:make", "--holdout", "net.py:batches"])
    assert done.exit_code == 0, done.output
    assert "accuracy after: " in done.stdout and "yes: all of it agrees. It does not prove who" in done.stdout
    done = run(["verify", str(genuine), "--model", "net.py:other"])
    assert done.exit_code == 2 and "original differs" in done.stderr
