"""CIFAR-10 and CIFAR-100, read and downloaded by torchvision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._download import guard_download
from fastlocal.data.types import DataSet, Split

_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_READERS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_MEANS = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4867, 0.4408)}
_STDS = {"cifar10": (0.2023, 0.1994, 0.2010), "cifar100": (0.2675, 0.2565, 0.2761)}


def read(request: DatasetSpec) -> DataSet:
    """Read RGB images [n, 3, 32, 32]: 50,000 for training, 10,000 for testing, from `data_pth` (default ./data).

    CIFAR-100 has its 100 fine labels. Missing files and files with a wrong checksum are downloaded.
    """
    name = request.name
    reader = _READERS[name]
    root = Path(request.data_pth or "data").expanduser()
    try:
        train = _split(reader, root, train=True)
    except (RuntimeError, OSError):
        request.message(f"downloading {_TITLES[name]} into {root}")
        archive = root / reader.filename
        expected = f"the files of {reader.filename} in {root / reader.base_folder}"
        with guard_download(_TITLES[name], root, expected), _remove_on_failure(archive):
            reader(str(root), download=True)
            train = _split(reader, root, train=True)
    return DataSet(
        name=name,
        train=train,
        test=_split(reader, root, train=False),
        classes=_CLASSES[name],
        mean=_MEANS[name],
        std=_STDS[name],
    )


@contextlib.contextmanager
def _remove_on_failure(archive: Path) -> Iterator[None]:
    """Remove a new `archive` if its download fails or is interrupted."""
    existed = archive.exists()
    try:
        yield
    except BaseException:
        if not existed:
            archive.unlink(missing_ok=True)
        raise


def _split(reader: type[CIFAR10], root: Path, train: bool) -> Split:
    """Read a split; torchvision compares checksums, so that a half-unpacked archive is never read."""
    dataset = reader(str(root), train=train)
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(images), torch.tensor(dataset.targets, dtype=torch.int64))
