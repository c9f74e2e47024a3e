"""Decode many image files in several processes, in order.

The processes are plain children behind pipes rather than multiprocessing's: they need no `__main__` guard in a user's
script, no shared memory (64 MB in a container), do not fork a process with threads, and end with their parent even if
it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from fastlocal.common.errors import UsageError
from fastlocal.data.images.worker import PIXELS, REPLY, Unfit

_CHUNK_BYTES = 4 << 20
_START = "import sys; sys.path[:] = sys.argv[1:]; from fastlocal.data.images.worker import main; main()"


class _Worker:
    """One decoding process; `settings` is its first message."""

    def __init__(self, settings: dict[str, int | None]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *(path or os.getcwd() for path in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # the parent handles Ctrl-C
        )
        self._send(settings)

    def _send(self, message: object) -> None:
        self._pipe(self.process.stdin).write(json.dumps(message).encode() + b"\n")
        self._pipe(self.process.stdin).flush()

    def decode(self, paths: Sequence[str]) -> bytes:
        """Return the pixels of `paths`; raises Unfit for the first file that cannot be decoded."""
        try:
            self._send(paths)
            kind, length = REPLY.unpack(self._receive(REPLY.size))
            content = self._receive(length)
        except (EOFError, BrokenPipeError):
            raise UsageError(
                f"--nw: a decoding process ended (status {self.process.wait()}) between {paths[0]} and {paths[-1]}; "
                "fewer of them need less memory"
            ) from None
        if kind != PIXELS:
            raise Unfit(**json.loads(content))
        return content

    def _receive(self, length: int) -> bytes:
        content = self._pipe(self.process.stdout).read(length)
        if len(content) < length:
            raise EOFError
        return content

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def kill(self) -> None:
        """End the process; a thread that waits for its reply gets EOF."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Close the pipes of an ended process, when no thread uses them."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()


def decode_files(
    paths: Sequence[Path], *, channels: int, width: int, height: int, image_size: int | None, workers: int
) -> Generator[tuple[int, bytes], None, None]:
    """Yield (number of images, pixels uint8 [number, channels, height, width]) for all `paths`, in order.

    The processes have ended when the generator ends, is closed or raises.

    Raises:
        Unfit: A file is corrupt, coloured although channels is 1, or of another size.
    """
    step = max(1, min(256, _CHUNK_BYTES // (channels * width * height)))
    chunks = (list(map(str, paths[start : start + step])) for start in range(0, len(paths), step))
    settings = {"channels": channels, "width": width, "height": height, "image_size": image_size}
    n_workers = max(1, min(workers, -(-len(paths) // step)))
    processes: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    pending: deque[tuple[int, Future[bytes]]] = deque()

    def decode(chunk: list[str]) -> bytes:
        worker = idle.get()
        try:
            return worker.decode(chunk)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(n_workers)
    try:
        for _ in range(n_workers):
            processes.append(_Worker(settings))
            idle.put(processes[-1])
        for chunk in chunks:
            pending.append((len(chunk), threads.submit(decode, chunk)))
            if len(pending) > 2 * n_workers:
                count, pixels = pending.popleft()
                yield count, pixels.result()
        while pending:
            count, pixels = pending.popleft()
            yield count, pixels.result()
    finally:
        for worker in processes:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in processes:
            worker.close()
