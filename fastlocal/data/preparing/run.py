"""Convert a data set to files for training."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastlocal.common.errors import UsageError
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.manifest import check_manifest
from fastlocal.data.preparing.array import write_array
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, write_beton
from fastlocal.data.preparing.split_to_write import SplitToWrite
from fastlocal.data.progress_bar import progress_bar
from fastlocal.data.types import AnySplit, DataSet, MapSplit, Split

Format = Literal["beton", "array"]
SUFFIX: dict[Format, str] = {"beton": ".beton", "array": ".npy"}


@dataclass(frozen=True)
class Conversion:
    """Settings of a conversion.

    Attributes:
        out: Folder of the files.
        format: beton or array.
        beton: Storage of images in a .beton file; None for arrays.
        image_size: Side of the squares that image files were cut to, or None.
        workers: Processes that decode.
        overwrite: Replace files of other data or settings.
        source: Request for the data set, for the manifest.
        message: Called with log lines.
    """

    out: Path
    format: Format
    beton: BetonSettings | None
    image_size: int | None
    workers: int
    overwrite: bool
    source: dict[str, Any]
    message: Callable[[str], None]


def convert_dataset(data: DataSet, conversion: Conversion) -> list[Path]:
    """Write the splits of `data` that are not written yet; return the training and the test file.

    Args:
        data: The data set; image files are listed, not decoded.
        conversion: The settings.

    Raises:
        UsageError: Files of other data are in the way, another process writes there, or an image does not fit.
    """
    named = (("train", data.train), ("val", data.test))
    splits = [_split_to_write(data, name, split, conversion) for name, split in named]
    with _lock(conversion.out):
        existing = [_existing_file(split, conversion) for split in splits]
        with FfcvWriter(conversion.workers) as writer:
            pairs = zip(splits, existing, strict=True)
            return [path if path is not None else _write(split, conversion, writer) for split, path in pairs]


def _split_to_write(data: DataSet, name: str, split: AnySplit, conversion: Conversion) -> SplitToWrite:
    assert data.classes is not None and not isinstance(split, MapSplit), "named data sets have labels"
    images = ArrayImages(split.inputs) if isinstance(split, Split) else split.images
    if isinstance(images, FileImages) and conversion.format == "beton":
        images = dataclasses.replace(images, expected=None)
    settings: dict[str, Any] = {"image_size": conversion.image_size}
    if conversion.beton is not None:
        own = dataclasses.asdict(conversion.beton)
        settings |= {name: value for name, value in own.items() if name != "smart_threshold" or value is not None}
    return SplitToWrite(name, images, split.targets, data.classes, data.class_names, conversion.source, settings)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Create the folder, and lock it for one writing process; the lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"--out {folder}: is no folder that can be written ({error.strerror})") from None
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"--out {folder}: another process is preparing data there; wait for it") from None
        yield
    finally:
        os.close(descriptor)


def _existing_file(split: SplitToWrite, conversion: Conversion) -> Path | None:
    """Return the file of an earlier conversion of the same samples with the same settings, or None."""
    path = conversion.out / f"{split.name}{SUFFIX[conversion.format]}"
    if conversion.overwrite or not path.exists():
        return None
    with contextlib.suppress(UsageError):
        manifest = check_manifest("--out", path, conversion.format, verify_checksums=False)
        if manifest is not None and manifest.settings.get("fingerprint") == split.fingerprint:
            conversion.message(f"{path} is there already")
            return path
    raise UsageError(f"--out {conversion.out}: holds a {path.name} of other data or settings; --overwrite replaces it")


def _write(split: SplitToWrite, conversion: Conversion, writer: FfcvWriter) -> Path:
    if conversion.beton is not None:
        with progress_bar(f"writing {split.name}.beton", len(split)) as advance:
            return write_beton(split, conversion.out, conversion.beton, writer, advance)
    with contextlib.ExitStack() as stack:
        advances: list[Callable[[int], None]] = []

        def progress(count: int, done: int) -> None:
            if not advances:
                if done:
                    conversion.message(f"going on after {done} images of {split.name}.npy")
                advances.append(stack.enter_context(progress_bar(f"writing {split.name}.npy", len(split), done)))
            advances[0](count)

        return write_array(split, conversion.out, conversion.workers, progress)
