"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt, and where that would do harm, at `poll` alone.

A KeyboardInterrupt can come up between any two instructions. Within torch.save it turns into a RuntimeError, within a
callback of the interpreter it is printed and lost, and while torch is imported it ends the process in C++.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]

SAME_REQUEST_S = 1.0
"""Signals that follow one that interrupted within this time say the same again, as where a shell passes one on."""

_waiting: list[int] = []
_interrupted_at = -SAME_REQUEST_S


@contextlib.contextmanager
def interruptible(*, to_the_end: bool) -> Iterator[None]:
    """While it lasts, SIGTERM interrupts as Ctrl-C does; signals that are ignored or handled otherwise stay so.

    to_the_end: the process ends with it, so that what comes later is ignored
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        numbers = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
        with _handled(numbers, _interrupt, signal.SIG_IGN if to_the_end else None):
            yield
    finally:
        _forget()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """While it lasts, Ctrl-C and SIGTERM wait for `poll`, or for its end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    numbers = [number for number, handler in handlers.items() if callable(handler) and handler is not _wait]
    try:
        with _handled(numbers, _wait):
            yield
    except BaseException:
        if numbers:
            _waiting.clear()
        raise
    if numbers:
        poll()


def poll() -> None:
    """Raise KeyboardInterrupt if a signal came meanwhile; costs nothing otherwise."""
    if _waiting:
        _interrupted()
        _waiting.clear()
        raise KeyboardInterrupt


def _forget() -> None:
    global _interrupted_at
    _waiting.clear()
    _interrupted_at = -SAME_REQUEST_S


def _interrupted() -> None:
    global _interrupted_at
    _interrupted_at = time.monotonic()


@contextlib.contextmanager
def _handled(numbers: list[signal.Signals], handler: Handler, afterwards: Any = None) -> Iterator[None]:
    """`handler` for these signals, then `afterwards` or what there was before.

    Does nothing outside the main thread, which alone may set handlers and runs them.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if afterwards is None else afterwards)


def _wait(number: int, frame: FrameType | None) -> None:
    if not _same_request():
        _waiting.append(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _same_request():
        _interrupted()
        _waiting.append(number)  # so that the next poll raises it again, should this one be lost
        raise KeyboardInterrupt


def _same_request() -> bool:
    return time.monotonic() - _interrupted_at < SAME_REQUEST_S
