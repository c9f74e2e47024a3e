"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), from its idx files.

torchvision downloads the files. They are read here, because torchvision reads no compressed ones, as Debian's are, and
accepts files of any length.
"""

from __future__ import annotations

import gzip
import math
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._download import guard_download
from fastlocal.data.types import DataSet, Split

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""

CLASSES = 10
SIDE = 28
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_RAW = Path("FashionMNIST", "raw")


def read(request: DatasetSpec) -> DataSet:
    """Read grey images [n, 1, 28, 28] in 10 classes: 60,000 for training, 10,000 for testing.

    The four files, plain or .gz, are searched in `data_pth`/FashionMNIST/raw (torchvision's place), in `data_pth`
    (default ./data) and in Debian's folder; if no folder has all of them, they are downloaded to the first.
    """
    root = Path(request.data_pth or "data").expanduser()
    places = (root / _RAW, root, DEBIAN_FOLDER)
    folder = next((place for place in places if all(_find(place, name) for name in _FILES)), None)
    if folder is None:
        request.message(f"downloading Fashion-MNIST into {root}")
        folder = _download(root)
    elif folder == DEBIAN_FOLDER:
        request.message(f"Fashion-MNIST is read from {folder}")
    images_train, labels_train, images_test, labels_test = (_read_idx(folder, name) for name in _FILES)
    return DataSet(
        name=request.name,
        train=_split(folder, images_train, labels_train),
        test=_split(folder, images_test, labels_test),
        classes=CLASSES,
        mean=(0.2860,),
        std=(0.3530,),
    )


def _find(folder: Path, name: str) -> Path | None:
    """Return the file `name` in `folder`, plain or compressed."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(root: Path) -> Path:
    """Download to a temporary folder first, so that the next run never finds an interrupted download."""
    from torchvision.datasets import FashionMNIST

    folder = root / _RAW
    with guard_download("Fashion-MNIST", root, f"{', '.join(_FILES)} in {folder}"):
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            FashionMNIST(temporary, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                os.replace(Path(temporary, _RAW, name), folder / name)
    return folder


def _read_idx(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a uint8 idx file: two zero bytes, type 8, the number of axes, each axis as a big-endian uint32."""
    path = _find(folder, name)
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"--data-pth {path} cannot be read ({error}); fetch it anew") from None
    axes = 3 if "idx3" in name else 1
    header = 4 + 4 * axes
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) != header + math.prod(shape):
        raise UsageError(f"--data-pth {path} is no idx file of {axes} axes, or a truncated one; fetch it anew")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def _split(
    folder: Path, images: np.ndarray[Any, np.dtype[np.uint8]], labels: np.ndarray[Any, np.dtype[np.uint8]]
) -> Split:
    if images.size == 0 or images.shape != (len(labels), SIDE, SIDE) or labels.max() >= CLASSES:
        raise UsageError(
            f"--data-pth {folder} does not hold Fashion-MNIST: images {list(images.shape)} and {len(labels)} labels up "
            f"to {labels.max(initial=0)}, where [n, {SIDE}, {SIDE}] and n labels up to {CLASSES - 1} are expected"
        )
    return Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))
