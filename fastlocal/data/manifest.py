"""Manifests of prepared data: written beside the files, and compared with them before training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastlocal.common.errors import UsageError

_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Stamp:
    """Size in bytes, time of change, and checksum of a complete file."""

    bytes: int
    mtime_ns: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """One prepared split, stored as JSON in FILE.json beside its first file.

    Attributes:
        format: beton or array.
        files: {file name: its stamp}.
        count: Number of samples.
        classes: Number of labels.
        class_names: Names of the labels, or None.
        mean: Per channel in units of 1, of this split's images.
        std: Per channel in units of 1, of this split's images.
        shape: [channels, height, width] of every image, or None if sizes differ.
        source: Origin of the data.
        settings: Settings of the conversion.
        fastlocal: Version that made it.
    """

    format: str
    files: Mapping[str, Stamp]
    count: int
    classes: int
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int] | None
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    fastlocal: str

    def write(self, path: Path) -> None:
        """Write the manifest beside the data file `path`."""
        with replace_file(manifest_path(path)) as file:
            file.write((json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())


def manifest_path(path: Path) -> Path:
    """Return the path of a data file's manifest."""
    return path.with_name(path.name + ".json")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that is renamed to `path` when it is complete and on the disk.

    Unlike `write_atomically`, this uses one temporary name, PATH.partial: a process that is killed while it writes
    gigabytes of pixels leaves one file, which the next process overwrites.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def make_stamp(path: Path, crc32: int | None = None) -> Stamp:
    """Return the stamp of a file; without a checksum, read the file."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, _checksum(path) if crc32 is None else crc32)


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def check_manifest(flag: str, path: Path, format: str, *, verify_checksums: bool) -> Manifest | None:
    """Compare a data file with its manifest, and return the manifest; None without one.

    Sizes are always compared. A file with another time of change, as after copying, is read as a whole; if its checksum
    is right, the manifest takes the new time, if it can be written.

    Args:
        flag: The user's flag, for messages.
        path: The data file.
        format: beton or array.
        verify_checksums: Read all files and compare their checksums.

    Raises:
        UsageError: A file differs from the manifest.
    """
    stored = manifest_path(path)
    if not stored.exists():
        return None
    again = "prepare it again (fastlocal prepare --overwrite)"
    try:
        manifest = _parse(json.loads(stored.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{flag} {path}: its manifest {stored.name} cannot be read ({error}); {again}") from None
    if manifest.format != format or path.name not in manifest.files:
        raise UsageError(f"{flag} {path}: {stored.name} is the manifest of other data; {again}")
    found: dict[str, Stamp] = {}
    for name, expected in manifest.files.items():
        file = path.with_name(name)
        try:
            status = file.stat()
            if status.st_size != expected.bytes:
                sizes = f"has {status.st_size} bytes, {expected.bytes} expected"
                raise UsageError(f"{flag} {file}: does not match its manifest {stored.name} ({sizes}); {again}")
            unchanged = status.st_mtime_ns == expected.mtime_ns and not verify_checksums
            found[name] = expected if unchanged else make_stamp(file)
        except OSError as error:
            raise UsageError(f"{flag} {file}: is in the manifest {stored.name} ({error.strerror}); {again}") from None
        if found[name].crc32 != expected.crc32:
            raise UsageError(f"{flag} {file}: its content does not match its manifest {stored.name}; {again}")
    if found != manifest.files:
        manifest = dataclasses.replace(manifest, files=found)
        with contextlib.suppress(OSError):
            manifest.write(path)
    return manifest


def _parse(stored: Mapping[str, Any]) -> Manifest:
    names, shape = stored["class_names"], stored["shape"]
    return Manifest(
        format=str(stored["format"]),
        files={str(name): Stamp(**values) for name, values in stored["files"].items()},
        count=int(stored["count"]),
        classes=int(stored["classes"]),
        class_names=None if names is None else tuple(map(str, names)),
        mean=tuple(map(float, stored["mean"])),
        std=tuple(map(float, stored["std"])),
        shape=None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2])),
        source=dict(stored["source"]),
        settings=dict(stored["settings"]),
        fastlocal=str(stored["fastlocal"]),
    )
