"""Decoded images on disk: one array, and beside it a manifest that says which files it was made from."""

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

from fastlocal.data.manifest import replacing

_VERSION = 1
_READ_BYTES = 16 << 20

Images = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class CacheEntry:
    """Where the decoded images of one pair of folders lie in a cache folder.

    fingerprint: of the list of files with their sizes and times; another one makes the array stale
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
        """The images [n, channels, height, width], or None where there are none, or stale or damaged ones."""
        try:
            manifest = json.loads(self.manifest.read_text())
            if (manifest["version"], manifest["fingerprint"]) != (_VERSION, self.fingerprint):
                return None
            images = self._mapped()
            if list(images.shape) != manifest["shape"] or images.dtype != np.uint8:
                return None
            return images if _checksum(images) == manifest["crc32"] else None
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _mapped(self) -> Images:
        """The array, paged in as it is used: larger than the memory, and shared by the processes of one machine.

        Copy-on-write, so that a tensor made from it is writable and the file never changes.
        """
        images: Images = np.load(self.array, mmap_mode="c", allow_pickle=False)
        return images

    def store(self, shape: tuple[int, ...], pieces: Iterable[bytes]) -> Images:
        """Writes the array piece by piece, then its manifest; each appears under its name only when it is whole.

        shape: [n, channels, height, width] of all pieces together
        The manifest comes last and carries the array's checksum: stopped in between, the old manifest does not fit.
        """
        crc = 0
        with replacing(self.array) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                crc = zlib.crc32(piece, crc)
                file.write(piece)
        manifest = {"version": _VERSION, "fingerprint": self.fingerprint, "shape": list(shape), "crc32": crc}
        with replacing(self.manifest) as file:
            file.write((json.dumps(manifest, indent=2) + "\n").encode())
        return self._mapped()

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """One writer at a time, among all processes; `on_wait` is called where another one is at work.

        Makes the folder. Raises OSError where it cannot be written. A file system without locks does without.
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
