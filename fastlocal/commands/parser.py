"""The parser of a command's flags: tyro, whose refusals become one line.

tyro prints a refusal as a box of several lines. Its text is read here, as tyro offers no stable way to get it.
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
"""tyro's words for types, in words."""
SIDES, RULES = "│ ", "╭╮╰╯─- "
"""The frame of a box. A terminal without these characters gets a title, a rule of "-" and no sides."""
WIDE = "400"
"""Columns of a terminal so wide that tyro breaks no line of a refusal."""


def parse_flags(kind: type[Flags], command: str, words: Sequence[str], **options: Any) -> Flags:
    """Parse the words of a command line.

    Args:
        kind: The dataclass whose fields are the flags.
        command: The command, as in "fastlocal train".
        words: The words after the command.
        options: More arguments of tyro.cli.

    Raises:
        UsageError: The parser refuses the words.
        SystemExit: --help was printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _wide_terminal(words):
            return tyro.cli(kind, prog=command, args=words, registry=registry(), **options)
    except SystemExit as ended:
        if not ended.code:
            raise
        raise UsageError(f"{in_one_line(said.getvalue())}; `{command} --help` explains the flags") from None


@contextlib.contextmanager
def _wide_terminal(words: Sequence[str]) -> Iterator[None]:
    """Set COLUMNS unless the words ask for help, which fits the user's terminal."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & {*words}:
        os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({} if before is None else {"COLUMNS": before})


def in_one_line(refusal: str) -> str:
    """Say in one line what a refusal of tyro's says in a box.

    Args:
        refusal: The box: a frame around a message, a rule, and the text of --help for the flag.
    """
    lines = [line.strip(SIDES) for line in refusal.splitlines()[1:]]
    lines = ["" if not line.strip(RULES) else line for line in lines]
    lines = list(itertools.dropwhile(lambda line: not line, lines))
    end = next((place for place, line in enumerate(lines) if not line), len(lines))
    message = " ".join(lines[:end]).strip().rstrip(".")
    if found := re.fullmatch(r"Error parsing (\S+): (.*)", message):
        flag, why = found.groups()
        usage = next((line for line in lines[end:] if line.startswith(f"{flag} ")), flag)
        given = re.search(r"from \[([^\[]*)\]$|'([^']*)'", why)
        value = "" if given is None else " " + (given[1] or given[2] or "").replace("', '", " ").strip("'")
        wanted = _wanted(usage.removeprefix(flag).strip())
        return f"{flag}{value}: {f'must be {wanted}' if wanted else why}"
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)", message):
        value, flag, choices = found.groups()
        return f"{flag} {value}: must be one of {choices.replace(chr(39), '').strip(', ')}"
    if found := re.match(r"Missing value for argument '(\S+)'", message):
        return f"{found[1]}: needs a value"
    return message[:1].lower() + message[1:]


def _wanted(metavar: str) -> str:
    """Return what tyro's "{None}|INT" or "{None,0,1}" allows, in words; an empty string for other notations."""
    if metavar == "{0,1}" or metavar == "{None,0,1}":
        return "0, 1, true or false"
    if "[FLOAT ...]" in metavar:
        return "numbers"
    return next((words for kind, words in KINDS.items() if re.fullmatch(rf"(\{{None\}}\|)?{kind}", metavar)), "")
