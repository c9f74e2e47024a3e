"""Standard streams that are missing or closed, as those of a daemon or of a program without a console are."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def is_open(stream: Any) -> bool:
    """Whether a stream is there and takes text."""
    return stream is not None and not getattr(stream, "closed", False)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is open and draws on a terminal."""
    return is_open(stream) and hasattr(stream, "isatty") and bool(stream.isatty())


def say(text: str) -> None:
    """Print a line on standard error, where somebody may read it."""
    if is_open(sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def occupy_descriptors() -> None:
    """Open the null device for each of the descriptors 0, 1 and 2 that is closed.

    The next file would get its number, and whatever C++ prints on standard error would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextlib.contextmanager
def closed_as_missing() -> Iterator[None]:
    """Take a closed stream for a missing one, to which warnings and logging write nothing; theirs would raise."""
    occupy_descriptors()
    with contextlib.ExitStack() as changed:
        if not is_open(sys.stdout):
            changed.enter_context(contextlib.redirect_stdout(None))
        if not is_open(sys.stderr):
            changed.enter_context(contextlib.redirect_stderr(None))
        yield
