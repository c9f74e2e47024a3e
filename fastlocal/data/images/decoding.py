"""Many image files decoded by several processes, in order.

The processes are plain children behind pipes rather than multiprocessing's: they need no `__main__` guard in a user's
script, no shared memory (64 MB in a container), do not fork a process that has threads, and end with their parent even
where that is killed.
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

_BYTES_AT_ONCE = 4 << 20
_START = "import sys; sys.path[:] = sys.argv[1:]; from fastlocal.data.images.worker import main; main()"


class _Worker:
    """One decoding process."""

    def __init__(self, how: dict[str, int | None]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *(path or os.getcwd() for path in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is its parent's to handle
        )
        self._send(how)

    def _send(self, message: object) -> None:
        self._pipe(self.process.stdin).write(json.dumps(message).encode() + b"\n")
        self._pipe(self.process.stdin).flush()

    def decode(self, paths: Sequence[str]) -> bytes:
        """The pixels of `paths`; raises Unfit for the first that cannot be decoded as asked."""
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
        """Ends the process; a thread that waits for its answer sees the end of the pipe."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Closes the pipes of a process that has ended, once no thread uses them."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()


def decoded(
    paths: Sequence[Path], *, channels: int, width: int, height: int, image_size: int | None, workers: int
) -> Generator[tuple[int, bytes], None, None]:
    """Pairs (number of images, their pixels uint8 [number, channels, height, width]) that cover `paths` in order.

    Raises Unfit for the first file that is corrupt, coloured where channels is 1, or of another size. Its processes
    have ended when it ends, is closed or raises.
    """
    step = max(1, min(256, _BYTES_AT_ONCE // (channels * width * height)))
    chunks = (list(map(str, paths[start : start + step])) for start in range(0, len(paths), step))
    how = {"channels": channels, "width": width, "height": height, "image_size": image_size}
    n_workers = max(1, min(workers, -(-len(paths) // step)))
    crew: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    under_way: deque[tuple[int, Future[bytes]]] = deque()

    def decode(chunk: list[str]) -> bytes:
        worker = idle.get()
        try:
            return worker.decode(chunk)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(n_workers)
    try:
        for _ in range(n_workers):
            crew.append(_Worker(how))
            idle.put(crew[-1])
        for chunk in chunks:
            under_way.append((len(chunk), threads.submit(decode, chunk)))
            if len(under_way) > 2 * n_workers:
                count, pixels = under_way.popleft()
                yield count, pixels.result()
        while under_way:
            count, pixels = under_way.popleft()
            yield count, pixels.result()
    finally:
        for worker in crew:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()
