"""The checker of kernels, with what the interpreter alone can see: programs of one launch that use the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastlocal.kernels import checking
from fastlocal.kernels.case import Case
from fastlocal.kernels.checking import TOLERANCES
from tests.kernels.races import no_races

__all__ = ["TOLERANCES", "check"]


def check(
    case: Case, kernel: Callable[..., Any], reference: Callable[..., Any], device: torch.device | str = "cpu"
) -> None:
    """As checking.check; raises Race too."""
    checking.check(case, kernel, reference, device, within=no_races)
