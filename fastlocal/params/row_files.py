"""Files of fixed-size rows, one file for each name.

Row i of a file lies at i times its size; rows that were never written take no space. Files are read and written at
positions, not mapped: a full disk is then an OSError, where a page of a mapped file that finds no place ends the
process by a signal, and nothing counts as memory of the process but its own buffers.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

ROWS_SUFFIX = ".rows"
NAME_LENGTH = 80
"""Characters of a row's name in its file's; the number before them is unique."""

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class RowFiles:
    """Rows of some names, each in a file that all processes of a run share."""

    def __init__(self, folder: Path, row_bytes: Mapping[str, int]) -> None:
        """Describe the files; they are opened when they are used first.

        Args:
            folder: Their folder.
            row_bytes: {name: bytes of a row}, in the same order in every process.
        """
        self.folder, self.row_bytes = folder, dict(row_bytes)
        self.files = {
            name: f"{number}.{quote(name, safe='')[:NAME_LENGTH]}{ROWS_SUFFIX}" for number, name in enumerate(row_bytes)
        }
        self._open: dict[str, int] = {}

    def read(self, name: str, numbers: Numbers, rows: Bytes, places: Numbers) -> None:
        """Read rows of a file.

        Args:
            name: Name of the file's rows.
            numbers: Their numbers.
            rows: [rows, bytes of a row], without gaps, that takes them.
            places: Place in `rows` of each number.
        """
        size = self.row_bytes[name]
        if not size:
            return
        for begin, end in runs(numbers, places):
            into = rows[places[begin] : places[begin] + end - begin]
            _read_at(self._file(name), into.reshape(-1).data, int(numbers[begin]) * size)

    def write(self, name: str, numbers: Numbers, rows: Bytes) -> None:
        """Write `rows`, [numbers, bytes of a row] without gaps, as the rows of these numbers."""
        size = self.row_bytes[name]
        if not size:
            return
        for begin, end in runs(numbers):
            write_at(self._file(name), rows[begin:end].reshape(-1).data, int(numbers[begin]) * size)

    def length(self, name: str) -> int:
        """Return the number of rows up to the end of a file, 0 if there is none."""
        path = self.folder / self.files[name]
        return path.stat().st_size // max(self.row_bytes[name], 1) if path.exists() else 0

    def sync(self) -> None:
        """Flush the files to the disk."""
        for file in list(self._open.values()):
            os.fsync(file)

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            os.close(file)
        self._open = {}

    def _file(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = create_file(self.folder / self.files[name], os.O_RDWR)
        return self._open[name]


def runs(*numbers: Numbers) -> Iterator[tuple[int, int]]:
    """Yield [begin, end) of each run in which all of these arrays, of one length, count up by one."""
    if len(numbers[0]):
        breaks = np.any([np.diff(each) != 1 for each in numbers], axis=0)
        ends = (np.flatnonzero(breaks) + 1).tolist()
        yield from zip([0, *ends], [*ends, len(numbers[0])], strict=True)


def _read_at(file: int, into: memoryview, at: int) -> None:
    while len(into):
        count = os.preadv(file, [into], at)
        if not count:
            raise OSError(errno.EIO, "a row is not in its file")
        into, at = into[count:], at + count


def write_at(file: int, data: memoryview, at: int | None) -> None:
    while len(data):
        count = os.write(file, data) if at is None else os.pwrite(file, data, at)
        data, at = data[count:], None if at is None else at + count


def create_file(path: Path, flags: int) -> int:
    """Open a file, and make it, and its folder, if there is none; the folder's entry is then on the disk."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    path.parent.mkdir(exist_ok=True)
    file = os.open(path, flags | os.O_CREAT, 0o666)
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)
    return file


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
