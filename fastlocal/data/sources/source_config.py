"""Settings of a run's data source, and the choice of its kind."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastlocal.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..types import DataSet

FIT = 0.5
"""Share of the free memory up to which `auto` keeps decoded images there."""


@dataclass(frozen=True)
class SourceConfig:
    """Settings of a data source.

    Attributes:
        kind: resident, torch, ffcv or dali.
        workers: Processes or threads that decode.
        prefetch: Batches decoded ahead.
        on_bad_sample: End the run at a sample that cannot be decoded, or take the next one.
        substitutes: int64 [samples], the next one of each training sample; None: the next in order.
        mean: Per channel in units of 1, or None.
        std: Per channel in units of 1, or None.
        seed: Seed of the run.
        device: Device of the batches.
        dtype: dtype of the inputs.
    """

    kind: str
    workers: int
    prefetch: int
    on_bad_sample: Literal["stop", "skip"]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    substitutes: np.ndarray[Any, np.dtype[np.int64]] | None = None


def choose_kind(kind: str, data: DataSet, device: torch.device) -> str:
    """Resolve --source `kind` for the data; raises UsageError if that source cannot read them."""
    from ..types import MapSplit, Split, StoredSplit

    train = data.train
    if isinstance(train, MapSplit):
        if kind not in ("auto", "torch"):
            raise UsageError(f"--source {kind}: a Dataset is read by --source torch")
        return "torch"
    beton = isinstance(train, StoredSplit) and hasattr(train.images, "path")
    if kind == "ffcv" and not beton:
        raise UsageError("--source ffcv: reads .beton files; fastlocal prepare writes one of other data sets")
    if kind == "dali" and data.mean is None:
        raise UsageError("--source dali: the inputs are not uint8 images; use --source resident or torch")
    if kind != "auto":
        return kind
    if isinstance(train, Split) or train.crop_size is None:
        if _fits(data, device):
            return "resident"
    if beton:
        return "ffcv"
    return "dali" if device.type == "cuda" and importlib.util.find_spec("nvidia.dali") is not None else "torch"


def _fits(data: DataSet, device: torch.device) -> bool:
    """Return True if the decoded images of both splits take at most the share FIT of the free memory."""
    import math

    import torch

    splits = (data.train, data.test)
    if device.type == "cpu":
        needed = sum(split.resident_bytes or len(split) * math.prod(split.sample_shape) for split in splits)
        needed -= sum(split.resident_bytes for split in splits)  # already in memory
        return needed <= FIT * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    needed = sum(len(split) * math.prod(split.sample_shape) for split in splits)
    return needed <= FIT * torch.cuda.mem_get_info(device)[0]
