"""Operations over all clients at once, each in a folder of its own with a plain-torch reference.

`get(op)` returns the implementation of an op; its name is the folder's and the function's. What `refuse` was told does
not work on this machine is taken by nobody.
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
"""Kinds of devices on which "auto" takes Triton where it can run."""
CAPABILITY = (8, 0)
"""The lowest compute capability for which the Triton kernels are compiled and tested."""
TIMED = frozenset({"conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad"})
"""Ops whose Triton kernels take the tile that was the fastest when it was timed, and sum in the order of that tile."""


def get(op: str, backend: str = "auto", device: torch.device | str | None = None) -> Callable[..., Any]:
    """The function that computes `op`, imported only now.

    op: a folder of this package, such as "client_sgd"
    backend: "reference" (plain torch, any device), "cpu" (plain torch, written for a CPU's speed), "triton", or "auto"
        (Triton on a CUDA device of capability 8.0 or newer for the ops that have such a kernel, on a CPU "cpu" for
        those that have it, the reference otherwise, and nothing that is refused; the choice is logged once)
    device: where the op's tensors live; by default the current CUDA device, or the CPU where there is none
    Raises ValueError for an unknown op or backend, and for "cpu" and "triton" where they cannot run or are refused,
    with the reason.
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
    """Whether an op gives the same bits at every run on one kind of device.

    No Triton kernel uses atomics, and sums that are split between programs are added in a fixed order, so that the
    choice of a tile alone may differ, see `TIMED`: under torch.use_deterministic_algorithms it is the first that fits.
    That switch also decides on what the references call in torch.
    """
    if torch.are_deterministic_algorithms_enabled():
        return True
    return backend == "triton" and op not in TIMED


def runs_triton(device: torch.device, *ops: str) -> bool:
    """Whether "auto" is Triton there for all of these ops together: the one rule for whoever chooses."""
    if device.type not in DEVICES or any((op, "triton") in refusals() for op in ops):
        return False
    return _obstacle(device, interpreted=_interpreted()) is None


# What torch.compiler.assume_constant_result does, which would import triton for it.
runs_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load(op: str, backend: str) -> Callable[..., Any]:
    """The function of a backend, "reference", "cpu" or "triton", whether or not it can run here."""
    file = "triton_kernel" if backend == "triton" else backend
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{op}.{file}"), op)
    return function


def _interpreted() -> bool:
    """Whether Triton's own interpreter, which runs kernels on a CPU's tensors, is asked for."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _has_triton() -> bool:
    # asked for at each call of an op, and looking through the path takes 0.2 ms
    return importlib.util.find_spec("triton") is not None


def _obstacle(device: torch.device, *, interpreted: bool) -> str | None:
    """Why Triton kernels cannot run on this device, or None where they can."""
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
