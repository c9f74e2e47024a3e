"""What is written beside prepared data, and compared with it before it is trained on."""

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
    """A file as it was written: its size in bytes, its time of change, and its checksum."""

    bytes: int
    mtime_ns: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """One prepared half of a data set, kept as JSON in FILE.json beside its first file.

    format: beton or array        files: name -> what it was when it was complete
    count: samples        classes: number of labels        class_names: by label, where they have names
    mean, std: per channel in units of 1, of this half's images; std None where a channel never varies
    shape: [channels, height, width] of every image, None where they differ
    source: what it was made from, settings: and how        fastlocal: version that made it
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
        """Beside the data file `path`."""
        with replacing(manifest_of(path)) as file:
            file.write((json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())


def manifest_of(path: Path) -> Path:
    """Where the manifest of a data file lies."""
    return path.with_name(path.name + ".json")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets the name `path` when it is complete and on the disk.

    Unlike `write_atomically`, this uses one temporary name, PATH.partial. A process that is killed while it writes
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


def stamp(path: Path, crc32: int | None = None) -> Stamp:
    """That of a file as it is now; reads it where its checksum is not known."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, _checksum(path) if crc32 is None else crc32)


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def verified(flag: str, path: Path, format: str, *, whole: bool) -> Manifest | None:
    """The manifest of the data file `path`, or None where it has none.

    flag: names the file in messages        whole: read all files and compare their checksums
    Sizes are always compared. A file whose time of change is another one, as after copying, is read as a whole; where
    it is the same the manifest takes the new time, if it can be written.
    Raises UsageError where a file is not what the manifest says.
    """
    place = manifest_of(path)
    if not place.exists():
        return None
    again = "prepare it again (fastlocal prepare --overwrite)"
    try:
        manifest = _parse(json.loads(place.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{flag} {path}: its manifest {place.name} cannot be read ({error}); {again}") from None
    if manifest.format != format or path.name not in manifest.files:
        raise UsageError(f"{flag} {path}: {place.name} is the manifest of other data; {again}")
    found: dict[str, Stamp] = {}
    for name, noted in manifest.files.items():
        file = path.with_name(name)
        try:
            status = file.stat()
            if status.st_size != noted.bytes:
                differs = f"has {status.st_size} bytes, {noted.bytes} expected"
                raise UsageError(f"{flag} {file}: does not match its manifest {place.name} ({differs}); {again}")
            found[name] = noted if status.st_mtime_ns == noted.mtime_ns and not whole else stamp(file)
        except OSError as error:
            raise UsageError(f"{flag} {file}: is in the manifest {place.name} ({error.strerror}); {again}") from None
        if found[name].crc32 != noted.crc32:
            raise UsageError(f"{flag} {file}: its content does not match its manifest {place.name}; {again}")
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
