"""Worker processes that read samples: stored images, or a map-style Dataset of (input, target) pairs."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import threading
from multiprocessing.connection import Connection

import numpy as np
import torch

from fastlocal.common.errors import UsageError

from ..transforms import Ints, cut
from ..types import Array, BadSample, Image, MapSplit, StoredImages
from .engine import Cropper, DecodeJob, size_mismatch

ORPHAN_S = 1.0
"""Time in which a worker notices that its parent has ended, if a sibling keeps its pipe open."""
MAX_ROWS = 64


class TorchWorkers:
    """Engine of worker processes, forked at construction as torch's DataLoader forks its workers.

    They read lists of sample numbers from pipes, and end with the engine or with its process. They ignore signals to
    the whole process group.
    """

    def __init__(self, samples: Cropper | MapSplit, workers: int) -> None:
        self.max_rows = MAX_ROWS
        self._samples = samples
        self._queue: queue.SimpleQueue[DecodeJob | None] = queue.SimpleQueue()
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        context = multiprocessing.get_context("fork")
        read = samples.images if isinstance(samples, Cropper) else samples
        gc.collect()
        gc.freeze()  # otherwise a worker runs finalizers of the parent's garbage: DALI's crash
        try:
            for _ in range(max(1, workers)):
                ours, theirs = context.Pipe()
                others = [connection for _, connection in self._workers]
                process = context.Process(target=_work, args=(read, theirs, [ours, *others]), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
        except OSError as error:
            self.close()
            raise UsageError(
                f"--nw {workers}: {len(self._workers) + 1} processes cannot be started ({error})"
            ) from None
        finally:
            gc.unfreeze()
        self._threads = [threading.Thread(target=self._serve, args=member, daemon=True) for member in self._workers]
        for thread in self._threads:
            thread.start()

    def begin(self, job: DecodeJob) -> None:
        self._queue.put(job)

    def advance(self, job: DecodeJob, seconds: float) -> None:
        job.done.wait(seconds)

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
        for process, _ in self._workers:
            process.join()
            self._queue.put(None)
        for thread in getattr(self, "_threads", []):
            thread.join()
        for _, connection in self._workers:
            connection.close()

    def _serve(self, process: multiprocessing.process.BaseProcess, connection: Connection) -> None:
        """Pass jobs to one process until the end of the queue."""
        while (job := self._queue.get()) is not None:
            try:
                self._fill(job, connection)
            except (EOFError, OSError):
                process.join()
                ids = job.rows.ids
                job.error = UsageError(
                    f"--nw: a worker process ended (status {process.exitcode}) between samples {ids[0]} and {ids[-1]}; "
                    "fewer of them need less memory"
                )
            except BaseException as error:  # wait_for raises it
                job.error = error
            job.done.set()

    def _fill(self, job: DecodeJob, connection: Connection) -> None:
        ids = job.rows.ids
        if isinstance(self._samples, Cropper):
            boxes = self._samples.boxes(job)
            sizes = job.out.shape[1:], self._samples.augmentation.crop_size is None
            connection.send((ids, boxes, *sizes, [row for row, _ in job.bad]))
            bad_rows, job.out[:] = connection.recv()
        else:
            assert job.rows.words is not None, "drawn with the rows"
            connection.send((ids, job.rows.words))
            bad_rows, job.out[:], targets = connection.recv()
            assert job.targets is not None
            job.targets[:] = targets
        job.bad += [(row, BadSample(*words)) for row, words in bad_rows]


def _work(samples: StoredImages | MapSplit, connection: Connection, parent_connections: list[Connection]) -> None:
    """Serve requests in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in parent_connections:
        other.close()  # so that the parent's end closes the pipe
    torch.set_num_threads(1)
    parent = os.getppid()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            while not connection.poll(ORPHAN_S):
                if os.getppid() != parent:
                    return
            request = connection.recv()
            connection.send(_map(samples, *request) if isinstance(samples, MapSplit) else _images(samples, *request))


BadRows = list[tuple[int, tuple[str, ...]]]


def _images(
    images: StoredImages, ids: Ints, boxes: Ints, shape: tuple[int, int, int], one_size: bool, bad: list[int]
) -> tuple[BadRows, Image]:
    """Read images and cut their boxes.

    Args:
        images: The images.
        ids: Samples.
        boxes: [rows, 5].
        shape: (height, width, channels) of the cuts.
        one_size: Whether every image must have this shape.
        bad: Rows to skip.

    Returns:
        (row, sample and reason) of samples that cannot be decoded, and the images.
    """
    out = np.zeros((len(ids), *shape), dtype=np.uint8)
    height, width, _ = shape
    bad_rows: BadRows = []
    for row, index in enumerate(ids):
        if row in bad:
            continue
        try:
            image = images.read(int(index))
            if one_size and image.shape != shape:
                raise size_mismatch(int(index), image.shape, shape)
            out[row] = cut(image, boxes[row], height, width)
        except BadSample as error:
            bad_rows.append((row, (error.sample, error.reason)))
    return bad_rows, out


def _map(split: MapSplit, ids: Ints, words: Ints) -> tuple[BadRows, Array, Array]:
    """Read pairs of a Dataset.

    Args:
        split: The Dataset.
        ids: Samples.
        words: int64 [rows, 4] of 32 bits, the key of each row's random numbers.

    Returns:
        (row, sample and reason) of samples that cannot be read, the inputs, and the targets.
    """
    inputs, targets = (np.zeros((len(ids), *first.shape), dtype=first.dtype) for first in split.first)
    bad_rows: BadRows = []
    for row, (index, (a, b, c, d)) in enumerate(zip(ids.tolist(), words.tolist(), strict=True)):
        try:
            inputs[row], targets[row] = split.read(index, a | b << 32 | c << 64 | d << 96)
        except BadSample as error:
            bad_rows.append((row, error.args))
    return bad_rows, inputs, targets
