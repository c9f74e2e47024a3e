"""LEAF's JSON: a folder train and a folder test of files with users, num_samples and user_data."""

from __future__ import annotations

from pathlib import Path

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.tables.leaf import read_users
from fastlocal.data.tables.samples import to_data_set
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read numbers x and labels y of each user; x that are grey levels become uint8 images.

    Raises:
        UsageError: A file is missing or malformed, or a user is without data; the message names the flag.
    """
    splits = []
    for flag, path, name in (("--train-pth", request.train_pth, "train"), ("--val-pth", request.val_pth, "test")):
        if path is None and request.data_pth is None:
            raise UsageError(f"--data-pth: give LEAF's folder with train and test, or {flag}")
        place = Path(path or f"{request.data_pth}/{name}").expanduser()
        origin = f"{flag if path else '--data-pth'} {place}"
        if not place.exists():
            raise UsageError(f"{origin}: does not exist; LEAF writes .json files to the folders train and test")
        splits.append(read_users(origin, place))
    return to_data_set(request.name, *splits)
