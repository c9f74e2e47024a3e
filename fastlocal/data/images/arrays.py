"""Decoded images behind the interface of stored ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastlocal.data.types import Image


@dataclass(frozen=True)
class ArrayImages:
    """Images of a tensor, uint8 [n, channels, height, width]."""

    images: Tensor

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def __len__(self) -> int:
        return self.images.shape[0]

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width), the same for all."""
        return self.images.shape[2], self.images.shape[3]

    def read(self, index: int) -> Image:
        """Return an image, [height, width, channels]."""
        return np.ascontiguousarray(self.images[index].permute(1, 2, 0).numpy())

    def read_encoded(self, index: int) -> bytes | None:
        """Return None: pixels are not compressed."""
        return None
