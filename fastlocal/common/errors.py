"""The errors of a run, each with a one-line message for the user."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Iterable


class UsageError(ValueError):
    """A user's mistake. The message is one line: the flag, its value, and a value that works.

    The command line prints it without a traceback and exits with status 2. In Python it is a ValueError.
    """


class PropagatedError(UsageError):
    """A UsageError that every rank raises, so that one rank alone prints it."""


class RankMissing(Exception):
    """Ranks did not reach an exchange. The message is one line that names them."""


class StoppedUnsaved(KeyboardInterrupt):
    """A signal stopped the run without a save, because a rank is missing. The message names that rank."""


class NonFiniteLoss(ArithmeticError):
    """A client's loss or the averaged parameters are NaN or infinite. The command line exits with status 3."""


def one_line(error: BaseException, max_length: int = 300) -> str:
    """Return the error's message as one line of at most `max_length` characters; without a message, the type's name."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name closest to `name`, or "" if none is close."""
    found = difflib.get_close_matches(name, list(known), n=8, cutoff=0.5)
    if not found:
        return ""

    def closeness(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, other, name).ratio(), len(os.path.commonprefix([other, name]))

    return f"; did you mean {max(found, key=closeness)!r}?"
