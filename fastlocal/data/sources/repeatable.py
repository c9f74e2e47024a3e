"""Check that a Dataset returns the same sample for the same seeds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from fastlocal.common.errors import UsageError

from .base import BatchRequest
from .engine import DecodeJob
from .requests import make_rows
from .streaming import StreamingSource

SAMPLES = (2, 4, 32)
"""Number of samples per try."""
ENOUGH_S = 0.05
"""No further try starts after this time."""
ROUNDING = 1e-5
"""Tolerance relative to a sample's largest value: the result of a matrix product depends on the address of its data."""


def refuse_unrepeatable(source: StreamingSource, dataset: Any) -> None:
    """Raise UsageError if a sample differs between reads with the same seeds.

    Two jobs read some samples twice each; with two or more workers they go to two processes. A sample that depends on
    earlier reads differs within a job, and one that depends on the process differs between the jobs.
    """
    began = time.perf_counter()
    for count in SAMPLES:
        ids = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
        request = BatchRequest(torch.from_numpy(np.concatenate([ids, ids])), None, 0)
        (rows,) = make_rows([request], source.drawer)
        jobs = [job for _ in range(2) for job in source.start(request, rows).jobs]
        for job in jobs:
            source.wait_for(job)
        for place, index in enumerate(ids.tolist()):
            copies = [(job, row) for job in jobs for row in (place, place + len(ids))]
            if any(row in [bad_row for bad_row, _ in job.bad] for job, row in copies):
                continue  # reported when it is used
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
    for job, row in (one, other):
        assert job.targets is not None, "a Dataset's targets come with its samples"
        pairs.append((job.out[row], job.targets[row]))
    return all(_close(a, b) for a, b in zip(*pairs, strict=True))


def _close(one: Any, other: Any) -> bool:
    if not np.issubdtype(one.dtype, np.floating):
        return np.array_equal(one, other)
    sizes = np.abs(one[np.isfinite(one)])
    return np.allclose(one, other, rtol=0, atol=ROUNDING * float(sizes.max(initial=0.0)), equal_nan=True)
