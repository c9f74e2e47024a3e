"""The command line: argv to the command. Nothing else reads argv."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .errors import UsageError, nearest

COMMANDS = {
    "train": "train many Local SGD clients; `fastlocal train --help` lists the flags",
    "evaluate": "accuracy and loss of a stored model",
    "recipes": "the named runs that train takes",
}
USAGE_STATUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 a user's mistake, 3 a loss that is not finite, 75 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else USAGE_STATUS
    if words[0] == "--version":
        print(f"fastlocal {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UsageError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; known: {known}")
        command = importlib.import_module(f".commands.{words[0]}", __package__)
        status: int = command.run(words[1:])
    except UsageError as error:
        print(f"fastlocal: error: {error}", file=sys.stderr)
        return USAGE_STATUS
    return status


def _usage() -> str:
    lines = ["usage: fastlocal COMMAND [ARGUMENTS]", "", "Trains many Local SGD clients at once.", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "fastlocal --version prints the version."])
