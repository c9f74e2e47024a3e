"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt, and where that would do harm, at `check_signals` alone.

What is worth finishing first, such as a chunk's round, is `grace_period`: there `check_signals` waits a while with it.

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
"""Signals that follow one within this time say the same again, as where a shell passes one on."""

_waiting: list[int] = []
_first_at: float | None = None
_again_at: float | None = None
_patience: float | None = None
_interrupted_at = -SAME_REQUEST_S

WATCH_S = 0.1
POLITE_SHARE = 0.9
"""Of the time that is given to finish something, before it is given up; the rest is for giving up."""


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
def defer_signals() -> Iterator[None]:
    """While it lasts, Ctrl-C and SIGTERM wait for `check_signals`, or for its end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    numbers = [number for number, handler in handlers.items() if callable(handler) and handler is not _wait]
    try:
        with _handled(numbers, _wait):
            yield
    except BaseException:
        if numbers:
            _forget_requests()
        raise
    if numbers:
        check_signals()
        _forget_requests()


@contextlib.contextmanager
def grace_period(seconds: float, *, begun: bool = False) -> Iterator[None]:
    """Let `check_signals` wait for so many seconds after the first signal, unless a second one comes.

    begun: the time counts from now on where no signal came, as after an interrupt that a logger raises
    """
    global _patience, _first_at, _again_at
    before, _patience = _patience, seconds * POLITE_SHARE
    begun = begun and _first_at is None
    if begun:
        _first_at = time.monotonic()
    try:
        yield
    finally:
        _patience = before
        if begun:
            _first_at = _again_at = None


@contextlib.contextmanager
def deadline(seconds: float, too_late: Callable[[], object]) -> Iterator[None]:
    """While it lasts, `too_late` is called where what a signal asks for takes longer than that, from a thread.

    A second signal leaves SAME_REQUEST_S. For steps that take long and poll nothing meanwhile.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            now = time.monotonic()
            first = _first_at is not None and now - _first_at > max(seconds, SAME_REQUEST_S)
            again = _again_at is not None and now - _again_at > SAME_REQUEST_S
            if first or again:
                too_late()
                return

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def check_signals() -> None:
    """Raise KeyboardInterrupt if a signal came meanwhile; costs nothing otherwise."""
    if _patience is None:
        if not _waiting:
            return
    elif not requested_for(_patience):
        return
    _interrupted()
    _waiting.clear()
    raise KeyboardInterrupt


def requested_for(seconds: float) -> bool:
    """Whether the first signal is longer ago than that, or a second one came after it."""
    return _first_at is not None and (_again_at is not None or time.monotonic() - _first_at > seconds)


def interrupted() -> bool:
    """Whether a signal has raised KeyboardInterrupt."""
    return _interrupted_at >= 0


def _note() -> None:
    global _first_at, _again_at
    now = time.monotonic()
    if _first_at is None:
        _first_at = now
    elif _again_at is None and now - _first_at > SAME_REQUEST_S:
        _again_at = now


def _forget() -> None:
    global _interrupted_at
    _forget_requests()
    _interrupted_at = -SAME_REQUEST_S


def _forget_requests() -> None:
    global _first_at, _again_at
    _waiting.clear()
    _first_at = _again_at = None


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
    _note()
    if not _same_request():
        _waiting.append(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _same_request():
        _interrupted()
        _waiting.append(number)  # so that the next poll raises it again, should this one be lost
        raise KeyboardInterrupt


def _same_request() -> bool:
    return time.monotonic() - _interrupted_at < SAME_REQUEST_S
