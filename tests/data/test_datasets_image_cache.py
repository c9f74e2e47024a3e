"""The cached array of an image folder: used again while it fits, made anew when not, never accepted half-written."""

from __future__ import annotations

import contextlib
import json
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

from fastlocal.data.datasets import load
from fastlocal.data.images.decoding import decoded
from fastlocal.data.types import DataSet
from fastlocal.errors import UsageError

ROOT = Path(__file__).parents[2]
LOAD = "import sys; from fastlocal.data.datasets import load; load('image_folder', data_pth=sys.argv[1], message=print)"


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 4, 3), level, dtype=np.uint8)
    pixels[0] = 255 - level
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for level, place in enumerate(("train/a/0", "train/a/1", "train/b/0", "test/a/0", "test/b/0")):
        save(tmp_path / "data" / f"{place}.png", level)
    return tmp_path / "data"


def levels(data: DataSet) -> list[int]:
    return torch.cat([data.train.inputs, data.test.inputs])[:, 0, -1, -1].tolist()


class Loader:
    """Loads, and tells whether that meant decoding."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, root: Path, image_size: int | None = None) -> tuple[list[int], bool]:
        self.said.clear()
        data = load("image_folder", data_pth=str(root), image_size=image_size, message=self.said.append)
        assert len(self.said) == 1
        return levels(data), self.said[0].startswith("decoded 5 images") or self.said[0].startswith("decoded 6 images")


@pytest.fixture
def start() -> Loader:
    return Loader()


def the_array(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_the_second_start_decodes_nothing(root: Path, start: Loader) -> None:
    assert start(root) == ([0, 1, 2, 3, 4], True)
    before = the_array(root / ".fastlocal_cache").stat()
    assert start(root) == ([0, 1, 2, 3, 4], False)
    assert start.said == [f"decoded images are read from {the_array(root / '.fastlocal_cache')}"]
    assert the_array(root / ".fastlocal_cache").stat() == before
    assert sorted(path.suffix for path in (root / ".fastlocal_cache").iterdir()) == ["", ".json", ".npy"]


def test_what_is_done_to_a_tensor_does_not_reach_the_cache(root: Path, start: Loader) -> None:
    for _ in range(2):
        load("image_folder", data_pth=str(root)).train.inputs.fill_(99)
    assert start(root) == ([0, 1, 2, 3, 4], False)


def change_pixels(root: Path) -> list[int]:
    path = root / "train" / "a" / "1.png"
    status = path.stat()
    save(path, 77)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return [0, 77, 2, 3, 4]


def add_file(root: Path) -> list[int]:
    save(root / "test" / "a" / "1.png", 66)
    return [0, 1, 2, 3, 66, 4]


def rename_file(root: Path) -> list[int]:
    (root / "train" / "a" / "0.png").rename(root / "train" / "a" / "2.png")
    return [1, 0, 2, 3, 4]


def swap_files(root: Path) -> list[int]:
    """Two files change places between the classes and keep their times."""
    a, b, spare = (root / "train" / name for name in ("a/1.png", "b/0.png", "a/spare"))
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    return [0, 2, 1, 3, 4]


@pytest.mark.parametrize("change", [change_pixels, add_file, rename_file, swap_files])
def test_a_stale_cache_is_made_anew(root: Path, start: Loader, change: Callable[[Path], list[int]]) -> None:
    start(root)
    expected = change(root)
    assert start(root) == (expected, True)
    assert start(root) == (expected, False)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", flip_byte),
        (".npy", truncate),
        (".npy", empty),
        (".npy", Path.unlink),
        (".json", truncate),
        (".json", lambda path: path.write_text("[1, 2]")),
        (".json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_made_anew(root: Path, start: Loader, suffix: str, damage: Callable[[Path], object]) -> None:
    start(root)
    damage(the_array(root / ".fastlocal_cache").with_suffix(suffix))
    assert start(root) == ([0, 1, 2, 3, 4], True)


def test_an_array_beside_another_ones_manifest_is_not_accepted(root: Path, start: Loader) -> None:
    """What a crash between the two renames leaves."""
    start(root)
    array = the_array(root / ".fastlocal_cache")
    np.save(array, 255 - np.load(array))
    assert start(root) == ([0, 1, 2, 3, 4], True)


def test_sizes_have_their_own_arrays(root: Path, start: Loader) -> None:
    assert start(root) == ([0, 1, 2, 3, 4], True)
    small, decoding = start(root, image_size=2)
    assert decoding
    assert start(root) == ([0, 1, 2, 3, 4], False)
    assert start(root, image_size=2) == (small, False)


def test_the_cache_moves_with_the_data(root: Path, start: Loader, tmp_path: Path) -> None:
    start(root)
    root.rename(tmp_path / "moved")
    assert start(tmp_path / "moved") == ([0, 1, 2, 3, 4], False)


def test_data_that_cannot_be_written_is_cached_for_the_user(root: Path, start: Loader, own_cache: Path) -> None:
    (root / ".fastlocal_cache").touch()
    assert start(root) == ([0, 1, 2, 3, 4], True)
    assert the_array(own_cache / "fastlocal").is_file()
    assert start(root) == ([0, 1, 2, 3, 4], False)


def test_nowhere_to_write_is_said(root: Path, own_cache: Path) -> None:
    (root / ".fastlocal_cache").touch()
    own_cache.touch()
    with pytest.raises(
        UsageError, match=f"^--data-pth {root}: train: .* set XDG_CACHE_HOME to a folder that can be written$"
    ):
        load("image_folder", data_pth=str(root))


def test_an_error_leaves_no_cache_and_no_process(root: Path) -> None:
    (root / "test" / "b" / "0.png").write_bytes(b"no image")
    others = set(children(os.getpid()))
    with pytest.raises(UsageError, match="test/b/0.png cannot be decoded"):
        load("image_folder", data_pth=str(root))
    assert [path.name for path in (root / ".fastlocal_cache").iterdir()] == ["lock"]
    assert set(children(os.getpid())) <= others


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
    chunks = decoded(files, channels=3, width=400, height=300, image_size=None, workers=2)
    next(chunks)
    os.kill(min(set(children(os.getpid())) - others), signal.SIGKILL)
    with pytest.raises(
        UsageError, match=r"^--nw: a decoding process ended \(status -9\) between .*; fewer of them need"
    ):
        for _ in chunks:
            pass
    assert set(children(os.getpid())) <= others


def test_the_manifest_says_what_the_array_is(root: Path, start: Loader) -> None:
    start(root)
    manifest = json.loads(the_array(root / ".fastlocal_cache").with_suffix(".json").read_text())
    assert manifest["shape"] == [5, 3, 4, 4] and set(manifest) == {"version", "fingerprint", "shape", "crc32"}
