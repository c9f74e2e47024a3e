"""Images of one size in a memory-mapped .npy file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlocal.data.types import Image


@dataclass(frozen=True)
class MappedImages:
    """Images of a file, uint8 [n, channels, height, width]; another process maps it anew."""

    file: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedImages, (self.file,)

    @functools.cached_property
    def array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[n, channels, height, width], copy-on-write: tensors made from it are writable, the file never changes."""
        array: np.ndarray[Any, np.dtype[np.uint8]] = np.load(self.file, mmap_mode="c", allow_pickle=False)
        return array

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width), the same for all."""
        return int(self.array.shape[2]), int(self.array.shape[3])

    def read(self, index: int) -> Image:
        """Return an image, [height, width, channels]."""
        return np.ascontiguousarray(self.array[index].transpose(1, 2, 0))

    def read_encoded(self, index: int) -> bytes | None:
        """Return None: pixels are not compressed."""
        return None
