"""Operations over all clients at once, each in its own folder with a plain-torch reference.

`get(op)` returns the implementation of an op; the op has the name of its folder and of its function. `refuse` disables
an implementation that does not work on this machine.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .refusals import accept, failing_op, failures, is_device_fault, refusals, refuse

__all__ = ["accept", "deterministic", "failing_op", "failures", "get", "is_device_fault", "load", "refusals", "refuse"]
__all__ += ["runs_triton"]

_FOLDER = Path(__file__).parent
OPS = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/reference.py")))
TRITON_OPS = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/triton_kernel.py")))
CPU_OPS = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/cpu.py")))
BACKENDS = ("auto", "reference", "cpu", "triton")
DEVICES = ("cuda",)
"""Device types on which "auto" selects Triton."""
CAPABILITY = (8, 0)
"""Lowest compute capability for which the Triton kernels are compiled and tested."""
AUTOTUNED = frozenset({"conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad"})
"""Ops whose Triton kernels use the tile that was timed as the fastest, and sum in its order."""


def get(op: str, backend: str = "auto", device: torch.device | str | None = None) -> Callable[..., Any]:
    """Import and return the function that computes `op`.

    Args:
        op: A folder of this package, such as "client_sgd".
        backend: "reference" (plain torch, any device), "cpu" (plain torch, tuned for CPUs), "triton", or "auto": the
            first of Triton (on a CUDA device of capability 8.0 or newer), "cpu" (on a CPU) and the reference that
            exists and is not refused. "auto" logs its choice once.
        device: Device of the op's tensors; None: the current CUDA device, else the CPU.

    Raises:
        ValueError: The op or backend is unknown, or an explicit backend cannot run or is refused.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r} for {op}; known: {', '.join(BACKENDS)}")
    place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if backend == "triton":
        reason = None if op in TRITON_OPS else "it has no Triton kernel"
        reason = reason or _obstacle(place, interpreted=_interpreted()) or refusals().get((op, "triton"))
        if reason:
            raise ValueError(f"the backend 'triton' of {op} cannot run: {reason}")
    elif backend == "cpu":
        reason = "it has no such implementation" if op not in CPU_OPS else None
        reason = reason or (f"the tensors are on {place}" if place.type != "cpu" else refusals().get((op, "cpu")))
        if reason:
            raise ValueError(f"the backend 'cpu' of {op} cannot run: {reason}")
    elif backend == "auto":
        _log_choice(place, _obstacle(place, interpreted=False))
        own = place.type == "cpu" and op in CPU_OPS and (op, "cpu") not in refusals()
        triton = op in TRITON_OPS and runs_triton(place, op)
        backend = "triton" if triton else "cpu" if own else "reference"
    return load(op, backend)


def deterministic(op: str, backend: str = "triton") -> bool:
    """Return True if an op gives the same bits in every run on one kind of device.

    No Triton kernel uses atomics, and programs' partial sums are added in a fixed order. Only the choice of a tile may
    differ, see `AUTOTUNED`; under torch.use_deterministic_algorithms it is the first that fits. That flag also controls
    torch's operations in the references.
    """
    if torch.are_deterministic_algorithms_enabled():
        return True
    return backend == "triton" and op not in AUTOTUNED


def runs_triton(device: torch.device, *ops: str) -> bool:
    """Whether "auto" selects Triton on `device` for all of these ops."""
    if device.type not in DEVICES or any((op, "triton") in refusals() for op in ops):
        return False
    return _obstacle(device, interpreted=_interpreted()) is None


# torch.compiler.assume_constant_result sets this flag, but imports triton
runs_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load(op: str, backend: str) -> Callable[..., Any]:
    """Return the function of a backend, "reference", "cpu" or "triton", whether or not it can run here."""
    file = "triton_kernel" if backend == "triton" else backend
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{op}.{file}"), op)
    return function


def _interpreted() -> bool:
    """Return True if Triton's interpreter, which runs kernels on CPU tensors, is enabled."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _has_triton() -> bool:
    # cached: every call of an op needs it, and a search of the path takes 0.2 ms
    return importlib.util.find_spec("triton") is not None


def _obstacle(device: torch.device, *, interpreted: bool) -> str | None:
    """Return the reason why Triton kernels cannot run on this device, or None."""
    if not _has_triton():
        return "triton is not installed"
    if device.type == "cpu" and interpreted:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        has, need = (".".join(map(str, version)) for version in (capability, CAPABILITY))
        return f"{torch.cuda.get_device_name(device)} has compute capability {has}, below {need}"
    return None


@functools.cache
def _log_choice(device: torch.device, reason: str | None) -> None:
    if reason is None:
        name = torch.cuda.get_device_name(device)
        logging.getLogger(__name__).info("kernels on %s: Triton (%s)", device, name)
    else:
        logging.getLogger(__name__).info("kernels on %s: plain torch (%s)", device, reason)
