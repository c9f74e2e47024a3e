"""The command line: argv to the command. Nothing else reads argv."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .common.errors import PropagatedError, RankMissing, UsageError, nearest
from .common.interrupts import defer_signals, interrupted, interruptible
from .common.standard_streams import is_open, occupy_descriptors
from .common.version import __version__
from .distributed.ranks import LaunchInfo

COMMANDS = {
    "train": "train many Local SGD clients; `fastlocal train --help` lists the flags",
    "sweep": "train a run for every combination of settings, as many at once as fit",
    "profile": "train for a few rounds under a profiler: where the time goes, and a trace",
    "verify": "prove on this machine what a run is about to trust: its kernels, and the ways to take a step",
    "plan": "how much memory a run is going to take, and how many clients fit at once",
    "evaluate": "accuracy and loss of a stored model",
    "prepare": "write a data set to files that training reads fast",
    "partition": "share the training samples of a data set out among clients",
    "report": "an HTML page about runs and sweeps: curves, statistics over seeds, tables, settings, clients",
    "compare": "runs side by side in the terminal: settings that differ, final and best values, rounds to a target",
    "recipes": "the named runs that train takes",
}
USAGE_STATUS, STOPPED_STATUS, FULL_DISK_STATUS, MISSING_STATUS = 2, 75, 1, 1
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN_PIPE_STATUS = 128 + 13  # as a shell shows a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 a user's mistake, 3 a loss that is not finite, 75 stopped."""
    _open_streams()
    if argv is None:
        sys.unraisablehook = _complain
    with interruptible(to_the_end=argv is None):
        try:
            status = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except UsageError as error:
            if _is_said_elsewhere(error):
                return USAGE_STATUS
            print(f"fastlocal: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
            return USAGE_STATUS
        except RankMissing as error:
            print(f"fastlocal: error: {error}", file=sys.stderr)
            status = MISSING_STATUS
        except KeyboardInterrupt:
            if _is_first():
                print("fastlocal: stopped by a signal", file=sys.stderr)
            status = STOPPED_STATUS
        except SystemExit as parser:
            return parser.code if isinstance(parser.code, int) else USAGE_STATUS
        except BrokenPipeError:
            # whoever read our output, `head` say, has seen enough; Python would complain when it flushes at exit
            _quiet_stdout()
            return BROKEN_PIPE_STATUS
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            print(f"fastlocal: error: {error.strerror}; what was written before is whole", file=sys.stderr)
            _quiet_stdout()
            return FULL_DISK_STATUS
        if argv is None and status in (STOPPED_STATUS, MISSING_STATUS):
            _exit(status)  # a collective that a missing rank has left waiting would keep the interpreter from ending
    return status


def _complain(about: sys.UnraisableHookArgs) -> None:
    """Report an error in a destructor as Python does, but not after a signal, which leaves half-made objects."""
    if not interrupted():
        sys.__unraisablehook__(about)


def _is_said_elsewhere(error: UsageError) -> bool:
    """Return True if another process of the run prints the same: the first one, or the first of this node."""
    with contextlib.suppress(UsageError):
        ranks = LaunchInfo.from_environment()
        return ranks.rank > 0 if isinstance(error, PropagatedError) else not ranks.is_local_rank0
    return False


def _is_first() -> bool:
    with contextlib.suppress(UsageError):
        return LaunchInfo.from_environment().rank == 0
    return True


def _exit(status: int) -> NoReturn:
    """End the process with `status`, as sys.exit does not where an interrupt came in code that exec was given.

    Python notes such an interrupt as unhandled, a dataclass being made is enough, and ends by SIGINT whatever follows.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _open_streams() -> None:
    """Closed streams become the null device, and characters that a stream cannot encode are written as escapes."""
    occupy_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not is_open(stream):
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _quiet_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else USAGE_STATUS
    if words[0] == "--version":
        print(f"fastlocal {__version__}")
        return 0
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; known: {known}")
    with defer_signals():
        command = importlib.import_module(f".commands.{words[0]}", __package__)
    status: int = command.run(words[1:])
    return status


def _usage() -> str:
    lines = ["usage: fastlocal COMMAND [ARGUMENTS]", "", "Trains many Local SGD clients at once.", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "fastlocal --version prints the version."])
