"""Interface of decoding engines: a job is part of a batch, begun first and finished later."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..images.beton import BetonImages
from ..transforms import Augmentation, Ints, SampleIndex, boxes, crop_words
from ..types import BadSample, StoredImages


@dataclass
class DecodeJob:
    """Samples of one batch that are decoded together.

    Attributes:
        rows: The samples.
        out: Output array [rows, ...]; images are [rows, height, width, channels].
        targets: Output array [rows, ...] if targets come with the samples, else None.
        bad: (row, error) of samples that cannot be decoded; their rows of `out` are left alone.
        use: If a caller waits and no sample is bad, may be called with images [rows, channels, height, width] in the
            engine's memory instead of a copy to `out`.
        on_device: uint8 images [rows, height, width, channels] on the GPU that decoded them, instead of `out`.
        error: Any other error; wait_for raises it.
        done: Set when all of this is complete.
    """

    rows: SampleIndex
    out: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any] | None = None
    bad: list[tuple[int, BadSample]] = field(default_factory=list)
    use: Callable[[np.ndarray[Any, Any]], None] | None = None
    on_device: Tensor | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.rows)

    def to_host(self) -> None:
        """Copy images on a GPU to `out`."""
        if self.on_device is not None:
            self.out[:] = self.on_device.cpu().numpy()
            self.on_device = None


class Engine(Protocol):
    """Fills jobs, in any order.

    Attributes:
        max_rows: Maximum rows of a job.
    """

    max_rows: int

    def begin(self, job: DecodeJob) -> None:
        """Accept the job, and return at once."""
        ...

    def advance(self, job: DecodeJob, seconds: float) -> None:
        """Wait for `job.done`, for at most about `seconds`."""
        ...

    def close(self) -> None:
        """End every thread and process; unfinished jobs stay unfinished."""
        ...


def size_mismatch(index: int, found: tuple[int, ...], first: tuple[int, ...]) -> BadSample:
    """Return the error for an image whose (height, width, ...) differs from the first one's."""
    return BadSample(f"image {index}", f"it is {found[1]}x{found[0]} pixels, the first one {first[1]}x{first[0]}")


class Cropper:
    """Boxes of stored images; each image's size is read once."""

    def __init__(self, images: StoredImages, augmentation: Augmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self._sizes = np.zeros((len(images), 2), dtype=np.int32)
        if augmentation.crop_size is None:
            self._sizes[:] = self.first_size()
        elif isinstance(images, BetonImages):
            self._sizes[:, 0], self._sizes[:, 1] = images.heights, images.widths
        self._knows_all = bool(self._sizes.all())

    def first_size(self) -> tuple[int, int]:
        """Return (height, width) of the first image with a readable size; raises BadSample if there is none."""
        for index in range(len(self.images) - 1):
            with contextlib.suppress(BadSample):
                return self.images.size(index)
        return self.images.size(len(self.images) - 1)

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """Add random words, and boxes if all sizes are known; a call for many rows costs little more than for few."""
        if self.augmentation.is_random:
            rows = replace(rows, words=crop_words(self.seed, rows))
        return replace(rows, boxes=self._boxes(rows)) if self._knows_all else rows

    def boxes(self, job: DecodeJob) -> Ints:
        """Return a job's boxes, int64 [rows, 5]; samples without a size go to `job.bad`, with arbitrary boxes."""
        if job.rows.boxes is not None:
            return job.rows.boxes
        ids = job.rows.ids
        for row in np.flatnonzero(self._sizes[ids, 0] == 0):
            try:
                self._sizes[ids[row]] = self.images.size(int(ids[row]))
            except BadSample as bad:
                job.bad.append((int(row), bad))
        return self._boxes(job.rows)

    def _boxes(self, rows: SampleIndex) -> Ints:
        sizes = self._sizes[rows.ids].astype(np.int64)
        sizes[sizes == 0] = 1
        return boxes(self.augmentation, self.seed, rows, sizes[:, 0], sizes[:, 1])
