"""What Triton's interpreter needs to compute what a GPU does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastlocal.kernels import native
from fastlocal.remembered import cache_file


@pytest.fixture
def ops() -> Any:
    """The operations in C++."""
    assert native.load(cache_file("native")) is None
    return torch.ops.fastlocal_native


@pytest.fixture(scope="session", autouse=True)
def bfloat16_products() -> Iterator[None]:
    """The interpreter of Triton 3.9 keeps bf16 as uint16, and its dot multiplies those as whole numbers."""
    if torch.cuda.is_available():
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        def widen(operand: Any) -> Any:
            return self.create_fp_ext(operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand

        return dot(self, widen(a), widen(b), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", widened)
        yield
