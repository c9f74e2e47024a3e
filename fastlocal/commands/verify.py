"""fastlocal verify: prove on this machine what a run is about to trust."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from ..config.validation import check
from ..distributed.ranks import launched
from .flags import parse

WRONG = 1
HELP = """
verify takes the flags of train, and:
  --seconds N        within which each case of an operation must be through, by default 120
  --ops A,B          check these operations alone
"""


def run(argv: Sequence[str]) -> int:
    """Print one line for each check; the exit status is 0 where all hold, else 1."""
    own, rest = _own(argv)
    try:
        flags = parse(rest, "fastlocal verify")
    except SystemExit as parser:
        if parser.code == 0:
            print(HELP)
        raise
    check(flags.run)
    if launched().size > 1:
        raise UsageError("fastlocal verify: is for one process; start it without torchrun")

    with defer_signals():
        from ..runs.from_config import run_from_config
        from ..runs.resolve import resolve_device
        from ..verification.run import verify_run

        device = resolve_device(flags.run.machine.device)
        checked = verify_run(
            flags.run,
            device,
            lambda config: run_from_config(config, lambda text: print(text, file=sys.stderr)),
            ops=own["ops"].split(",") if "ops" in own else None,
            seconds=_seconds(own.get("seconds", "120")),
            say=lambda line: print(line, flush=True),
        )
    return 0 if checked.passed else WRONG


def _own(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this command alone by name, and the other words."""
    own: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--seconds", "--ops"):
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if not given:
            raise UsageError(f"{flag}: needs a value")
        own[flag.removeprefix("--")] = given
    return own, rest


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {text}: give a number above 0")
    return seconds
