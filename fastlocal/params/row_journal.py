"""Journal of the rows of RowFiles that were overwritten.

A journal has the before-images of rows, each appended and flushed to the disk before the row is overwritten for the
first time in an epoch. An epoch begins with the snapshot of a state, so that undoing the epochs from a state's own on,
the last one first, gives the rows of that state, whether or not later snapshots were saved. There is a file for each
epoch and process, of records

    HEAD (bytes of the name, rows, bytes of a row), name of the file, row numbers [rows] int64, rows, CRC-32 of these
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .row_files import Bytes, Numbers, create_file, runs, sync_folder, write_at

JOURNAL_SUFFIX = ".journal"
HEAD = struct.Struct("<HQQ")
CRC_BYTES = 4


class RowJournal:
    """Before-images of one process's rows in the current epoch."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._file: int | None = None
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        """Begin an epoch; its file is made with the first image."""
        self.close()
        self.epoch = epoch

    def append(self, name: str, numbers: Numbers, rows: Bytes) -> None:
        """Append before-images; they are safe after `sync`.

        Args:
            name: Name of the rows' file.
            numbers: Their numbers.
            rows: [numbers, bytes of a row].
        """
        if self._file is None:
            path = self._folder / f"{self.epoch}.{self._rank}{JOURNAL_SUFFIX}"
            self._file = create_file(path, os.O_WRONLY | os.O_APPEND)
        text = name.encode()
        head = HEAD.pack(len(text), len(numbers), rows.shape[1]) + text + numbers.astype("<i8").tobytes()
        images = rows.reshape(-1).data
        check = zlib.crc32(images, zlib.crc32(head))
        for part in (memoryview(head), images, memoryview(check.to_bytes(CRC_BYTES, "little"))):
            write_at(self._file, part, None)

    def sync(self) -> None:
        """Flush the images to the disk."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file of the epoch."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def undo(folder: Path, epoch: int) -> None:
    """Give all rows the values that they had when an epoch began; after a kill meanwhile it can be done again."""
    journals = _journals(folder)
    for number in sorted({at for at in journals.values() if at >= epoch}, reverse=True):
        changed: dict[str, int] = {}
        try:
            for path in (path for path, at in journals.items() if at == number):
                for name, numbers, rows in _records(path):
                    file = changed.get(name)
                    if file is None:
                        file = changed[name] = create_file(folder / name, os.O_RDWR)
                    for begin, end in runs(numbers):
                        write_at(file, rows[begin:end].reshape(-1).data, int(numbers[begin]) * rows.shape[1])
            for file in changed.values():
                os.fsync(file)
        finally:
            for file in changed.values():
                os.close(file)
        # an earlier epoch's are still there: without this one, undoing them again gives the same
        for path in (path for path, at in journals.items() if at == number):
            path.unlink()
        sync_folder(folder)


def forget(folder: Path, epoch: int) -> None:
    """Remove the journals of the epochs before this one, to which no state goes back."""
    for path, at in _journals(folder).items():
        if at < epoch:
            path.unlink(missing_ok=True)


def has_journals(folder: Path) -> bool:
    """Return True if there are journals in a folder."""
    return bool(_journals(folder))


def _journals(folder: Path) -> dict[Path, int]:
    """Return the epoch of each journal."""
    found = {path: re.fullmatch(r"(\d+)\.\d+", path.stem) for path in folder.glob(f"*{JOURNAL_SUFFIX}")}
    return {path: int(match[1]) for path, match in found.items() if match}


def _records(path: Path) -> Iterator[tuple[str, Numbers, Bytes]]:
    """Yield the whole records of a journal: the file's name, numbers and images. What follows them was not flushed."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left >= HEAD.size:
            head = file.read(HEAD.size)
            length, count, size = HEAD.unpack(head)
            left -= HEAD.size + length + count * (8 + size) + CRC_BYTES
            if left < 0:
                return
            text, numbers, images = file.read(length), file.read(8 * count), file.read(count * size)
            check = zlib.crc32(images, zlib.crc32(head + text + numbers))
            if file.read(CRC_BYTES) != check.to_bytes(CRC_BYTES, "little"):
                return
            rows = np.frombuffer(images, dtype=np.uint8).reshape(count, size)
            yield text.decode(), np.frombuffer(numbers, dtype="<i8").astype(np.int64), rows
