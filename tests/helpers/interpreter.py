"""Triton's interpreter as the tests need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Multiply bf16 as fp32: the interpreter of Triton 3.9 keeps bf16 as uint16, and multiplies whole numbers."""
    dot = InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        def widen(operand: Any) -> Any:
            return self.create_fp_ext(operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand

        return dot(self, widen(a), widen(b), *rest)

    with patch.object(InterpreterBuilder, "create_dot", widened):
        yield
