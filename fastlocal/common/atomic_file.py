"""Atomic replacement of files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .interrupts import defer_signals

TEMPORARY_SUFFIX = ".fastlocal.tmp"
"""Suffix of a temporary file, whose name also begins with a dot."""


@defer_signals()
def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, first: Callable[[], object] = lambda: None
) -> None:
    """Replace a file atomically: a reader finds the whole old or the whole new content, even after a crash.

    The content goes to a temporary file beside `path`, which is flushed to the disk and then renamed.

    Args:
        path: The file.
        write: Writes the content to a binary file.
        first: Called when the new content is complete, before the rename.

    Raises:
        OSError: The file cannot be written; the old content stays, and no temporary file remains.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        first()
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
