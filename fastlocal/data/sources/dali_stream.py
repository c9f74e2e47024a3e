"""Decode images of any storage by a DALI pipeline, which is fed their bytes and our boxes."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..transforms import Ints, cut
from ..types import BadSample
from .engine import Cropper, DecodeJob, size_mismatch

MAX_ROWS = 128
TIFF = (b"II*\0", b"MM\0*")
"""First bytes of files that Pillow rotates by the camera's orientation, and DALI may not."""


class DaliStream:
    """Engine with one DALI pipeline.

    nvJPEG decodes JPEGs on a GPU, and their pixels stay there. Pillow decodes what DALI cannot decode.

    Args:
        cropper: The boxes of the images.
        shape: (height, width, channels) of the cuts.
        workers: Threads of the pipeline.
        device_id: GPU that decodes and resizes, or None for the CPU.
    """

    def __init__(self, cropper: Cropper, shape: tuple[int, int, int], workers: int, device_id: int | None) -> None:
        self.max_rows = MAX_ROWS
        self._cropper, self._shape = cropper, shape
        self._threads, self._device_id = max(1, workers), device_id
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)
        self._compressed = self._first_is_compressed()
        self._pipeline = self._build()
        self._queue: queue.SimpleQueue[DecodeJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def begin(self, job: DecodeJob) -> None:
        self._queue.put(job)

    def advance(self, job: DecodeJob, seconds: float) -> None:
        job.done.wait(seconds)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _first_is_compressed(self) -> bool:
        """Return True if the first readable image is compressed."""
        images = self._cropper.images
        for index in range(len(images)):
            with contextlib.suppress(BadSample):
                return images.read_encoded(index) is not None
        return False

    def _build(self) -> Any:
        height, width, channels = self._shape
        place = "cpu" if self._device_id is None else "gpu"
        pipeline = Pipeline(
            batch_size=MAX_ROWS,
            num_threads=self._threads,
            device_id=self._device_id,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with pipeline:
            mirrored = fn.external_source(name="mirrored", batch=True, dtype=types.INT32, ndim=0)
            starts = fn.external_source(name="starts", batch=True, dtype=types.INT32, ndim=1)
            ends = fn.external_source(name="ends", batch=True, dtype=types.INT32, ndim=1)
            if self._compressed:
                stored = fn.external_source(name="stored", batch=True, dtype=types.UINT8, ndim=1)
                kind = types.GRAY if channels == 1 else types.RGB
                device = "cpu" if place == "cpu" else "mixed"
                # no rotation by the camera's orientation: sizes, boxes and other sources ignore it
                images = fn.decoders.image(stored, device=device, output_type=kind, adjust_orientation=False)
            else:
                images = fn.external_source(name="stored", batch=True, dtype=types.UINT8, ndim=3, layout="HWC")
                images = images.gpu() if place == "gpu" else images
            # cut first: the resize of a region of interest would use pixels around it
            images = fn.slice(images, start=starts, end=ends, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)
            if self._cropper.augmentation.crop_size is not None:
                images = fn.resize(images, size=[height, width], interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(fn.flip(images, horizontal=mirrored))
        pipeline.build()
        return pipeline

    def _serve(self) -> None:
        """Fill jobs until the end of the queue."""
        while (job := self._queue.get()) is not None:
            try:
                self._fill(job)
            except BaseException as error:  # wait_for raises it
                job.error = error
            job.done.set()

    def _fill(self, job: DecodeJob) -> None:
        boxes = self._cropper.boxes(job)
        bad_rows = {row for row, _ in job.bad}
        stored = {}
        for row, index in enumerate(job.rows.ids):
            if row not in bad_rows:
                try:
                    stored[row] = self._encode(int(index))
                except BadSample as bad:
                    job.bad.append((row, bad))
        rows = np.array(list(stored), dtype=np.int64)
        if not len(rows):
            return
        try:
            images = self._run(list(stored.values()), boxes[rows])
        except RuntimeError:  # one bad image fails the whole batch and breaks the pipeline
            self._pipeline = self._build()
            self._one_by_one(job, rows, boxes)
            return
        if images.is_cuda and len(rows) == len(job):
            assert self._stream is not None, "images are on the GPU that decodes"
            with torch.cuda.stream(self._stream):  # of this thread's own: the default one is behind the training
                job.on_device = images.clone()
            self._stream.synchronize()
        else:
            job.out[rows] = images.cpu().numpy()

    def _encode(self, index: int) -> Any:
        """Return DALI's input for an image: its file, or its pixels, with a PNM header if others are compressed."""
        images = self._cropper.images
        if self._cropper.augmentation.crop_size is None and images.size(index) != self._shape[:2]:
            raise size_mismatch(index, images.size(index), self._shape)
        if not self._compressed:
            return images.read(index)
        content = images.read_encoded(index)
        if content is None or content.startswith(TIFF):
            pixels = images.read(index)
            height, width, channels = pixels.shape
            content = b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height) + pixels.tobytes()
        return np.frombuffer(content, dtype=np.uint8)

    def _run(self, stored: list[Any], boxes: Ints) -> Tensor:
        """Return uint8 [rows, height, width, channels] in DALI's memory, valid until the next run."""
        pipeline, numbers = self._pipeline, boxes.astype(np.int32)
        pipeline.feed_input("stored", stored)
        pipeline.feed_input("starts", np.ascontiguousarray(numbers[:, :2]))
        pipeline.feed_input("ends", numbers[:, :2] + numbers[:, 2:4])
        pipeline.feed_input("mirrored", np.ascontiguousarray(numbers[:, 4]))
        (images,) = pipeline.run()
        return from_dlpack(images.as_tensor().__dlpack__())  # without a stream, this waits for the images

    def _one_by_one(self, job: DecodeJob, rows: Ints, boxes: Ints) -> None:
        for row in rows:
            try:
                image = self._cropper.images.read(int(job.rows.ids[row]))
                job.out[row] = cut(image, boxes[row], *self._shape[:2])
            except BadSample as bad:
                job.bad.append((int(row), bad))
