"""What Triton's interpreter needs to compute what a GPU does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastlocal.common.disk_cache import cache_file
from fastlocal.kernels import native


@pytest.fixture
def ops() -> Any:
    """The operations in C++."""
    assert native.load(cache_file("native")) is None
    return torch.ops.fastlocal_native


@pytest.fixture(scope="session", autouse=True)
def interpreted_bfloat16() -> Iterator[None]:
    """Where Triton kernels are interpreted, products of bf16 are right."""
    if torch.cuda.is_available():
        yield
        return
    from tests.helpers.interpreter import bfloat16_products

    with bfloat16_products():
        yield
