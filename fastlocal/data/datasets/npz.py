"""One .npz file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.types import DataSet, Split

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_UNREADABLE = (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)

Array = np.ndarray[Any, np.dtype[Any]]


def read(request: DatasetSpec) -> DataSet:
    """Read uint8 images, channels last, first or absent, and integer labels [n]; classes are the largest label + 1.

    Images of three axes are grey ([n, height, width]). Of four axes, the last one holds the channels if it is 1 or 3,
    else the second if it is 1 or 3. Objects are never unpickled.

    Raises:
        UsageError: The file holds anything else; the message names --data-pth.
    """
    if request.data_pth is None:
        raise UsageError(f"--data-pth is needed with --dataset npz: an .npz file with {', '.join(_KEYS)}")
    path = Path(request.data_pth).expanduser()
    arrays = _arrays(path)
    splits = [_split(path, arrays, name) for name in ("train", "test")]
    if splits[0].inputs.shape[1:] != splits[1].inputs.shape[1:]:
        raise UsageError(
            f"--data-pth {path}: x_train is {arrays['x_train'].shape} and x_test {arrays['x_test'].shape}; "
            "all images must have one shape"
        )
    classes = max(int(split.targets.max()) for split in splits) + 1
    return DataSet(request.name, splits[0], splits[1], classes=classes, mean=None, std=None)


def _arrays(path: Path) -> dict[str, Array]:
    """Return the four stored arrays."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--data-pth {path} {problem}; --dataset npz takes an .npz file with {', '.join(_KEYS)}")
    try:
        file = np.load(path, allow_pickle=False)
    except _UNREADABLE:
        raise UsageError(f"--data-pth {path} is no .npz file, or a truncated one; write it with numpy.savez") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UsageError(f"--data-pth {path} holds a single array; an .npz file with {', '.join(_KEYS)} is expected")
    arrays: dict[str, Array] = {}
    with file:
        for key in _KEYS:
            if key not in file.files:
                names = ", ".join(file.files) or "nothing"
                keys = ", ".join(_KEYS)
                raise UsageError(f"--data-pth {path} has no array {key}; it holds {names}, and needs {keys}")
            try:
                array = file[key]
            except _UNREADABLE as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(f"--data-pth {path}: {key} cannot be read ({reason}); write plain arrays") from None
            if not isinstance(array, np.ndarray):
                raise UsageError(f"--data-pth {path}: {key} is not stored as a numpy array")
            arrays[key] = array
    return arrays


def _split(path: Path, arrays: dict[str, Array], name: str) -> Split:
    """Check a split, and move its channels to the second axis."""
    images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
    x, y = f"--data-pth {path}: x_{name}", f"--data-pth {path}: y_{name}"
    if images.dtype != np.uint8:
        nan = np.issubdtype(images.dtype, np.inexact) and bool(np.isnan(images).any())
        raise UsageError(f"{x} is {images.dtype}{' and holds NaN' if nan else ''}; uint8 expected, 0 to 255")
    if images.ndim not in (3, 4):
        raise UsageError(f"{x} has shape {images.shape}; images [n, height, width, channels] are expected")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise UsageError(f"{x} has shape {images.shape}; neither its last nor its second axis has 1 or 3 channels")
    if images.size == 0:
        raise UsageError(f"{x} is empty, of shape {arrays[f'x_{name}'].shape}; at least one image is needed")

    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{y} is {labels.dtype}; integer labels expected")
    if labels.ndim != 1:
        raise UsageError(f"{y} has shape {labels.shape}; one label per image, [n], is expected")
    if len(labels) != len(images):
        raise UsageError(f"{y} has {len(labels)} labels for {len(images)} images in x_{name}; as many are needed")
    lowest, highest = int(labels.min()), int(labels.max())
    # a label above 2^31 is a -1 stored as unsigned
    if lowest < 0 or highest >= 2**31:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"{y} holds the label {wrong}; labels count from 0")
    return Split(
        torch.from_numpy(np.array(images, dtype=np.uint8, order="C")), torch.from_numpy(labels.astype(np.int64))
    )
