"""fastlocal verify: check a run's machine, kernels and steps before its start."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from ..config.validation import check
from ..distributed.ranks import LaunchInfo
from .flags import parse

WRONG = 1
HELP = """
verify takes the flags of train, and:
  --seconds N        time limit of each case of an operation, by default 120
  --ops A,B          check these operations alone
"""


def run(argv: Sequence[str]) -> int:
    """Print one line per check; the exit status is 0 if all hold, else 1."""
    own, rest = _split_flags(argv)
    try:
        flags = parse(rest, "fastlocal verify")
    except SystemExit as parser:
        if parser.code == 0:
            print(HELP)
        raise
    check(flags.run)
    if LaunchInfo.from_environment().size > 1:
        raise UsageError("fastlocal verify: is for one process; start it without torchrun")

    with defer_signals():
        from ..runs.from_config import run_from_config
        from ..runs.resolve import resolve_device
        from ..verification.run import verify_run

        device = resolve_device(flags.run.machine.device)
        verification = verify_run(
            flags.run,
            device,
            lambda config: run_from_config(config, lambda text: print(text, file=sys.stderr)),
            ops=own["ops"].split(",") if "ops" in own else None,
            seconds=_seconds(own.get("seconds", "120")),
            say=lambda line: print(line, flush=True),
        )
    return 0 if verification.passed else WRONG


def _split_flags(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the words into the values of this command's own flags, and the other words."""
    own: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--seconds", "--ops"):
            rest.append(word)
            continue
        argument = value if equals else next(words, None)
        if not argument:
            raise UsageError(f"{flag}: needs a value")
        own[flag.removeprefix("--")] = argument

    return own, rest


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {text}: give a number above 0")
    return seconds
