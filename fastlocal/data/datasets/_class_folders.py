"""List the image files of class folders: CLASS/**."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.images.listing import SUFFIXES, IgnoredFiles, image_files

OWN_CACHE = ".fastlocal_cache"
"""Folder of decoded images beside the data."""


@dataclass(frozen=True)
class ImageFolder:
    """Files of the training or test folder, sorted by class, sub-folder and name.

    Attributes:
        origin: Flag and folder, for messages.
        folder: The folder.
        classes: Names of the class folders, sorted.
        files: The image files.
        targets: Label of each file.
        stamp: Hash of every file's name, size and time.
    """

    origin: str
    folder: Path
    classes: list[str]
    files: list[Path]
    targets: list[int]
    stamp: bytes


def split_folder(request: DatasetSpec, flag: str, path: str | None, name: str) -> tuple[str, Path]:
    """Return the origin for messages, and the folder of one split: from its own flag, else in --data-pth."""
    if path is not None:
        folder = Path(path).expanduser()
        return f"{flag} {folder}", folder
    if request.data_pth is None:
        raise UsageError(
            f"--data-pth is needed with --dataset {request.name}: the folder with {name}/CLASS/*, or {flag}"
        )
    root = Path(request.data_pth).expanduser()
    return f"--data-pth {root}: {name}", root / name


def list_images(origin: str, folder: Path, message: Callable[[str], None]) -> ImageFolder:
    """List the image files below every class folder, and report ignored files."""
    if not folder.is_dir():
        raise UsageError(f"{origin} is not a folder; images are expected in {folder}/CLASS/")
    ignored = IgnoredFiles()
    classes = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            if entry.name != OWN_CACHE:
                ignored.hidden.append(entry.name)
        elif entry.is_dir():
            classes.append(entry.name)
        elif entry.name.lower().endswith(SUFFIXES):
            ignored.outside += 1
    if not classes:
        raise UsageError(f"{origin} has no class folders; images are expected in {folder}/CLASS/")
    files: list[Path] = []
    targets: list[int] = []
    stamp = hashlib.sha256()
    for label, name in enumerate(sorted(classes)):
        try:
            images = image_files(folder / name, ignored)
            above = len(str(folder / name))
            for path in images:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "it is no file", str(path))
                place = name + str(path)[above:]
                stamp.update(os.fsencode(f"{place}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        except OSError as error:
            raise UsageError(
                f"{origin}: {error.filename} cannot be read ({error.strerror}); mend or remove it"
            ) from None
        if not images:
            raise UsageError(f"{origin}/{name} holds no images; at least one is needed, as {' '.join(SUFFIXES)}")
        files += images
        targets += [label] * len(images)
    for line in ignored.lines():
        message(f"{origin}: {line}")
    return ImageFolder(origin, folder, sorted(classes), files, targets, stamp.digest())
