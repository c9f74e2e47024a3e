"""Races between the programs of one launch, found in Triton's interpreter.

The interpreter runs programs one after the other, so that two of them that write the same element, or one that reads
what another writes, still give the result that was hoped for. Here every address that each program loads and stores is
noted, and two programs that meet fail. Atomic operations may meet each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch


class Race(AssertionError):
    """Two programs of one launch use the same memory, and one of them writes it."""


class _Accesses:
    """Sorted arrays of (address, program), for loads and for stores."""

    def __init__(self) -> None:
        self.loads: list[tuple[np.ndarray, int]] = []
        self.stores: list[tuple[np.ndarray, int]] = []

    def check(self, kernel: str) -> None:
        stored, writer = _flat(self.stores)
        if not len(stored):
            return
        order = np.lexsort((writer, stored))
        stored, writer = stored[order], writer[order]
        twice = (stored[1:] == stored[:-1]) & (writer[1:] != writer[:-1])
        if twice.any():
            raise Race(f"{kernel}: programs {writer[:-1][twice][0]} and {writer[1:][twice][0]} write the same element")
        loaded, reader = _flat(self.loads)
        place = np.searchsorted(stored, loaded).clip(max=len(stored) - 1)
        meet = (stored[place] == loaded) & (writer[place] != reader)
        if meet.any():
            raise Race(f"{kernel}: program {reader[meet][0]} reads what program {writer[place][meet][0]} writes")


def _flat(accesses: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    if not accesses:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return (
        np.concatenate([addresses for addresses, _ in accesses]),
        np.concatenate([np.full(len(addresses), program) for addresses, program in accesses]),
    )


@contextmanager
def no_races() -> Iterator[None]:
    """Raise Race at the end of a launch whose programs meet, and give NaN where a masked load names no `other`.

    On a CUDA device, where nothing is interpreted, this does nothing.
    """
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    load, store, launch = builder.create_masked_load, builder.create_masked_store, interpreter.GridExecutor.__call__
    current = _Accesses()

    def program() -> int:
        x, y, z = builder.grid_idx
        return int((x * builder.grid_dim[1] + y) * builder.grid_dim[2] + z)

    def noted_load(ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        current.loads.append((ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)], program()))
        loaded = load(ptrs, mask, other, *rest)
        if other is None and np.issubdtype(loaded.data.dtype, np.floating):
            loaded.data = np.where(mask.data, loaded.data, np.nan).astype(loaded.data.dtype)
        return loaded

    def noted_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        current.stores.append((ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)], program()))
        return store(ptrs, value, mask, *rest)

    def noted_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        current.loads, current.stores = [], []
        out = launch(self, *args, **kwargs)
        current.check(self.fn.__name__)
        return out

    with (
        patch.object(builder, "create_masked_load", noted_load),
        patch.object(builder, "create_masked_store", noted_store),
        patch.object(interpreter.GridExecutor, "__call__", noted_launch),
    ):
        yield
