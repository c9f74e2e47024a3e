"""Columns of a .csv file."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np

from fastlocal.common.errors import UsageError, one_line

from .samples import Array, ColumnNames


def read_csv(origin: str, path: Path, roles: ColumnNames) -> dict[str, Array]:
    """Read the columns of a .csv file with a header: labels and clients as integers or texts, all others as float32.

    Raises:
        UsageError: A value is no number, a row has another length, or the file is no text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
        if len(set(header)) < len(header) or not header:
            raise UsageError(f"{origin}: its first line names no columns, or one twice")
        words = roles.find(origin, header)
        columns: dict[str, Array] = {}
        numbers = [place for place, name in enumerate(header) if name not in words]
        values = _load(path, numbers, np.dtype(np.float32)) if numbers else np.zeros((0, 0), np.float32)
        columns |= {header[place]: values[:, index] for index, place in enumerate(numbers)}
        for place, name in enumerate(header):
            if name in words:
                columns[name] = _integers_or_texts(_load(path, [place], np.dtype(object))[:, 0])
    except UsageError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{origin}: cannot be read ({one_line(error, 150)})") from None
    return {name: columns[name] for name in header}


def _load(path: Path, places: list[int], dtype: np.dtype[np.float32] | np.dtype[np.object_]) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a file without rows, which the caller refuses
        converters = str if dtype == np.dtype(object) else None
        values: Array = np.loadtxt(
            path,
            dtype=dtype,
            comments=None,
            delimiter=",",
            converters=converters,
            skiprows=1,
            usecols=places,
            ndmin=2,
            encoding="utf-8-sig",
            quotechar='"',
        )
        return values


def _integers_or_texts(values: Array) -> Array:
    texts = values.astype(np.str_)
    try:
        return texts.astype(np.int64)
    except (ValueError, OverflowError):
        return texts
