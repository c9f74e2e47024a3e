"""Cache of decoded images on disk: one array, and a manifest of its source files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlocal.data.manifest import replace_file

_VERSION = 1
_READ_BYTES = 16 << 20

Images = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class CacheEntry:
    """Decoded images of one pair of folders.

    Attributes:
        folder: Cache folder.
        name: File name without suffix.
        fingerprint: Hash of the source files' names, sizes and times; another one makes the array stale.
    """

    folder: Path
    name: str
    fingerprint: str

    @property
    def array(self) -> Path:
        return self.folder / f"{self.name}.npy"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.name}.json"

    def load(self) -> Images | None:
        """Return the images [n, channels, height, width], or None if they are absent, stale or damaged."""
        try:
            manifest = json.loads(self.manifest.read_text())
            if (manifest["version"], manifest["fingerprint"]) != (_VERSION, self.fingerprint):
                return None
            images = self._map()
            if list(images.shape) != manifest["shape"] or images.dtype != np.uint8:
                return None
            return images if _checksum(images) == manifest["crc32"] else None
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _map(self) -> Images:
        """Map the array: it may exceed the memory, and processes of one machine share its pages.

        Copy-on-write, so that a tensor made from it is writable and the file never changes.
        """
        images: Images = np.load(self.array, mmap_mode="c", allow_pickle=False)
        return images

    def store(self, shape: tuple[int, ...], blocks: Iterable[bytes]) -> Images:
        """Write the array block by block, then its manifest, each atomically.

        The manifest comes last and holds the array's checksum: after an interruption the old manifest does not fit.

        Args:
            shape: [n, channels, height, width] of all blocks together.
            blocks: Pixels.
        """
        crc = 0
        with replace_file(self.array) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                crc = zlib.crc32(block, crc)
                file.write(block)
        manifest = {"version": _VERSION, "fingerprint": self.fingerprint, "shape": list(shape), "crc32": crc}
        with replace_file(self.manifest) as file:
            file.write((json.dumps(manifest, indent=2) + "\n").encode())
        return self._map()

    @contextlib.contextmanager
    def hold_lock(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Lock the folder, which is created, for one writer among all processes; without file locks, do nothing.

        Args:
            on_wait: Called if another writer holds the lock.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass
            yield


def _checksum(images: Images) -> int:
    flat = images.reshape(-1).data
    crc = 0
    for start in range(0, len(flat), _READ_BYTES):
        crc = zlib.crc32(flat[start : start + _READ_BYTES], crc)
    return crc
