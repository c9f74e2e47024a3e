"""Samples read by worker processes: stored images, or any map-style Dataset of (input, target) pairs."""

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
from .engine import Cropper, DecodeJob, other_size

ORPHAN_S = 1.0
"""How soon a worker notices that its parent is gone, where a sibling keeps its pipe open."""
MAX_ROWS = 64


class TorchWorkers:
    """An engine of `workers` processes, forked when it is made, as torch's DataLoader forks its own.

    They read lists of sample numbers from pipes, and end with the engine or with the process that holds it, however
    that ends. A signal for the whole group is left to the parent.
    """

    def __init__(self, samples: Cropper | MapSplit, workers: int) -> None:
        self.most_rows = MAX_ROWS
        self._samples = samples
        self._waiting: queue.SimpleQueue[DecodeJob | None] = queue.SimpleQueue()
        self._crew: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        context = multiprocessing.get_context("fork")
        read = samples.images if isinstance(samples, Cropper) else samples
        gc.collect()
        gc.freeze()  # a worker that collected the parent's garbage would run its finalizers: DALI's end in a crash
        try:
            for _ in range(max(1, workers)):
                ours, theirs = context.Pipe()
                others = [connection for _, connection in self._crew]
                process = context.Process(target=_work, args=(read, theirs, [ours, *others]), daemon=True)
                process.start()
                theirs.close()
                self._crew.append((process, ours))
        except OSError as error:
            self.close()
            raise UsageError(f"--nw {workers}: {len(self._crew) + 1} processes cannot be started ({error})") from None
        finally:
            gc.unfreeze()
        self._threads = [threading.Thread(target=self._serve, args=member, daemon=True) for member in self._crew]
        for thread in self._threads:
            thread.start()

    def begin(self, piece: DecodeJob) -> None:
        self._waiting.put(piece)

    def advance(self, piece: DecodeJob, seconds: float) -> None:
        piece.done.wait(seconds)

    def close(self) -> None:
        for process, _ in self._crew:
            process.kill()
        for process, _ in self._crew:
            process.join()
            self._waiting.put(None)
        for thread in getattr(self, "_threads", []):
            thread.join()
        for _, connection in self._crew:
            connection.close()

    def _serve(self, process: multiprocessing.process.BaseProcess, connection: Connection) -> None:
        """Pass pieces to one process until there is none."""
        while (piece := self._waiting.get()) is not None:
            try:
                self._fill(piece, connection)
            except (EOFError, OSError):
                process.join()
                ids = piece.rows.ids
                piece.error = UsageError(
                    f"--nw: a worker process ended (status {process.exitcode}) between samples {ids[0]} and {ids[-1]}; "
                    "fewer of them need less memory"
                )
            except BaseException as error:  # raised where the piece is waited for
                piece.error = error
            piece.done.set()

    def _fill(self, piece: DecodeJob, connection: Connection) -> None:
        ids = piece.rows.ids
        if isinstance(self._samples, Cropper):
            boxes = self._samples.boxes(piece)
            sizes = piece.out.shape[1:], self._samples.augmentation.crop_size is None
            connection.send((ids, boxes, *sizes, [row for row, _ in piece.bad]))
            refused, piece.out[:] = connection.recv()
        else:
            assert piece.rows.words is not None, "drawn with the rows"
            connection.send((ids, piece.rows.words))
            refused, piece.out[:], targets = connection.recv()
            assert piece.targets is not None
            piece.targets[:] = targets
        piece.bad += [(row, BadSample(*words)) for row, words in refused]


def _work(samples: StoredImages | MapSplit, connection: Connection, of_the_parent: list[Connection]) -> None:
    """What a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in of_the_parent:
        other.close()  # so that the end of the pipe shows when the parent is gone
    torch.set_num_threads(1)
    parent = os.getppid()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            while not connection.poll(ORPHAN_S):
                if os.getppid() != parent:
                    return
            request = connection.recv()
            connection.send(_map(samples, *request) if isinstance(samples, MapSplit) else _images(samples, *request))


Refused = list[tuple[int, tuple[str, ...]]]


def _images(
    images: StoredImages, ids: Ints, boxes: Ints, shape: tuple[int, int, int], one_size: bool, bad: list[int]
) -> tuple[Refused, Image]:
    """Images cut by their boxes, and (row, sample and reason) of those that cannot be decoded.

    one_size: every image must have this shape        bad: rows to leave out
    """
    out = np.zeros((len(ids), *shape), dtype=np.uint8)
    height, width, _ = shape
    refused: Refused = []
    for row, index in enumerate(ids):
        if row in bad:
            continue
        try:
            image = images.read(int(index))
            if one_size and image.shape != shape:
                raise other_size(int(index), image.shape, shape)
            out[row] = cut(image, boxes[row], height, width)
        except BadSample as error:
            refused.append((row, (error.sample, error.reason)))
    return refused, out


def _map(split: MapSplit, ids: Ints, words: Ints) -> tuple[Refused, Array, Array]:
    """Pairs of a Dataset, and (row, sample and reason) of those that cannot be read.

    words: int64 [rows, 4] of 32 bits, the key of each row's random numbers
    """
    inputs, targets = (np.zeros((len(ids), *first.shape), dtype=first.dtype) for first in split.first)
    refused: Refused = []
    for row, (index, (a, b, c, d)) in enumerate(zip(ids.tolist(), words.tolist(), strict=True)):
        try:
            inputs[row], targets[row] = split.read(index, a | b << 32 | c << 64 | d << 96)
        except BadSample as error:
            refused.append((row, error.args))
    return refused, inputs, targets
