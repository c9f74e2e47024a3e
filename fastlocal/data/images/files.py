"""Image files, decoded by Pillow one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fastlocal.data.images.worker import Unfit, decode, refuse_deep
from fastlocal.data.types import BadSample, Image


def mode_and_size(path: Path) -> tuple[str, tuple[int, int]]:
    """Pillow's mode, and (height, width), from a file's header; raises BadSample, also for more than 8 bits a value."""
    try:
        with Pillow.open(path) as image:
            refuse_deep(str(path), image.mode)
            return image.mode, (image.height, image.width)
    except Unfit as stop:
        raise BadSample(stop.path, stop.detail) from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise BadSample(str(path), " ".join(str(error).split())) from None


@dataclass(frozen=True)
class FileImages:
    """Files of any format that Pillow knows.

    paths: one file per sample        channels: 1 for files that are all grey, 3 to read every one as RGB
    square: the shorter side is resized to this many pixels and the centre square cut out; None: as they are
    expected: (height, width) that every image must have, None where sizes may differ
    """

    paths: Sequence[Path]
    channels: int
    square: int | None = None
    expected: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) as `get` gives it; from the file's header where sizes may differ."""
        if self.square is not None:
            return self.square, self.square
        if self.expected is not None:
            return self.expected
        return mode_and_size(self.paths[index])[1]

    def read(self, index: int) -> Image:
        """[height, width, channels]; raises BadSample naming a file that is corrupt, or coloured for one channel."""
        try:
            image = decode(str(self.paths[index]), self.channels, self.square)
        except Unfit as stop:
            raise BadSample(stop.path, stop.detail or "it is coloured, where grey ones are expected") from None
        self._check_size(index, (image.height, image.width))
        return np.array(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)

    def encoded(self, index: int) -> bytes | None:
        """The file's content, of whatever format; None where `get` gives another image than the file holds."""
        if self.square is not None:
            return None
        path = self.paths[index]
        if self.expected is not None:  # whoever decodes it cuts what is expected from it
            self._check_size(index, mode_and_size(path)[1])
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadSample(str(path), error.strerror or str(error)) from None

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        if self.expected is not None and self.expected != size:
            found = f"{size[1]}x{size[0]} pixels (width x height), others {self.expected[1]}x{self.expected[0]}"
            raise BadSample(str(self.paths[index]), f"it is {found}; --image-size brings all to one size")
