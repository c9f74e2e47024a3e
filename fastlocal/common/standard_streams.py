"""Missing or closed standard streams, as of a daemon or of a program without a console."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def is_open(stream: Any) -> bool:
    """Return True if the stream exists and accepts text."""
    return stream is not None and not getattr(stream, "closed", False)


def is_terminal(stream: Any) -> bool:
    """Return True if the stream is an open terminal."""
    return is_open(stream) and hasattr(stream, "isatty") and bool(stream.isatty())


def say(text: str) -> None:
    """Print a line on standard error if it is open."""
    if is_open(sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def occupy_descriptors() -> None:
    """Open the null device for each closed descriptor among 0, 1 and 2.

    Otherwise the next file would get that number, and C++ code would print its errors into the file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextlib.contextmanager
def hide_closed_streams() -> Iterator[None]:
    """Replace closed streams by None: warnings and logging skip None, and raise on a closed stream."""
    occupy_descriptors()
    with contextlib.ExitStack() as stack:
        if not is_open(sys.stdout):
            stack.enter_context(contextlib.redirect_stdout(None))
        if not is_open(sys.stderr):
            stack.enter_context(contextlib.redirect_stderr(None))

        yield
