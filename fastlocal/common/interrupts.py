"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt, at once or at the next `check_signals`.

A KeyboardInterrupt can occur between any two instructions. Inside torch.save it becomes a RuntimeError, inside a
callback of the interpreter it is printed and lost, and during the import of torch it ends the process in C++. So
`defer_signals` delays it until the next `check_signals`, and `grace_period` leaves time to finish a chunk first.
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
"""A second signal within this time counts as the first one: shells and launchers pass a signal on."""

_pending: list[int] = []
_first_at: float | None = None
_again_at: float | None = None
_patience: float | None = None
_interrupted_at = -SAME_REQUEST_S

WATCH_S = 0.1
FINISH_SHARE = 0.9
"""Fraction of the grace period that is for finishing; the rest is for giving up."""


@contextlib.contextmanager
def interruptible(*, to_the_end: bool) -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt as Ctrl-C does. A signal with a handler of the caller, or ignored, stays so.

    Args:
        to_the_end: Whether the process ends with the block; signals after it are then ignored.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        numbers = [number for number, handler in defaults.items() if signal.getsignal(number) == handler]
        with _handlers(numbers, _interrupt, signal.SIG_IGN if to_the_end else None):
            yield
    finally:
        _forget()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until `check_signals` or the end of the block."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    numbers = [number for number, handler in handlers.items() if callable(handler) and handler is not _defer]
    try:
        with _handlers(numbers, _defer):
            yield
    except BaseException:
        if numbers:
            _forget_requests()
        raise
    if numbers:
        check_signals()
        _forget_requests()


@contextlib.contextmanager
def grace_period(seconds: float, *, start_now: bool = False) -> Iterator[None]:
    """Let `check_signals` wait `seconds` after the first signal; a second signal ends the wait.

    Args:
        seconds: Grace period.
        start_now: Start the period now if no signal came, as after a KeyboardInterrupt that a logger raises.
    """
    global _patience, _first_at, _again_at
    before, _patience = _patience, seconds * FINISH_SHARE
    start_now = start_now and _first_at is None
    if start_now:
        _first_at = time.monotonic()
    try:
        yield
    finally:
        _patience = before
        if start_now:
            _first_at = _again_at = None


@contextlib.contextmanager
def deadline(seconds: float, on_expiry: Callable[[], object]) -> Iterator[None]:
    """Call `on_expiry` from a thread if the block still runs `seconds` after a signal.

    A second signal shortens the rest to SAME_REQUEST_S. For long steps without `check_signals`.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            now = time.monotonic()
            first = _first_at is not None and now - _first_at > max(seconds, SAME_REQUEST_S)
            again = _again_at is not None and now - _again_at > SAME_REQUEST_S
            if first or again:
                on_expiry()
                return

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def check_signals() -> None:
    """Raise KeyboardInterrupt if a signal is pending and no grace period is left."""
    if _patience is None:
        if not _pending:
            return
    elif not requested_for(_patience):
        return
    _record_interrupt()
    _pending.clear()
    raise KeyboardInterrupt


def requested_for(seconds: float) -> bool:
    """Return True if the first signal came more than `seconds` ago, or a second one came after it."""
    return _first_at is not None and (_again_at is not None or time.monotonic() - _first_at > seconds)


def interrupted() -> bool:
    """Return True if a signal has raised KeyboardInterrupt."""
    return _interrupted_at >= 0


def _record_signal() -> None:
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
    _pending.clear()
    _first_at = _again_at = None


def _record_interrupt() -> None:
    global _interrupted_at
    _interrupted_at = time.monotonic()


@contextlib.contextmanager
def _handlers(numbers: list[signal.Signals], handler: Handler, afterwards: Any = None) -> Iterator[None]:
    """Install `handler` for the signals; at the end `afterwards`, or the previous handlers.

    Does nothing outside the main thread: Python sets and runs handlers there alone.
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


def _defer(number: int, frame: FrameType | None) -> None:
    _record_signal()
    if not _same_request():
        _pending.append(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _same_request():
        _record_interrupt()
        _pending.append(number)  # the next check_signals raises again if this KeyboardInterrupt is lost
        raise KeyboardInterrupt


def _same_request() -> bool:
    return time.monotonic() - _interrupted_at < SAME_REQUEST_S
