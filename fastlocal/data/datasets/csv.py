"""Tables of text: .csv files with a column of labels, and of clients if there is one."""

from __future__ import annotations

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.tables.paths import split_files
from fastlocal.data.tables.samples import ColumnNames, from_columns, to_data_set
from fastlocal.data.tables.text import read_csv
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read features float32 [n, 1, 1, features], one for each column that is neither label nor client.

    Columns are named in the first line. Labels are integers from 0, or texts. Files are `train_pth` and `val_pth`, else
    those of `data_pth` whose names hold train and test.

    Raises:
        UsageError: A file is missing or malformed; the message names its flag.
    """
    splits = []
    for (origin, path), training in zip(split_files(request, (".csv",)), (True, False), strict=True):
        roles = ColumnNames(request.label_column, request.client_column, training)
        splits.append(from_columns(origin, read_csv(origin, path, roles), roles))
    return to_data_set(request.name, *splits)
