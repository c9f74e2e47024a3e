"""Folders of Flower Datasets: partition_0, partition_1, ..., each by save_to_disk."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.install_hints import PYARROW
from fastlocal.data.tables.samples import CLIENT_COLUMN, LABEL_COLUMN, ColumnNames, from_columns, to_data_set
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read the partitions of `data_pth` as clients 0, 1, ..., and the test split.

    A partition is a saved Dataset, or a saved DatasetDict of train and test. The test split is `val_pth`, else
    `data_pth`/test, both a saved Dataset, else the tests of all partitions.

    Raises:
        UsageError: pyarrow or a folder is missing, or a folder is malformed; the message names its flag.
    """
    try:
        from fastlocal.data.tables.pyarrow_files import read_folders
    except ImportError:
        raise UsageError(f"--dataset {request.name} needs pyarrow; {PYARROW}") from None
    flag, path = ("--train-pth", request.train_pth) if request.train_pth else ("--data-pth", request.data_pth)
    if path is None:
        raise UsageError("--data-pth: give the folder with partition_0, partition_1, ..., each by save_to_disk")
    root = Path(path).expanduser()
    folders = _partitions(f"{flag} {root}", root)
    nested = (folders[0] / "train").is_dir()
    if request.val_pth is not None:
        tests = [Path(request.val_pth).expanduser()]
    elif (root / "test").is_dir():
        tests = [root / "test"]
    elif nested and (folders[0] / "test").is_dir():
        tests = [folder / "test" for folder in folders]
    else:
        raise UsageError(f"{flag} {root}: has no test split; give one as --val-pth, a folder of save_to_disk")
    label = request.label_column or LABEL_COLUMN
    roles = ColumnNames(label, None, training=False)
    trains = [folder / "train" if nested else folder for folder in folders]
    columns, sizes, names = read_folders(flag, trains, label)
    columns[CLIENT_COLUMN] = np.repeat(np.arange(len(trains)), sizes)
    train = from_columns(f"{flag} {root}", columns, roles, names)
    flag = flag if request.val_pth is None else "--val-pth"
    columns = read_folders(flag, tests, label)[0]
    return to_data_set(request.name, train, from_columns(f"{flag} {tests[0]}", columns, roles, names))


def _partitions(origin: str, root: Path) -> list[Path]:
    """Return the folders partition_0, partition_1, ... in the order of their numbers."""
    numbered = {}
    for path in root.iterdir() if root.is_dir() else ():
        match = re.fullmatch(r"partition_(\d+)", path.name)
        if match and path.is_dir():
            numbered[int(match[1])] = path
    if not numbered:
        raise UsageError(f"{origin}: has no folders partition_0, partition_1, ...")
    missing = min(set(range(len(numbered) + 1)) - set(numbered))
    if missing < len(numbered):
        raise UsageError(f"{origin}: has no folder partition_{missing}, but partition_{max(numbered)}")
    return [numbered[number] for number in range(len(numbered))]
