"""Check that a Dataset returns the same sample again when its generators have the same seeds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from fastlocal.common.errors import UsageError

from .base import BatchRequest
from .engine import DecodeJob
from .requests import rows_of
from .streaming import StreamingSource

SAMPLES = (2, 4, 32)
"""The number of samples that each try reads."""
ENOUGH_S = 0.05
"""No further try is made once the reads have taken this long."""
ROUNDING = 1e-5
"""The allowed difference relative to a sample's largest value. A matrix product depends on the address of its data."""


def refuse_unrepeatable(source: StreamingSource, dataset: Any) -> None:
    """Raise UsageError if a sample differs between reads with the same seeds.

    Two pieces of work read some samples twice each; with two or more workers they go to two processes. A sample that
    depends on earlier reads differs within a piece, and one that depends on the process differs between the pieces.
    """
    began = time.perf_counter()
    for count in SAMPLES:
        ids = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
        wanted = BatchRequest(torch.from_numpy(np.concatenate([ids, ids])), None, 0)
        (rows,) = rows_of([wanted], source.drawer)
        pieces = [piece for _ in range(2) for piece in source.start(wanted, rows).pieces]
        for piece in pieces:
            source.wait_for(piece)
        for place, index in enumerate(ids.tolist()):
            copies = [(piece, row) for piece in pieces for row in (place, place + len(ids))]
            if any(row in [refused for refused, _ in piece.bad] for piece, row in copies):
                continue  # is told when it is used
            if not all(_same(copies[0], other) for other in copies[1:]):
                raise UsageError(
                    f"sample {index} of the Dataset {type(dataset).__name__}: differs between two reads with the same "
                    "seeds; draw with torch.rand, numpy.random or random, or from a generator that is an attribute of "
                    "the Dataset, and keep nothing from one read to the next"
                )
        if time.perf_counter() - began > ENOUGH_S:
            return


def _same(one: tuple[DecodeJob, int], other: tuple[DecodeJob, int]) -> bool:
    pairs = []
    for piece, row in (one, other):
        assert piece.targets is not None, "a Dataset's targets come with its samples"
        pairs.append((piece.out[row], piece.targets[row]))
    return all(_close(a, b) for a, b in zip(*pairs, strict=True))


def _close(one: Any, other: Any) -> bool:
    if not np.issubdtype(one.dtype, np.floating):
        return np.array_equal(one, other)
    sizes = np.abs(one[np.isfinite(one)])
    return np.allclose(one, other, rtol=0, atol=ROUNDING * float(sizes.max(initial=0.0)), equal_nan=True)
