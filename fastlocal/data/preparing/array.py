"""Write images of one size as one array, block by block; an interrupted run continues its file."""

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
from fastlocal.data.datasets.array import labels_path
from fastlocal.data.decode import bad_sample_as_usage_error
from fastlocal.data.images.decoding import decode_files
from fastlocal.data.images.files import FileImages
from fastlocal.data.images.worker import Unfit
from fastlocal.data.manifest import make_stamp, replace_file
from fastlocal.data.normalization import count_levels
from fastlocal.data.preparing.split_to_write import SplitToWrite
from fastlocal.data.types import StoredImages

SYNC_BYTES = 16 << 20
"""Bytes written between two records of the progress."""
_BLOCK_BYTES = 4 << 20

Shape = tuple[int, int, int]


def write_array(split: SplitToWrite, folder: Path, workers: int, progress: Callable[[int, int], None]) -> Path:
    """Write NAME.npy, NAME_labels.npy and their manifest; return the path of NAME.npy.

    Pixels go to NAME.npy.partial, and NAME.npy.progress records how many of them are valid. NAME.npy appears last.

    Args:
        split: The images and labels.
        folder: Folder of the files.
        workers: Processes that decode.
        progress: Called with the number of new images and the number of images at the start.

    Raises:
        UsageError: An image cannot be decoded, or has another size than the first.
    """
    path = folder / f"{split.name}.npy"
    partial, record = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.progress")
    with bad_sample_as_usage_error():
        height, width = split.images.size(0)
    shape = split.images.channels, height, width
    writer = _ArrayWriter(partial, record, split, shape)
    progress(0, writer.done)
    with writer.open():
        with closing(_blocks(split.images, writer.done, shape, workers)) as blocks:
            for count, pixels in blocks:
                writer.append(count, pixels)
                progress(count, writer.done)
    labels = labels_path(path)
    with replace_file(labels) as file:
        np.lib.format.write_array(file, split.targets.numpy(), allow_pickle=False)
    files = {path.name: make_stamp(partial), labels.name: make_stamp(labels)}
    split.manifest("array", files, writer.counts, shape).write(path)
    os.replace(partial, path)
    record.unlink()
    return path


class _ArrayWriter:
    """A growing file of images, and the record of its valid part."""

    def __init__(self, partial: Path, record: Path, split: SplitToWrite, shape: Shape) -> None:
        self.partial, self.record, self.split, self.shape = partial, record, split, shape
        self.done = 0
        self.counts = torch.zeros(shape[0], 256, dtype=torch.int64)
        self._unrecorded = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(record.read_text())
            if state["fingerprint"] == split.fingerprint and partial.stat().st_size >= self._end(state["done"]):
                self.done, self.counts = int(state["done"]), torch.tensor(state["grey_levels"])

    def _end(self, images: int) -> int:
        return len(self._header()) + images * int(np.prod(self.shape))

    def _header(self) -> bytes:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.split), *self.shape)}
        np.lib.format.write_array_header_1_0(file := io.BytesIO(), header)
        return file.getvalue()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with open(self.partial, "r+b" if self.done else "wb") as self.file:
            if self.done:
                self.file.truncate(self._end(self.done))
                self.file.seek(0, os.SEEK_END)
            else:
                self.file.write(self._header())
            yield
            self._sync()

    def append(self, count: int, pixels: bytes) -> None:
        self.file.write(pixels)
        images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(count, *self.shape)
        self.counts += count_levels(images)
        self.done += count
        self._unrecorded += len(pixels)
        if self._unrecorded >= SYNC_BYTES:
            self._sync()

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        state = {"fingerprint": self.split.fingerprint, "done": self.done, "grey_levels": self.counts.tolist()}
        with replace_file(self.record) as file:
            file.write(json.dumps(state).encode())
        self._unrecorded = 0


def _blocks(images: StoredImages, begin: int, shape: Shape, workers: int) -> Generator[tuple[int, bytes], None, None]:
    """Yield (number of images, pixels [number, channels, height, width]) from image `begin` on, in order."""
    channels, height, width = shape
    if isinstance(images, FileImages):
        size = {"width": width, "height": height}
        paths = images.paths[begin:]
        try:
            yield from decode_files(paths, channels=channels, **size, image_size=images.square, workers=workers)
        except Unfit as stop:
            if stop.kind == "size":
                sizes = f"is {stop.detail} pixels (width x height), the first {width}x{height}; give --image-size"
                raise UsageError(f"{stop.path} {sizes}") from None
            raise UsageError(f"{stop.path} cannot be decoded ({stop.detail}); replace or remove it") from None
        return
    step = max(1, _BLOCK_BYTES // (channels * height * width))
    for start in range(begin, len(images), step):
        indices = range(start, min(start + step, len(images)))
        yield len(indices), b"".join(_pixels(images, index, shape) for index in indices)


def _pixels(images: StoredImages, index: int, shape: Shape) -> bytes:
    with bad_sample_as_usage_error():
        image = images.read(index).transpose(2, 0, 1)
    if image.shape != shape:
        raise UsageError(f"image {index} is {list(image.shape)}, the first {list(shape)}; all must have one size")
    return image.tobytes()
