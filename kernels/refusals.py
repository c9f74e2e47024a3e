"""Implementations that do not work on this machine, which "auto" does without, and how a kernel fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

_FOLDER = Path(__file__).parent
_reasons: dict[tuple[str, str], str] = {}

STICKY = ("CUDA error", "Triton Error [CUDA]", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")
"""Texts of the errors after which a CUDA context is of no more use, among harmless ones."""
HARMLESS = ("captur", "out of memory", "out of resource")
"""Texts of those among them that leave the context as it was."""


def refuse(op: str, backend: str, reason: str) -> None:
    """Keep "auto" in this process from a backend of an op, and have `get` raise where it is asked for by name.

    Args:
        op: A folder of this package, or a function of kernels/native.
        backend: "triton", "cpu", or "native" for a function of kernels/native.
        reason: Why, in one line, such as "wrong by 0.3 on 2x3x16".
    """
    _reasons[op, backend] = reason


def accept(op: str, backend: str) -> None:
    """Undo `refuse`."""
    _reasons.pop((op, backend), None)


def refusals() -> Mapping[tuple[str, str], str]:
    """What is refused: {(op, backend): reason}."""
    return MappingProxyType(_reasons)


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions that a kernel may raise as it is compiled or launched.

    Triton's own derive from Exception alone; without a C compiler or Python's headers its launcher ends in the
    RuntimeError, OSError or SubprocessError of whoever looks for them. An out-of-memory error is a RuntimeError, and
    so are CUDA errors: see `is_device_fault`.
    """
    known: tuple[type[BaseException], ...] = (
        MemoryError,
        RuntimeError,
        ValueError,
        OSError,
        ImportError,
        AssertionError,
        subprocess.SubprocessError,
    )
    triton = sys.modules.get("triton.errors")  # where it is not imported, none of its errors can be raised
    return known if triton is None else (*known, triton.TritonError)


def is_device_fault(error: BaseException) -> bool:
    """Whether an error, or what it came from, left the CUDA device unusable for the process: it must not be swallowed.

    An operation that a capture does not allow, and a launch that asks for too much, are none.
    """
    for one in _chain(error):
        text = str(one)
        if isinstance(one, torch.OutOfMemoryError) or any(word in text for word in HARMLESS):
            continue
        if isinstance(one, getattr(torch, "AcceleratorError", ())) or any(word in text for word in STICKY):
            return True
    return False


def failing_op(error: BaseException) -> str | None:
    """The op whose Triton kernel raised an error, by its traceback; None where it came from elsewhere.

    None too for what a capture does not allow, which is no fault of the kernel's.
    """
    found = None
    for one in _chain(error):
        if "captur" in str(one):
            return None
        trace = one.__traceback__
        while trace is not None:
            path = Path(trace.tb_frame.f_code.co_filename)
            if path.name.startswith("triton_") and path.parent.parent == _FOLDER:
                found = found or path.parent.name
            trace = trace.tb_next
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
