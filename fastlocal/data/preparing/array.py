"""Images of one size as one array on the disk, written piece by piece; a run that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets.array import labels_of
from fastlocal.data.decode import undecodable_named
from fastlocal.data.images.decoding import decoded
from fastlocal.data.images.files import FileImages
from fastlocal.data.images.worker import Unfit
from fastlocal.data.manifest import replacing, stamp
from fastlocal.data.normalization import grey_levels
from fastlocal.data.preparing.half import SplitToWrite
from fastlocal.data.types import StoredImages

KEPT_BYTES = 16 << 20
"""Written between two records of how far it has come."""
_PIECE_BYTES = 4 << 20

Shape = tuple[int, int, int]


def write_array(half: SplitToWrite, folder: Path, workers: int, progress: Callable[[int, int], None]) -> Path:
    """Writes NAME.npy and NAME_labels.npy with their manifest; returns the first, which comes last.

    progress: called with the number of images that are done at the start, then with each number of further ones
    What is written so far lies in NAME.npy.partial, and in NAME.npy.progress how much of it counts.
    Raises UsageError where an image cannot be decoded or has another size than the first.
    """
    path = folder / f"{half.name}.npy"
    partial, record = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.progress")
    with undecodable_named():
        height, width = half.images.size(0)
    shape = half.images.channels, height, width
    writing = _Writing(partial, record, half, shape)
    progress(0, writing.done)
    with writing.opened():
        with closing(_pieces(half.images, writing.done, shape, workers)) as pieces:
            for count, pixels in pieces:
                writing.append(count, pixels)
                progress(count, writing.done)
    labels = labels_of(path)
    with replacing(labels) as file:
        np.lib.format.write_array(file, half.targets.numpy(), allow_pickle=False)
    files = {path.name: stamp(partial), labels.name: stamp(labels)}
    half.manifest("array", files, writing.counts, shape).write(path)
    os.replace(partial, path)
    record.unlink()
    return path


class _Writing:
    """A file of images that grows, and the record of how far it has surely come."""

    def __init__(self, partial: Path, record: Path, half: SplitToWrite, shape: Shape) -> None:
        self.partial, self.record, self.half, self.shape = partial, record, half, shape
        self.done = 0
        self.counts = torch.zeros(shape[0], 256, dtype=torch.int64)
        self._unrecorded = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(record.read_text())
            if noted["fingerprint"] == half.fingerprint and partial.stat().st_size >= self._end(noted["done"]):
                self.done, self.counts = int(noted["done"]), torch.tensor(noted["grey_levels"])

    def _end(self, images: int) -> int:
        return len(self._header()) + images * int(np.prod(self.shape))

    def _header(self) -> bytes:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.half), *self.shape)}
        np.lib.format.write_array_header_1_0(file := io.BytesIO(), header)
        return file.getvalue()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with open(self.partial, "r+b" if self.done else "wb") as self.file:
            if self.done:
                self.file.truncate(self._end(self.done))
                self.file.seek(0, os.SEEK_END)
            else:
                self.file.write(self._header())
            yield
            self._keep()

    def append(self, count: int, pixels: bytes) -> None:
        self.file.write(pixels)
        images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(count, *self.shape)
        self.counts += grey_levels(images)
        self.done += count
        self._unrecorded += len(pixels)
        if self._unrecorded >= KEPT_BYTES:
            self._keep()

    def _keep(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        noted = {"fingerprint": self.half.fingerprint, "done": self.done, "grey_levels": self.counts.tolist()}
        with replacing(self.record) as file:
            file.write(json.dumps(noted).encode())
        self._unrecorded = 0


def _pieces(images: StoredImages, begin: int, shape: Shape, workers: int) -> Generator[tuple[int, bytes], None, None]:
    """(number of images, their pixels [number, channels, height, width]) from image `begin` on, in order."""
    channels, height, width = shape
    if isinstance(images, FileImages):
        size = {"width": width, "height": height}
        paths = images.paths[begin:]
        try:
            yield from decoded(paths, channels=channels, **size, image_size=images.square, workers=workers)
        except Unfit as stop:
            if stop.why == "size":
                differs = f"is {stop.detail} pixels (width x height), the first {width}x{height}; give --image-size"
                raise UsageError(f"{stop.path} {differs}") from None
            raise UsageError(f"{stop.path} cannot be decoded ({stop.detail}); replace or remove it") from None
        return
    step = max(1, _PIECE_BYTES // (channels * height * width))
    for start in range(begin, len(images), step):
        indices = range(start, min(start + step, len(images)))
        yield len(indices), b"".join(_pixels(images, index, shape) for index in indices)


def _pixels(images: StoredImages, index: int, shape: Shape) -> bytes:
    with undecodable_named():
        image = images.read(index).transpose(2, 0, 1)
    if image.shape != shape:
        raise UsageError(f"image {index} is {list(image.shape)}, the first {list(shape)}; all must have one size")
    return image.tobytes()
