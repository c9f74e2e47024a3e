"""What decodes: a piece of a batch is begun, and later finished."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..transforms import Augmentation, Ints, Rows, boxes
from ..types import BadSample, StoredImages


@dataclass
class Piece:
    """Samples of one batch that are decoded together.

    out: array [rows, ...] to fill, images as [rows, height, width, channels]
    targets: array [rows, ...] to fill, where they come with the samples; else None
    bad: (row, why) of samples that cannot be decoded, whose rows in `out` are left alone
    error: what else went wrong, raised where the piece is finished
    done: set once all of this is there
    """

    rows: Rows
    out: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any] | None = None
    bad: list[tuple[int, BadSample]] = field(default_factory=list)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.rows)


class Engine(Protocol):
    """Fills pieces, in the order in which they are begun or in another one.

    most_rows: that a piece may have
    """

    most_rows: int

    def begin(self, piece: Piece) -> None:
        """Take the piece on; returns at once."""
        ...

    def advance(self, piece: Piece, seconds: float) -> None:
        """Wait for `piece.done`, for at most about this long."""
        ...

    def close(self) -> None:
        """End every thread and process; pieces that are not done never will be."""
        ...


class Cutter:
    """The boxes of stored images, whose sizes are looked up once."""

    def __init__(self, images: StoredImages, augmentation: Augmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self._sizes = np.zeros((len(images), 2), dtype=np.int32)
        if augmentation.side is None:
            self._sizes[:] = self.first_size()

    def first_size(self) -> tuple[int, int]:
        """(height, width) of the first image whose size can be read; raises BadSample where none can."""
        for index in range(len(self.images) - 1):
            with contextlib.suppress(BadSample):
                return self.images.size(index)
        return self.images.size(len(self.images) - 1)

    def boxes(self, piece: Piece) -> Ints:
        """Those of a piece, int64 [rows, 5]; samples without a size are added to its `bad`, their boxes meaningless."""
        ids = piece.rows.ids
        for row in np.flatnonzero(self._sizes[ids, 0] == 0):
            try:
                self._sizes[ids[row]] = self.images.size(int(ids[row]))
            except BadSample as bad:
                piece.bad.append((int(row), bad))
        sizes = self._sizes[ids].astype(np.int64)
        sizes[sizes == 0] = 1
        return boxes(self.augmentation, self.seed, piece.rows, sizes[:, 0], sizes[:, 1])
