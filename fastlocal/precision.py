"""Which number formats a run computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Precision
from .errors import UsageError


@dataclass(frozen=True)
class Numerics:
    """dtype: of images, parameters and momenta        low: dtype of forward passes under autocast, or None"""

    device: torch.device
    dtype: torch.dtype
    low: torch.dtype | None

    def autocast(self) -> AbstractContextManager[object]:
        """The region in which forward passes run."""
        return nullcontext() if self.low is None else torch.autocast(self.device.type, dtype=self.low)

    def full(self, outputs: Tensor) -> Tensor:
        """A model's outputs as the loss takes them: in the parameters' precision where autocast lowered it."""
        return outputs.to(self.dtype) if self.low is not None and outputs.is_floating_point() else outputs


def numerics(precision: Precision, device: torch.device) -> Numerics:
    """What `precision` means on `device`; sets whether float32 matrix products may use TF32.

    Raises UsageError where the device cannot compute in it.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UsageError("--precision tf32: needs a CUDA device of capability 8.0 or newer; use fp32 or bf16")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Numerics(
        device=device,
        dtype=torch.float64 if precision == "fp64" else torch.float32,
        low=torch.bfloat16 if precision == "bf16" else None,
    )
