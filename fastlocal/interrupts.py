"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt, and where that would do harm, at `poll` alone.

A KeyboardInterrupt can come up between any two instructions. Within torch.save it turns into a RuntimeError, within a
callback of the interpreter it is printed and lost, and while torch is imported it ends the process in C++.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]

_waiting: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, SIGTERM interrupts as Ctrl-C does; signals that are ignored or handled otherwise stay so."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        with _handled([number for number, handler in usual.items() if signal.getsignal(number) == handler], _interrupt):
            yield
    finally:
        _waiting.clear()


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
        _waiting.clear()
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(numbers: list[signal.Signals], handler: Handler) -> Iterator[None]:
    """`handler` for these signals; nothing outside the main thread, which alone may set one and receives them."""
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait(number: int, frame: FrameType | None) -> None:
    _waiting.append(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _waiting.append(number)  # so that the next poll raises it again, should this one be lost
    raise KeyboardInterrupt
