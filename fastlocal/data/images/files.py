"""Image files, decoded one by one by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fastlocal.data.images.worker import Unfit, decode, refuse_deep
from fastlocal.data.types import BadSample, Image


def read_header(path: Path) -> tuple[str, tuple[int, int]]:
    """Return Pillow's mode and (height, width) from a file's header.

    Raises:
        BadSample: The file cannot be read, or has more than 8 bits per value.
    """
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
    """Image files of any format that Pillow reads.

    Attributes:
        paths: One file per sample.
        channels: 1 if all files are grey, 3 to read every file as RGB.
        square: Pixels that the shorter side is resized to before the centre square is cut out, or None.
        expected: (height, width) of every image, or None if sizes may differ.
    """

    paths: Sequence[Path]
    channels: int
    square: int | None = None
    expected: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of `read`, from the file's header if sizes may differ."""
        if self.square is not None:
            return self.square, self.square
        if self.expected is not None:
            return self.expected
        return read_header(self.paths[index])[1]

    def read(self, index: int) -> Image:
        """Decode an image, [height, width, channels].

        Raises:
            BadSample: The file is corrupt, coloured although channels is 1, or of another size.
        """
        try:
            image = decode(str(self.paths[index]), self.channels, self.square)
        except Unfit as stop:
            raise BadSample(stop.path, stop.detail or "it is coloured, where grey ones are expected") from None
        self._check_size(index, (image.height, image.width))
        return np.array(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)

    def read_encoded(self, index: int) -> bytes | None:
        """Return the content of the file, or None if `read` changes the image's size."""
        if self.square is not None:
            return None
        path = self.paths[index]
        if self.expected is not None:  # the decoder relies on the expected size
            self._check_size(index, read_header(path)[1])
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadSample(str(path), error.strerror or str(error)) from None

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        if self.expected is not None and self.expected != size:
            found = f"{size[1]}x{size[0]} pixels (width x height), others {self.expected[1]}x{self.expected[0]}"
            raise BadSample(str(self.paths[index]), f"it is {found}; --image-size brings all to one size")
