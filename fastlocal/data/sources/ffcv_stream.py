"""Decode images of a .beton file by FFCV's compiled pipeline, in an order that is not known beforehand.

FFCV's loader takes an order of sample numbers per epoch. Here a queue replaces that order: its iterator gets batches on
request, and each sample number carries its box.
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
from .engine import Cropper, DecodeJob, size_mismatch

SAMPLE, TOP, LEFT, HEIGHT, WIDTH, MIRRORED, STATUS = range(7)
"""Columns of a request, which replaces FFCV's sample number."""
JPEG = IMAGE_MODES["jpg"]
SLOT_BYTES = 32 * 2**20
MAX_ROWS = 512
BATCHES_AHEAD = 3
WEIGHT_BITS = 22
"""Weights of Pillow's resize are multiples of 2^-22."""


class FfcvStream:
    """Engine with one FFCV loader.

    Args:
        path: The .beton file.
        field: Its image field.
        cropper: The boxes of the images.
        shape: (height, width, 3) of the cuts.
        workers: Threads of the loader.
    """

    def __init__(self, path: str, field: str, cropper: Cropper, shape: tuple[int, int, int], workers: int) -> None:
        threads = torch.get_num_threads()
        largest = int(np.prod([getattr(cropper.images, name).max() for name in ("heights", "widths")], dtype=np.int64))
        self.max_rows = int(np.clip(SLOT_BYTES // (3 * largest + shape[0] * shape[1] * 3), 1, MAX_ROWS))
        self._cropper, self._path, self._shape = cropper, path, shape
        self._mismatched = self._find_mismatched()
        self._queue: queue.SimpleQueue[DecodeJob | None] = queue.SimpleQueue()
        self._in_progress: deque[tuple[DecodeJob, Any]] = deque()
        self._output_lock = threading.Lock()
        try:
            pipelines: dict[str, Any] = dict.fromkeys(Reader(path).field_names)
            loader = Loader(
                path,
                batch_size=self.max_rows,
                num_workers=min(max(1, workers), numba.config.NUMBA_NUM_THREADS),  # numba's limit
                os_cache=True,
                order=_EmptyOrder(),
                drop_last=False,
                batches_ahead=BATCHES_AHEAD,
                pipelines=pipelines | {field: [BoxDecoder(*shape[:2])]},
            )
        finally:
            torch.set_num_threads(threads)  # FFCV changes torch's setting too
        self._iterator = _Stream(loader, self._requests(threads))

    def begin(self, job: DecodeJob) -> None:
        self._queue.put(job)

    def advance(self, job: DecodeJob, seconds: float) -> None:
        """Take FFCV's next batch; batches come in the order in which they began."""
        with self._output_lock:
            if job.done.is_set():
                return
            try:
                # FFCV reuses the batch's memory after the next batch
                _, (images,) = self._iterator.output_queue.get(timeout=seconds)
            except queue.Empty:
                if self._iterator.error is not None:
                    job.error = self._iterator.error
                    job.done.set()
                return
            done, requests = self._in_progress.popleft()
            bad_rows = {row for row, _ in done.bad}
            for row in np.flatnonzero(requests[:, STATUS]):
                if row not in bad_rows:
                    done.bad.append((int(row), self._reason(int(requests[row, SAMPLE]))))
            try:
                if done.use is None or done.bad:
                    done.out.transpose(0, 3, 1, 2)[:] = images
                else:
                    done.use(images)
            except BaseException as error:  # wait_for raises it
                done.error = error
            done.done.set()

    def close(self) -> None:
        self._queue.put(None)
        self._iterator.close()
        while self._iterator.is_alive():  # empty its queue: the thread puts a last entry
            with contextlib.suppress(queue.Empty):
                self._iterator.output_queue.get(timeout=0.05)
        self._iterator.join()

    def _requests(self, threads: int) -> Iterator[Any]:
        """Yield the requests of FFCV's thread, batch by batch."""
        torch.set_num_threads(threads)
        while (job := self._queue.get()) is not None:
            requests = np.zeros((len(job), 7), dtype=np.int64)
            requests[:, SAMPLE] = job.rows.ids
            requests[:, TOP:STATUS] = self._cropper.boxes(job)
            for row in np.flatnonzero(self._mismatched[job.rows.ids]):
                index = int(job.rows.ids[row])
                job.bad.append((int(row), size_mismatch(index, self._cropper.images.size(index), self._shape)))
            self._in_progress.append((job, requests))
            yield requests

    def _find_mismatched(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Mask the images whose size differs from the first one's, if images are used whole."""
        images = self._cropper.images
        assert isinstance(images, BetonImages)
        if self._cropper.augmentation.crop_size is not None:
            return np.zeros(len(images), dtype=bool)
        return np.asarray((images.heights != self._shape[0]) | (images.widths != self._shape[1]))

    def _reason(self, index: int) -> BadSample:
        """Return Pillow's error for a sample, if it has one."""
        try:
            self._cropper.images.read(index)
        except BadSample as bad:
            return bad
        return BadSample(f"sample {index} of {self._path}", "libjpeg-turbo warns of damaged data")


class _EmptyOrder(TraversalOrder):
    """An empty order; FFCV calls it with the loader, and the queue replaces it."""

    def __init__(self) -> None:
        pass

    def __call__(self, loader: Loader) -> _EmptyOrder:
        return self

    def sample_order(self, epoch: int) -> Any:
        return np.empty((0, 7), dtype=np.int64)


class _Stream(EpochIterator):
    """FFCV's iterator over batches that are requested while it runs."""

    def __init__(self, loader: Loader, requests: Iterator[Any]) -> None:
        self._requests = requests
        self.error: BaseException | None = None
        super().__init__(loader, loader.next_traversal_order())

    def run(self) -> None:
        self.iter_ixes = self._requests
        try:
            super().run()
        except BaseException as error:  # advance passes it on
            self.error = error


class BoxDecoder(SimpleRGBImageDecoder):
    """Decodes images of any size and cuts their boxes out: [3, height, width]."""

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


# compiled once for all files: FFCV compiles each loader's code anew, 5 s with parallel loops
@numba.njit(nogil=True, parallel=True)
def _decode(requests, metadata, storage, out, decoded, narrowed):
    """Decode and cut a batch; `storage` is FFCV's (content, places, sizes) of a file, sorted by place."""
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
    """Cut one image [height, width, 3] with the bits of transforms.cut, and put its channels first in `out`.

    Args:
        image: [height, width, 3].
        request: Row of requests.
        out: uint8 [3, height, width].
        narrowed: Scratch, uint8 [at least box height, 3 * out width].
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
def _weights(size, out_size, place, weights):
    """Compute the weights of Pillow's antialiased bilinear filter from `size` pixels to pixel `place` of `out_size`.

    Returns:
        (first, count) of the source pixels.
    """
    scale = size / out_size
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
