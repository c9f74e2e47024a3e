"""Process that writes .beton files with FFCV's writer.

FFCV's writer waits forever if one of its workers dies; this process ends instead, and reports it. Pickled Jobs come in
on standard input; JSON lines go out on standard output: {"done": images}, {"grey_levels": counts of every grey level in
each channel} at the end of each job, or {"failed": reason} at the end of all. It and its workers end with their
parents.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from fastlocal.data.types import BadSample, Image, StoredImages

PAGE_BYTES = 8 << 20
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_CHUNK = 100  # images per task of a worker, FFCV's default
_MAX_TEXT = 2000

_replies = 1


@dataclass(frozen=True)
class Job:
    """One file to write, with the settings of FFCV's RGBImageField."""

    path: str
    images: StoredImages
    labels: list[int]
    write_mode: str
    max_resolution: int | None
    quality: int
    jpeg_share: float
    smart_threshold: int | None
    workers: int


class Samples:
    """(image, label) by index, for FFCV's workers, which share the counts and the first failure."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.page_bytes = page_bytes(job)
        self.failure = multiprocessing.Array(ctypes.c_char, _MAX_TEXT)
        self.counts = multiprocessing.Array(ctypes.c_int64, 3 * 256)

    def __len__(self) -> int:
        return len(self.job.images)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """Read a sample; after the first failure all are black pixels, so that the writer ends soon."""
        image = np.zeros((1, 1, 3), dtype=np.uint8)
        if not self.failure.value:
            try:
                image = self._read(int(index))
            except BadSample as bad:
                self.failure.value = f"{bad}; replace or remove it".encode()[: _MAX_TEXT - 1]
        # FFCV draws the choice of JPEGs from this generator: so it does not depend on the workers
        np.random.seed(int(index))
        return image, self.job.labels[index]

    def _read(self, index: int) -> Image:
        image = self.job.images.read(index)
        if image.shape[2] == 1:
            image = image.repeat(3, axis=2)
        height, width = image.shape[:2]
        longest = max(height, width)
        scale = min(1.0, (self.job.max_resolution or longest) / longest)
        if not (int(height * scale) and int(width * scale)):
            reason = f"of {width}x{height} pixels --max-resolution {self.job.max_resolution} leaves nothing to one side"
            raise BadSample(f"image {index}", reason)
        if self.page_bytes < int(height * scale) * int(width * scale) * 3 <= largest_raw(self.job):
            reason = f"{width}x{height} pixels are more than a page of the file holds; give --max-resolution"
            raise BadSample(f"image {index}", reason)
        with self.counts.get_lock():
            grey_levels = self.grey_levels()
            for channel in range(3):
                grey_levels[channel] += np.bincount(image[:, :, channel].reshape(-1), minlength=256)
        return image

    def grey_levels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the counts [3, 256], shared by all workers."""
        shared: Any = self.counts.get_obj()
        return np.frombuffer(shared, dtype=np.int64).reshape(3, 256)


def page_bytes(job: Job) -> int:
    """Return the page size: FFCV's 8 MiB, or more if the largest image under --max-resolution needs it."""
    needed = 0 if job.max_resolution is None else min(3 * job.max_resolution**2, largest_raw(job))
    return int(max(PAGE_BYTES, 1 << max(0, int(needed) - 1).bit_length()))


def largest_raw(job: Job) -> float:
    """Return the size in bytes up to which an image may be stored raw."""
    if job.write_mode == "smart" and job.smart_threshold is not None:
        return job.smart_threshold
    return 0 if job.write_mode == "jpg" else math.inf


class _Progress:
    """Replacement for the progress bar of FFCV's writer."""

    def __init__(self, total: int) -> None:
        self.total = total

    def update(self, count: int) -> None:
        say(done=count)

    def close(self) -> None:
        pass


def say(**message: Any) -> None:
    """Send one JSON line to the parent."""
    os.write(_replies, json.dumps(message).encode() + b"\n")


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _worker_ended(number: int, frame: FrameType | None) -> None:
    """Report a failed worker, which FFCV would ignore."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if status:
                code = os.waitstatus_to_exitcode(status)
                end = f"signal {-code}" if code < 0 else f"status {code}"
                say(failed=f"a process of FFCV's writer ended ({end}); fewer --workers need less memory")
                os._exit(1)
    except ChildProcessError:
        return


def main() -> NoReturn:
    """Write one file per job until the input ends; the first argument is the parent's process id."""
    global _replies
    _replies = os.dup(1)
    os.dup2(2, 1)  # prints of libraries must not reach the replies
    end_with(int(sys.argv[1]))
    try:
        import ffcv.writer
    except Exception as error:  # OSError for a missing system library; a wrong numpy may raise anything
        say(failed=f"FFCV cannot be imported ({' '.join(str(error).split())})")
        os._exit(1)
    ffcv.writer.tqdm = _Progress
    multiprocessing.set_start_method("fork", force=True)  # FFCV's writer needs it
    own = os.getpid()
    os.register_at_fork(after_in_child=lambda: end_with(own))
    signal.signal(signal.SIGCHLD, _worker_ended)
    with contextlib.suppress(EOFError):
        while True:
            _write(pickle.load(sys.stdin.buffer))
    os._exit(0)


def _write(job: Job) -> None:
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField

    samples = Samples(job)
    fields = {
        "image": RGBImageField(
            write_mode=job.write_mode,
            max_resolution=job.max_resolution,
            jpeg_quality=job.quality,
            compress_probability=job.jpeg_share,
            smart_threshold=job.smart_threshold,
        ),
        "label": IntField(),
    }
    writer = ffcv.writer.DatasetWriter(job.path, fields, page_size=samples.page_bytes, num_workers=job.workers)
    chunk = max(1, min(_CHUNK, len(samples) // (4 * job.workers)))
    writer.from_indexed_dataset(samples, chunksize=chunk)
    if samples.failure.value:
        say(failed=samples.failure.value.decode(errors="replace"))
        os._exit(1)
    say(grey_levels=samples.grey_levels().tolist())
