"""Images of a .beton file, decoded by FFCV's compiled pipeline in an order that is not known beforehand.

FFCV's loader takes an order of sample numbers per epoch. Here that order is a queue: its iterator is given batches as
they are asked for, and each sample number comes with the box that is to be cut out of it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.state import State
from ffcv.reader import Reader
from ffcv.traversal_order.base import TraversalOrder

from ..images.beton import BetonImages
from ..types import BadSample
from .engine import Cropper, DecodeJob, other_size

SAMPLE, TOP, LEFT, HEIGHT, WIDTH, MIRRORED, STATUS = range(7)
"""Columns of what FFCV is given instead of sample numbers."""
JPEG = IMAGE_MODES["jpg"]
SLOT_BYTES = 32 * 2**20
MAX_ROWS = 512
BATCHES_AHEAD = 3
WEIGHT_BITS = 22
"""Of Pillow's resize, whose weights are whole multiples of 2^-22."""


class FfcvStream:
    """An engine that is one FFCV loader with `workers` threads.

    path, field: the .beton file and its image field        shape: (height, width, 3) of what is cut out
    """

    def __init__(self, path: str, field: str, cutter: Cropper, shape: tuple[int, int, int], workers: int) -> None:
        threads = torch.get_num_threads()
        largest = int(np.prod([getattr(cutter.images, name).max() for name in ("heights", "widths")], dtype=np.int64))
        self.most_rows = int(np.clip(SLOT_BYTES // (3 * largest + shape[0] * shape[1] * 3), 1, MAX_ROWS))
        self._cutter, self._path, self._shape = cutter, path, shape
        self._odd = self._of_other_sizes()
        self._waiting: queue.SimpleQueue[DecodeJob | None] = queue.SimpleQueue()
        self._begun: deque[tuple[DecodeJob, Any]] = deque()
        self._taking = threading.Lock()
        try:
            pipelines: dict[str, Any] = dict.fromkeys(Reader(path).field_names)
            loader = Loader(
                path,
                batch_size=self.most_rows,
                num_workers=min(max(1, workers), numba.config.NUMBA_NUM_THREADS),  # numba takes no more
                os_cache=True,
                order=_NoOrder(),
                drop_last=False,
                batches_ahead=BATCHES_AHEAD,
                pipelines=pipelines | {field: [BoxDecoder(*shape[:2])]},
            )
        finally:
            torch.set_num_threads(threads)  # FFCV sets torch's beside its own
        self._iterator = _Stream(loader, self._requests(threads))

    def begin(self, piece: DecodeJob) -> None:
        self._waiting.put(piece)

    def advance(self, piece: DecodeJob, seconds: float) -> None:
        """FFCV's batches come in the order in which they were begun: whoever waits takes the next."""
        with self._taking:
            if piece.done.is_set():
                return
            try:
                # the batch's memory is FFCV's, and is written again once another batch is taken
                _, (images,) = self._iterator.output_queue.get(timeout=seconds)
            except queue.Empty:
                if self._iterator.failed is not None:
                    piece.error = self._iterator.failed
                    piece.done.set()
                return
            done, requests = self._begun.popleft()
            refused = {row for row, _ in done.bad}
            for row in np.flatnonzero(requests[:, STATUS]):
                if row not in refused:
                    done.bad.append((int(row), self._why(int(requests[row, SAMPLE]))))
            try:
                if done.use is None or done.bad:
                    done.out.transpose(0, 3, 1, 2)[:] = images
                else:
                    done.use(images)
            except BaseException as error:  # raised where the piece is waited for
                done.error = error
            done.done.set()

    def close(self) -> None:
        self._waiting.put(None)
        self._iterator.close()
        while self._iterator.is_alive():  # it puts a last entry, which waits for room where nobody takes its batches
            with contextlib.suppress(queue.Empty):
                self._iterator.output_queue.get(timeout=0.05)
        self._iterator.join()

    def _requests(self, threads: int) -> Iterator[Any]:
        """What FFCV's thread is to decode, batch after batch."""
        torch.set_num_threads(threads)
        while (piece := self._waiting.get()) is not None:
            requests = np.zeros((len(piece), 7), dtype=np.int64)
            requests[:, SAMPLE] = piece.rows.ids
            requests[:, TOP:STATUS] = self._cutter.boxes(piece)
            for row in np.flatnonzero(self._odd[piece.rows.ids]):
                index = int(piece.rows.ids[row])
                piece.bad.append((int(row), other_size(index, self._cutter.images.size(index), self._shape)))
            self._begun.append((piece, requests))
            yield requests

    def _of_other_sizes(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images have not the size of the first, where they reach the model whole."""
        images = self._cutter.images
        assert isinstance(images, BetonImages)
        if self._cutter.augmentation.crop_size is not None:
            return np.zeros(len(images), dtype=bool)
        return np.asarray((images.heights != self._shape[0]) | (images.widths != self._shape[1]))

    def _why(self, index: int) -> BadSample:
        """Pillow's reason, where it has one."""
        try:
            self._cutter.images.read(index)
        except BadSample as bad:
            return bad
        return BadSample(f"sample {index} of {self._path}", "libjpeg-turbo warns of damaged data")


class _NoOrder(TraversalOrder):
    """FFCV makes an order by calling what it is given with the loader; this one is empty, and the queue is used."""

    def __init__(self) -> None:
        pass

    def __call__(self, loader: Loader) -> _NoOrder:
        return self

    def sample_order(self, epoch: int) -> Any:
        return np.empty((0, 7), dtype=np.int64)


class _Stream(EpochIterator):
    """FFCV's iterator over batches that are made while it runs."""

    def __init__(self, loader: Loader, requests: Iterator[Any]) -> None:
        self._requests = requests
        self.failed: BaseException | None = None
        super().__init__(loader, loader.next_traversal_order())

    def run(self) -> None:
        self.iter_ixes = self._requests
        try:
            super().run()
        except BaseException as error:  # raised where a batch is waited for
            self.failed = error


class BoxDecoder(SimpleRGBImageDecoder):
    """Decodes an image and cuts its box out, for images of any size: [3, height, width]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self._shape = 3, height, width

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        height, width = (int(self.metadata[name].max()) for name in ("height", "width"))
        compressed = (self.metadata["mode"] == JPEG).any()
        resized = (self.metadata["height"] != self._shape[1]).any() or (self.metadata["width"] != self._shape[2]).any()
        bytes_ = np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=self._shape, dtype=bytes_), (
            AllocationQuery(self._shape, bytes_),
            AllocationQuery((height * width * 3 if compressed else 1,), bytes_),
            AllocationQuery((height, self._shape[2] * 3) if resized else (1, 1), bytes_),
        )

    def generate_code(self) -> Callable[..., Any]:
        def decode(requests, memory, metadata, storage):
            out, decoded, narrowed = memory
            _decode(requests, metadata, storage, out, decoded, narrowed)
            return out[: len(requests)]

        return decode


_decode_jpeg = numba.njit(nogil=True)(imdecode)


# compiled once for all files: FFCV compiles each loader's code anew, and loops over threads take it 5 s
@numba.njit(nogil=True, parallel=True)
def _decode(requests, metadata, storage, out, decoded, narrowed):
    """storage: FFCV's (content, places, sizes) of a file, by place"""
    content, places, sizes = storage
    for row in numba.prange(len(requests)):
        request = requests[row]
        field = metadata[request[SAMPLE]]
        place = field["data_ptr"]
        stored = content[place : place + sizes[np.searchsorted(places, place)]]
        height, width = np.int64(field["height"]), np.int64(field["width"])
        size = height * width * 3
        if field["mode"] == JPEG:
            pixels = decoded[row][:size]
            high, wide = np.uint32(height), np.uint32(width)
            request[STATUS] = _decode_jpeg(stored, pixels, high, wide, high, wide, 0, 0, 1, 1, False, False)
        else:
            pixels = stored
            request[STATUS] = stored.size != size
        if request[STATUS] == 0:
            _cut(pixels.reshape(height, width, 3), request, out[row], narrowed[row])


@numba.njit(nogil=True)
def _cut(image, request, out, narrowed):
    """transforms.cut on one image [height, width, 3], to the same bits, with channels first.

    narrowed: uint8 [at least box height, 3 * out width]
    """
    top, left, box_height, box_width = request[TOP], request[LEFT], request[HEIGHT], request[WIDTH]
    _, height, width = out.shape
    if box_height == height and box_width == width:
        for y in range(height):
            for x in range(width):
                row, column = top + y, left + (width - 1 - x if request[MIRRORED] else x)
                if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                    for channel in range(3):
                        out[channel, y, x] = image[row, column, channel]
                else:
                    for channel in range(3):
                        out[channel, y, x] = 0
        return
    half = np.int64(1) << (WEIGHT_BITS - 1)
    weights = np.empty(2 * int(np.ceil(max(box_width / width, box_height / height, 1.0))) + 1, np.int64)
    for x in range(width):
        first, count = _weights(box_width, width, x, weights)
        place = width - 1 - x if request[MIRRORED] else x
        for y in range(box_height):
            red = green = blue = half
            for tap in range(count):
                pixel = image[top + y, left + first + tap]
                red += pixel[0] * weights[tap]
                green += pixel[1] * weights[tap]
                blue += pixel[2] * weights[tap]
            narrowed[y, place] = red >> WEIGHT_BITS
            narrowed[y, width + place] = green >> WEIGHT_BITS
            narrowed[y, 2 * width + place] = blue >> WEIGHT_BITS
    sums = np.empty(3 * width, np.int32)
    for y in range(height):
        first, count = _weights(box_height, height, y, weights)
        sums[:] = half
        for tap in range(count):
            weight = np.int32(weights[tap])
            row = narrowed[first + tap]
            for place in range(3 * width):
                sums[place] += np.int32(row[place]) * weight
        for channel in range(3):
            for x in range(width):
                out[channel, y, x] = sums[channel * width + x] >> WEIGHT_BITS


@numba.njit(nogil=True)
def _weights(size, wanted, place, weights):
    """Weights of Pillow's antialiased bilinear filter for pixel `place` of `wanted` from `size`: (first, count)."""
    scale = size / wanted
    support = max(scale, 1.0)
    centre = (place + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    count = min(int(centre + support + 0.5), size) - first
    total = 0.0
    for tap in range(count):
        total += max(1.0 - abs((tap + first - centre + 0.5) * (1.0 / support)), 0.0)
    for tap in range(count):
        share = max(1.0 - abs((tap + first - centre + 0.5) * (1.0 / support)), 0.0) / total
        weights[tap] = int(0.5 + share * (1 << WEIGHT_BITS))
    return first, count
