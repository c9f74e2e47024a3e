"""Tables in .parquet files with a column of labels, and of clients if there is one."""

from __future__ import annotations

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.install_hints import PYARROW
from fastlocal.data.tables.paths import split_files
from fastlocal.data.tables.samples import ColumnNames, from_columns, to_data_set
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read one column of images or lists, or features of which each is a column; see `csv` and `flower`.

    Raises:
        UsageError: pyarrow or a file is missing, or a file is malformed; the message names its flag.
    """
    files = split_files(request, (".parquet",))
    try:
        from fastlocal.data.tables.pyarrow_files import read_parquet
    except ImportError:
        raise UsageError(f"--dataset {request.name} needs pyarrow; {PYARROW}") from None
    splits = []
    for (origin, path), training in zip(files, (True, False), strict=True):
        roles = ColumnNames(request.label_column, request.client_column, training)
        splits.append(from_columns(origin, read_parquet(origin, path), roles))
    return to_data_set(request.name, *splits)
