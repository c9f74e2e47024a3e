"""Number formats of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from ..common.errors import UsageError
from ..config.schema import Precision


@dataclass(frozen=True)
class Numerics:
    """Device and number formats of a run.

    Attributes:
        device: Device of the training.
        dtype: Of images, parameters and momenta.
        autocast_dtype: Of forward passes under autocast, or None.
    """

    device: torch.device
    dtype: torch.dtype
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of forward passes."""
        dtype = self.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def to_param_dtype(self, outputs: Tensor) -> Tensor:
        """Cast a model's outputs for the loss: back to the parameters' dtype after autocast."""
        return outputs.to(self.dtype) if self.autocast_dtype is not None and outputs.is_floating_point() else outputs


_MEMORY: Any = deterministic  # has properties that its type stub lacks


def numerics(precision: Precision, device: torch.device, *, repeatable: bool = False) -> Numerics:
    """Return the number formats of `precision` on `device`, and set whether float32 products may use TF32.

    Args:
        precision: --precision.
        device: Device of the training.
        repeatable: Also forbid torch's nondeterministic algorithms.

    Raises:
        UsageError: The device does not support the precision.
    """
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
        # no code here reads unwritten memory, and the fill is one more pass over each buffer
        _MEMORY.fill_uninitialized_memory = False
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UsageError("--precision tf32: needs a CUDA device of capability 8.0 or newer; use fp32 or bf16")
    if device.type == "cuda":
        _allow_tf32(precision == "tf32")
    return Numerics(
        device=device,
        dtype=torch.float64 if precision == "fp64" else torch.float32,
        autocast_dtype=torch.bfloat16 if precision == "bf16" else None,
    )


@contextmanager
def preserve_torch_flags() -> Iterator[None]:
    """Restore at the end the process-wide flags that `numerics` sets."""
    algorithms = torch.are_deterministic_algorithms_enabled()
    warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), _MEMORY.fill_uninitialized_memory
    try:
        with _preserve_tf32():
            yield
    finally:
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if now != (algorithms, warns):  # setting it imports torch's compiler: 3 s
            torch.use_deterministic_algorithms(algorithms, warn_only=warns)
        _MEMORY.fill_uninitialized_memory = fills


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32 on a GPU."""
    with _preserve_tf32():
        _allow_tf32(False)
        yield


def _allow_tf32(allowed: bool) -> None:
    """Set both generations of torch's switches: if they differ, reading the older one raises RuntimeError."""
    backends = torch.backends
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = allowed
    for operations in _fp32_operations():
        operations.fp32_precision = "tf32" if allowed else "ieee"  # "none" would follow the global switch


@contextmanager
def _preserve_tf32() -> Iterator[None]:
    """Restore both generations of switches. If a script mixed them, the older one cannot be read and is left alone."""
    old_switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed = [_read_allow_tf32(backend) for backend in old_switches]
    precisions = [operations.fp32_precision for operations in _fp32_operations()]
    try:
        yield
    finally:
        for backend, value in zip(old_switches, allowed, strict=True):
            if value is not None:
                backend.allow_tf32 = value
        for operations, precision in zip(_fp32_operations(), precisions, strict=True):
            operations.fp32_precision = precision


def _read_allow_tf32(backend: Any) -> bool | None:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def _fp32_operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
