"""What a user can get wrong, said in one line."""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Iterable


class UsageError(ValueError):
    """A user's mistake. Its text is one line that names the flag, what was given and what would do.

    The command line prints it without a traceback and exits with status 2; Python users see a ValueError.
    """


class AgreedError(UsageError):
    """A mistake that every process of a run knows of, so that one of them says it."""


class RankMissing(Exception):
    """Processes of a run that did not come to where the others wait; the text is one line that names them."""


class StoppedAlone(KeyboardInterrupt):
    """A signal asks to stop, and nothing is saved, for a process that this needs is gone; the text names it."""


class NonFiniteLoss(ArithmeticError):
    """A client's loss or the averaged parameters are NaN or infinite. The command line exits with status 3."""


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error's message as one line of at most `most` characters, and its kind where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name closest to `name`, or an empty string where none is close."""
    found = difflib.get_close_matches(name, list(known), n=8, cutoff=0.5)
    if not found:
        return ""

    def closeness(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, other, name).ratio(), len(os.path.commonprefix([other, name]))

    return f"; did you mean {max(found, key=closeness)!r}?"
