"""What decodes: a piece of a batch is begun, and later finished."""

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

    out: array [rows, ...] to fill, images as [rows, height, width, channels]
    targets: array [rows, ...] to fill, where they come with the samples; else None
    bad: (row, why) of samples that cannot be decoded, whose rows in `out` are left alone
    use: where somebody waits, may be called with images [rows, channels, height, width] that lie in the engine's own
        memory, in place of a copy of them to `out`; not where some are bad
    on_device: uint8 images [rows, height, width, channels] on the GPU that decoded them, where `out` was left alone
    error: what else went wrong, raised where the piece is finished
    done: set once all of this is there
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
        """Bring to `out` what is elsewhere."""
        if self.on_device is not None:
            self.out[:] = self.on_device.cpu().numpy()
            self.on_device = None


class Engine(Protocol):
    """Fills pieces, in the order in which they are begun or in another one.

    most_rows: that a piece may have
    """

    most_rows: int

    def begin(self, piece: DecodeJob) -> None:
        """Take the piece on; returns at once."""
        ...

    def advance(self, piece: DecodeJob, seconds: float) -> None:
        """Wait for `piece.done`, for at most about this long."""
        ...

    def close(self) -> None:
        """End every thread and process; pieces that are not done never will be."""
        ...


def other_size(index: int, found: tuple[int, ...], first: tuple[int, ...]) -> BadSample:
    """What is said of an image whose (height, width, ...) is not that of the first, where all must have it."""
    return BadSample(f"image {index}", f"it is {found[1]}x{found[0]} pixels, the first one {first[1]}x{first[0]}")


class Cropper:
    """The boxes of stored images, whose sizes are looked up once."""

    def __init__(self, images: StoredImages, augmentation: Augmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self._sizes = np.zeros((len(images), 2), dtype=np.int32)
        if augmentation.crop_size is None:
            self._sizes[:] = self.first_size()
        elif isinstance(images, BetonImages):
            self._sizes[:, 0], self._sizes[:, 1] = images.heights, images.widths
        self._knows_all = bool(self._sizes.all())

    def first_size(self) -> tuple[int, int]:
        """(height, width) of the first image whose size can be read; raises BadSample where none can."""
        for index in range(len(self.images) - 1):
            with contextlib.suppress(BadSample):
                return self.images.size(index)
        return self.images.size(len(self.images) - 1)

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """With what can be known of their boxes beforehand; calls for many rows cost little more than for few."""
        if self.augmentation.random:
            rows = replace(rows, words=crop_words(self.seed, rows))
        return replace(rows, boxes=self._boxes(rows)) if self._knows_all else rows

    def boxes(self, piece: DecodeJob) -> Ints:
        """Those of a piece, int64 [rows, 5]; samples without a size are added to its `bad`, their boxes meaningless."""
        if piece.rows.boxes is not None:
            return piece.rows.boxes
        ids = piece.rows.ids
        for row in np.flatnonzero(self._sizes[ids, 0] == 0):
            try:
                self._sizes[ids[row]] = self.images.size(int(ids[row]))
            except BadSample as bad:
                piece.bad.append((int(row), bad))
        return self._boxes(piece.rows)

    def _boxes(self, rows: SampleIndex) -> Ints:
        sizes = self._sizes[rows.ids].astype(np.int64)
        sizes[sizes == 0] = 1
        return boxes(self.augmentation, self.seed, rows, sizes[:, 0], sizes[:, 1])
