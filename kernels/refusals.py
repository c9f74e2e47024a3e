"""Disabled implementations of this process, and the classification of kernel errors."""

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
"""Texts of errors after which a CUDA context is unusable; HARMLESS lists exceptions."""
HARMLESS = ("captur", "out of memory", "out of resource")
"""Texts of such errors that leave the context usable."""


def refuse(op: str, backend: str, reason: str) -> None:
    """Disable a backend of an op in this process: "auto" skips it, and `get` raises if it is named.

    Args:
        op: A folder of this package, or a function of kernels/native.
        backend: "triton", "cpu", or "native" for a function of kernels/native.
        reason: One line, such as "wrong by 0.3 on 2x3x16".
    """
    _reasons[op, backend] = reason


def accept(op: str, backend: str) -> None:
    """Undo `refuse`."""
    _reasons.pop((op, backend), None)


def refusals() -> Mapping[tuple[str, str], str]:
    """Return {(op, backend): reason} of the disabled backends."""
    return MappingProxyType(_reasons)


def failures() -> tuple[type[BaseException], ...]:
    """Return the exceptions that a kernel may raise during compilation or launch.

    Triton's own derive from Exception alone. Without a C compiler or Python's headers its launcher raises RuntimeError,
    OSError or SubprocessError. Out-of-memory errors and CUDA errors are RuntimeErrors: see `is_device_fault`.
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
    triton = sys.modules.get("triton.errors")  # before its import, none of its errors can be raised
    return known if triton is None else (*known, triton.TritonError)


def is_device_fault(error: BaseException) -> bool:
    """Return True if an error or its cause left the CUDA device unusable for this process, so that it must be raised.

    Operations that a capture does not allow, and launches that need too many resources, are no device faults.
    """
    for one in _chain(error):
        text = str(one)
        if isinstance(one, torch.OutOfMemoryError) or any(word in text for word in HARMLESS):
            continue
        if isinstance(one, getattr(torch, "AcceleratorError", ())) or any(word in text for word in STICKY):
            return True
    return False


def failing_op(error: BaseException) -> str | None:
    """Return the op whose Triton kernel raised an error, from the traceback; None for other errors.

    Also None for an operation that a capture does not allow.
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
    """Yield an error and its causes."""
    visited: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in visited:
        visited.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
