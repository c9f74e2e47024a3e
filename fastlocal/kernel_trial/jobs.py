"""Jobs of the checking processes: the ops of one backend on their cases, or Triton itself."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlocal import kernels
from fastlocal.kernels import native
from fastlocal.kernels.case import Case, cases
from fastlocal.kernels.checking import Mismatch, check

from ..common.disk_cache import cache_file
from .calls import load_cases

TRITON = "triton itself"
"""Stands for an op: the smallest possible kernel."""
UNREACHABLE = "the device cannot be used from another process"
NO_VERDICT = (UNREACHABLE, "out of memory", "busy or unavailable")
"""Faults that are no verdict on a kernel: the device is unreachable, full, or used exclusively by another process."""

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """Ops of a backend to check on a device, in order.

    Attributes:
        ops: Folders of kernels/, functions of kernels/native, or TRITON.
        backend: "triton", "cpu" or "native".
        device: Name of the torch device.
        smallest: Check the smallest case alone, instead of all small ones.
        calls: File of recorded calls to check too, see calls.py.
        seconds: Time limit of each case, including compilation.
    """

    ops: tuple[str, ...]
    backend: str
    device: str
    smallest: bool = True
    calls: str | None = None
    seconds: float = 120.0


def run(job: Job, say: Say) -> None:
    """Check the ops of a job.

    Args:
        job: The job.
        say: Called with {"at": name of the case} before each case, and with {"op", "fault", "checked"} after each op:
            the fault in one line or None, and the number of cases checked.
    """
    device = torch.device(job.device)
    try:
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except Exception as error:  # not a kernel's fault
        say({"op": job.ops[0], "fault": f"{UNREACHABLE}: {line(error)}", "checked": 0})
        return
    if job.backend == "native":
        missing = native.load(cache_file("native"))
        if missing is not None:
            raise RuntimeError(missing)
    for op in job.ops:
        fault, checked = None, 0
        for checked, (name, verify) in enumerate(_checks(job, op, device), 1):
            say({"at": name})
            fault, lost = _fault(name, verify)
            if lost:
                say({"op": op, "fault": fault, "checked": checked})
                return  # this process can no longer use the device
            if fault is not None:
                break
        say({"op": op, "fault": fault, "checked": checked})


def _checks(job: Job, op: str, device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (name of the case, function that raises if the op is wrong)."""
    if op == TRITON:
        yield "a kernel of one line", lambda: _check_triton(device)
        return
    kernel, reference = implementation(op, job.backend)
    small = small_cases(op, job.backend)
    for case in small[:1] if job.smallest else small:
        yield case.name, lambda case=case: check(case, kernel, reference, device, twice=True)  # type: ignore[misc]
    for case, own in load_cases(Path(job.calls), op) if job.calls else ():
        yield (
            case.name,
            lambda case=case, own=own: check(  # type: ignore[misc]
                case, functools.partial(kernel, **own), reference, device, guarded=False, twice=True
            ),
        )


def implementation(op: str, backend: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the function to check and its plain-torch reference."""
    if backend == "native":
        in_torch = importlib.import_module(f"{native.__name__}.in_torch")
        return getattr(torch.ops.fastlocal_native, op), getattr(in_torch, op)
    return kernels.load(op, backend), kernels.load(op, "reference")


def small_cases(op: str, backend: str) -> Sequence[Case]:
    """Return the cases that are not large, the smallest one with single-precision arithmetic first."""
    if backend == "native":
        found: Sequence[Case] = importlib.import_module(f"{native.__name__}.cases").CASES[op]
        return found
    small = [case for case in cases(op) if not case.large]
    single = [case for case in small if case.bytes_moved and case.tolerance.startswith(("fp32", "tf32", "exact"))]
    first = min(single or small, key=lambda case: (not case.flops, case.bytes_moved))
    return [first, *(case for case in small if case is not first)]


def _check_triton(device: torch.device) -> None:
    from .triton_probe import probe

    if not probe(device):
        raise Mismatch("it does not add one to numbers")


def _fault(name: str, verify: Callable[[], None]) -> tuple[str | None, bool]:
    """Return the fault of a check in one line, or None, and whether the device is lost."""
    try:
        verify()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Mismatch as wrong:
        return (f"wrong on {name}: {wrong}" if wrong.error is None else f"wrong by {wrong.error:.2g} on {name}"), False
    except Exception as error:
        return f"fails on {name}: {line(error)}", kernels.is_device_fault(error)
    return None, False


def line(error: BaseException) -> str:
    """Return an error in one line: the last line of Triton's errors, which begin with the source; else the first."""
    lines = [part.strip() for part in str(error).splitlines() if part.strip()] or [type(error).__name__]
    text = lines[-1] if type(error).__module__.startswith("triton.") else lines[0]
    return text if len(text) <= 160 else text[:157] + "..."
