"""Columns of .parquet files and of the .arrow files of save_to_disk, by pyarrow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

from fastlocal.common.errors import UsageError, one_line
from fastlocal.data.images.worker import GREY_MODES, Unfit, refuse_deep

from .samples import Array


def read_parquet(origin: str, path: Path) -> dict[str, Array]:
    """Read the columns of a .parquet file as `to_columns`."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UsageError(f"{origin}: cannot be read ({one_line(error, 150)})") from None
    return to_columns(origin, table)


def read_folders(
    flag: str, folders: list[Path], label_column: str
) -> tuple[dict[str, Array], list[int], tuple[str, ...] | None]:
    """Read folders that `datasets.Dataset.save_to_disk` wrote, one after the other.

    Args:
        flag: The user's flag, for messages.
        folders: The folders; all have the same columns.
        label_column: Column of the labels.

    Returns:
        Columns as `to_columns`, rows of each folder, and the names of the labels, if `datasets` stored them.
    """
    tables = [_read_saved(f"{flag} {folder}", folder) for folder in folders]
    first = tables[0].column_names
    for folder, table in zip(folders, tables, strict=True):
        if table.column_names != first:
            own = ", ".join(table.column_names)
            raise UsageError(f"{flag} {folder}: has the columns {own}, {folders[0].name} {', '.join(first)}")
    try:
        joined = pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{flag} {folders[0].parent}: folders have other columns ({one_line(error, 150)})") from None
    columns = to_columns(f"{flag} {folders[0].parent}", joined)
    return columns, [table.num_rows for table in tables], _class_names(tables[0], label_column)


def _read_saved(origin: str, folder: Path) -> pyarrow.Table:
    """Read one folder of save_to_disk."""
    try:
        state = json.loads((folder / "state.json").read_text())
        tables = []
        for file in state["_data_files"]:
            with pyarrow.memory_map(str(folder / file["filename"])) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
        return pyarrow.concat_tables(tables)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UsageError(f"{origin}: is no folder of save_to_disk ({one_line(error, 150)})") from None


def to_columns(origin: str, table: pyarrow.Table) -> dict[str, Array]:
    """Convert columns: numbers and texts to arrays [n], lists to [n, ...], and images to uint8 [n, h, w, channels]."""
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        try:
            columns[name] = _to_array(column)
        except (ValueError, TypeError, pyarrow.ArrowException, Unfit) as error:
            raise UsageError(f"{origin}: column {name} cannot be read ({one_line(error, 150)})") from None
    return columns


def _class_names(table: pyarrow.Table, label_column: str) -> tuple[str, ...] | None:
    """Return the names of the labels that `datasets` stores, or None."""
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][label_column]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _to_array(column: Any) -> Array:
    kind = column.type
    if isinstance(kind, pyarrow.BaseExtensionType):
        column, kind = column.storage, kind.storage_type
    if column.null_count:
        raise ValueError(f"{column.null_count} values are missing")
    if pyarrow.types.is_dictionary(kind):
        return _to_array(column.dictionary_decode())
    if pyarrow.types.is_struct(kind) and "bytes" in {field.name for field in kind}:
        return _images([content["bytes"] for content in column.to_pylist()])
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if pyarrow.types.is_nested(kind):
        return np.array(column.to_pylist())
    array: Array = column.to_numpy(zero_copy_only=False)
    return array


def _images(files: list[bytes | None]) -> Array:
    """Decode image files: [n, h, w, 1] if all are grey, else RGB [n, h, w, 3]."""
    opened = []
    for number, content in enumerate(files):
        if content is None:
            raise ValueError(f"image {number} is not in the file but beside it; save its bytes")
        image = Image.open(io.BytesIO(content))
        refuse_deep(f"image {number}", image.mode)
        opened.append(image)
    grey = all(image.mode in GREY_MODES for image in opened)
    sizes = {image.size for image in opened}
    if len(sizes) > 1:
        raise ValueError(f"images are of {len(sizes)} sizes; all must have one")
    pixels = [np.asarray(image.convert("L" if grey else "RGB")) for image in opened]
    return np.stack(pixels)[..., None] if grey else np.stack(pixels)
