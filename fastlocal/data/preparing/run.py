"""A data set, as its own reader has it, to files for training."""

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
from fastlocal.data.manifest import verified
from fastlocal.data.preparing.array import write_array
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, write_beton
from fastlocal.data.preparing.half import SplitToWrite
from fastlocal.data.progress_bar import progress_bar
from fastlocal.data.types import AnySplit, DataSet, MapSplit, Split

Format = Literal["beton", "array"]
SUFFIX: dict[Format, str] = {"beton": ".beton", "array": ".npy"}


@dataclass(frozen=True)
class Preparing:
    """Where and how to write.

    out: folder of the files        beton: None for arrays        image_size: squares that image files were cut to
    source: what the data set was asked for with        message: takes one line for a person
    """

    out: Path
    format: Format
    beton: BetonSettings | None
    image_size: int | None
    workers: int
    overwrite: bool
    source: dict[str, Any]
    message: Callable[[str], None]


def convert_dataset(data: DataSet, how: Preparing) -> list[Path]:
    """Writes both halves of `data` that are not there already; returns the training and the test file.

    data: image files listed, not decoded
    Raises UsageError where files of other data are in the way, another process writes there, or an image does not fit.
    """
    halves = [_half(data, name, split, how) for name, split in (("train", data.train), ("val", data.test))]
    with _locked(how.out):
        there = [_is_there(half, how) for half in halves]
        with FfcvWriter(how.workers) as writer:
            pairs = zip(halves, there, strict=True)
            return [path if path is not None else _write(half, how, writer) for half, path in pairs]


def _half(data: DataSet, name: str, split: AnySplit, how: Preparing) -> SplitToWrite:
    assert data.classes is not None and not isinstance(split, MapSplit), "named data sets have labels"
    images = ArrayImages(split.inputs) if isinstance(split, Split) else split.images
    if isinstance(images, FileImages) and how.format == "beton":
        images = dataclasses.replace(images, expected=None)
    settings: dict[str, Any] = {"image_size": how.image_size}
    if how.beton is not None:
        own = dataclasses.asdict(how.beton)
        settings |= {name: value for name, value in own.items() if name != "smart_threshold" or value is not None}
    return SplitToWrite(name, images, split.targets, data.classes, data.class_names, how.source, settings)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time writes into the folder, which is made; a killed one holds nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"--out {folder}: is no folder that can be written ({error.strerror})") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks does without
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"--out {folder}: another process is preparing data there; wait for it") from None
        yield
    finally:
        os.close(descriptor)


def _is_there(half: SplitToWrite, how: Preparing) -> Path | None:
    """The file of a half that was prepared before from the same samples in the same way."""
    path = how.out / f"{half.name}{SUFFIX[how.format]}"
    if how.overwrite or not path.exists():
        return None
    with contextlib.suppress(UsageError):
        manifest = verified("--out", path, how.format, whole=False)
        if manifest is not None and manifest.settings.get("fingerprint") == half.fingerprint:
            how.message(f"{path} is there already")
            return path
    raise UsageError(f"--out {how.out}: holds a {path.name} of other data or settings; --overwrite replaces it")


def _write(half: SplitToWrite, how: Preparing, writer: FfcvWriter) -> Path:
    if how.beton is not None:
        with progress_bar(f"writing {half.name}.beton", len(half)) as advance:
            return write_beton(half, how.out, how.beton, writer, advance)
    with contextlib.ExitStack() as stack:
        advances: list[Callable[[int], None]] = []

        def progress(count: int, done: int) -> None:
            if not advances:
                if done:
                    how.message(f"going on after {done} images of {half.name}.npy")
                advances.append(stack.enter_context(progress_bar(f"writing {half.name}.npy", len(half), done)))
            advances[0](count)

        return write_array(half, how.out, how.workers, progress)
