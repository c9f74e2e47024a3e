"""Parser of a command's flags: tyro, with one-line error messages.

tyro prints an error as a box of several lines. Its text is parsed here, because tyro has no stable API for it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from ..common.errors import UsageError
from .argv import registry

Flags = TypeVar("Flags")

KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}
"""Words for tyro's names of types."""
SIDES, RULES = "│ ", "╭╮╰╯─- "
"""Frame of a box. On a terminal without these characters it has a title, a rule of "-" and no sides."""
WIDE = "400"
"""Terminal width at which tyro breaks no line of an error."""


def parse_flags(kind: type[Flags], command: str, words: Sequence[str], **options: Any) -> Flags:
    """Parse the words of a command line.

    Args:
        kind: Dataclass whose fields are the flags.
        command: Name of the command, as in "fastlocal train".
        words: Words after the command.
        options: Further arguments of tyro.cli.

    Raises:
        UsageError: The words are invalid.
        SystemExit: --help was printed.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), _wide_terminal(words):
            return tyro.cli(kind, prog=command, args=words, registry=registry(), **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(f"{box_to_line(output.getvalue())}; `{command} --help` explains the flags") from None


@contextlib.contextmanager
def _wide_terminal(words: Sequence[str]) -> Iterator[None]:
    """Set COLUMNS, unless the words ask for help, which must fit the user's terminal."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & {*words}:
        os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({} if before is None else {"COLUMNS": before})


def box_to_line(box: str) -> str:
    """Convert tyro's error to one line.

    Args:
        box: A frame around a message, a rule, and the --help text of the flag.
    """
    lines = [line.strip(SIDES) for line in box.splitlines()[1:]]
    lines = ["" if not line.strip(RULES) else line for line in lines]
    lines = list(itertools.dropwhile(lambda line: not line, lines))
    end = next((place for place, line in enumerate(lines) if not line), len(lines))
    message = " ".join(lines[:end]).strip().rstrip(".")
    if found := re.fullmatch(r"Error parsing (\S+): (.*)", message):
        flag, reason = found.groups()
        usage = next((line for line in lines[end:] if line.startswith(f"{flag} ")), flag)
        word = re.search(r"from \[([^\[]*)\]$|'([^']*)'", reason)
        value = "" if word is None else " " + (word[1] or word[2] or "").replace("', '", " ").strip("'")
        expected = _describe_type(usage.removeprefix(flag).strip())
        return f"{flag}{value}: {f'must be {expected}' if expected else reason}"
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)", message):
        value, flag, choices = found.groups()
        return f"{flag} {value}: must be one of {choices.replace(chr(39), '').strip(', ')}"
    if found := re.match(r"Missing value for argument '(\S+)'", message):
        return f"{found[1]}: needs a value"
    return message[:1].lower() + message[1:]


def _describe_type(metavar: str) -> str:
    """Describe the values of tyro's "{None}|INT" or "{None,0,1}"; "" for other notations."""
    if metavar == "{0,1}" or metavar == "{None,0,1}":
        return "0, 1, true or false"
    if "[FLOAT ...]" in metavar:
        return "numbers"
    return next((words for kind, words in KINDS.items() if re.fullmatch(rf"(\{{None\}}\|)?{kind}", metavar)), "")
