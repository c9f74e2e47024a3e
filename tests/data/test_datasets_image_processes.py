"""The processes that decode an image folder: stopped, killed, two at once; they leave no half-written array."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.images.decoding import decode_files
from fastlocal.data.types import DataSet

ROOT = Path(__file__).parents[2]
LOAD = "import sys; from fastlocal.data.datasets import load; load('image_folder', data_pth=sys.argv[1], message=print)"


def children(pid: int) -> list[int]:
    """Living child processes of all threads of `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def waiting_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether the process has ended; one that its new parent has not collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Enough images for some seconds of decoding; all are one file under many names."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    root = tmp_path / "slow"
    for half, n in (("train", 4000), ("test", 1)):
        (root / half / "a").mkdir(parents=True)
        for i in range(n):
            if half == "train" and i == 0:
                Image.fromarray(pixels).save(root / "train" / "a" / "0000.jpg")
            else:
                os.link(root / "train" / "a" / "0000.jpg", root / half / "a" / f"{i:04}.jpg")
    return root


@pytest.mark.parametrize(("stop", "interrupts"), [(signal.SIGKILL, 0), (signal.SIGINT, 1)])
def test_stopped_while_decoding(slow: Path, tmp_path: Path, stop: signal.Signals, interrupts: int) -> None:
    """Nothing of it is accepted, no process outlives it, and of Ctrl-C only the main process speaks."""
    cache = slow / ".fastlocal_cache"
    with open(tmp_path / "stderr", "wb") as stderr:
        command = [sys.executable, "-c", LOAD, str(slow)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, start_new_session=True)
    try:
        waiting_for(lambda: any(path.stat().st_size > 10_000_000 for path in cache.glob("*.partial")))
        workers = children(process.pid)
        assert len(workers) == 2
        os.killpg(process.pid, stop)  # a terminal signals the whole group
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
    waiting_for(lambda: all(map(gone, workers)))
    assert not list(cache.glob("*.npy")) and not list(cache.glob("*.json"))
    # a traceback may come with that of an error that was being handled, but each process ends on one such line
    assert (tmp_path / "stderr").read_text().splitlines().count("KeyboardInterrupt") == interrupts

    for path in sorted((slow / "train" / "a").iterdir())[5:]:
        path.unlink()
    data = load("image_folder", data_pth=str(slow))
    assert len(data.train) == 5 and torch.equal(data.train.inputs[4], data.test.inputs[0])
    assert not list(cache.glob("*.partial"))


def test_two_at_once_decode_once(slow: Path) -> None:
    for path in sorted((slow / "train" / "a").iterdir())[300:]:
        path.unlink()
    said: list[str] = []
    together = threading.Barrier(2)

    def start() -> DataSet:
        together.wait()
        return load("image_folder", data_pth=str(slow), message=said.append)

    # Locks belong to open files, so that two threads meet as two processes do.
    with ThreadPoolExecutor(2) as threads:
        one, other = (future.result() for future in [threads.submit(start), threads.submit(start)])
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert [line.split(" images")[0] for line in said] == [
        "another process is decoding these",
        "decoded 301",
    ]


def test_a_process_that_dies_is_reported(slow: Path) -> None:
    files = sorted((slow / "train" / "a").iterdir())
    others = set(children(os.getpid()))
    chunks = decode_files(files, channels=3, width=400, height=300, image_size=None, workers=2)
    next(chunks)
    os.kill(min(set(children(os.getpid())) - others), signal.SIGKILL)
    with pytest.raises(
        UsageError, match=r"^--nw: a decoding process ended \(status -9\) between .*; fewer of them need"
    ):
        for _ in chunks:
            pass
    assert set(children(os.getpid())) <= others


def test_an_error_leaves_no_cache_and_no_process(slow: Path) -> None:
    for path in sorted((slow / "train" / "a").iterdir())[5:]:
        path.unlink()
    (slow / "test" / "a" / "bad.png").write_bytes(b"no image")
    others = set(children(os.getpid()))
    with pytest.raises(UsageError, match="test/a/bad.png cannot be decoded"):
        load("image_folder", data_pth=str(slow))
    assert [path.name for path in (slow / ".fastlocal_cache").iterdir()] == ["lock"]
    assert set(children(os.getpid())) <= others
