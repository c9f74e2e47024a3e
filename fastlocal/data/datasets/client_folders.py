"""A folder for each client, with class folders of images inside."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._class_folders import ImageFolder, list_images, split_folder
from fastlocal.data.datasets.image_folder import assemble
from fastlocal.data.partition.natural import natural
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read train/CLIENT/CLASS/** and test/CLASS/**, or CLIENT/train/CLASS/** and CLIENT/test/CLASS/**.

    Images are read as `image_folder` reads them. The classes are those of all clients; a client may lack some.

    Raises:
        UsageError: A folder or file does not fit; the message names the folder's flag.
    """
    root = None if request.data_pth is None else Path(request.data_pth).expanduser()
    if request.train_pth is None and root is not None and not (root / "train").is_dir():
        names = _clients(f"--data-pth {root}", root)
        train = _join(f"--data-pth {root}", root, [name / "train" for name in names], request.message)
        if request.val_pth is None:
            tests = [name / "test" for name in names if (name / "test").is_dir()]
            if not tests:
                raise UsageError(f"--data-pth {root}: no client has a folder test; give one test folder as --val-pth")
            test = _join(f"--data-pth {root}", root, tests, request.message)
        else:
            test = list_images(*split_folder(request, "--val-pth", request.val_pth, "test"), request.message)
    else:
        origin, folder = split_folder(request, "--train-pth", request.train_pth, "train")
        names = _clients(origin, folder)
        train = _join(origin, folder, names, request.message)
        test = list_images(*split_folder(request, "--val-pth", request.val_pth, "test"), request.message)
    owners = np.array([path.parts[len(names[0].parts) - 1] for path in train.files])
    return dataclasses.replace(assemble(request, train, test), natural=natural(owners, np.array(train.targets)))


def _clients(origin: str, folder: Path) -> list[Path]:
    """Return the folders of the clients, sorted by name."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path for path in entries if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UsageError(f"{origin}: has no folders of clients; {folder}/CLIENT/CLASS/ is expected")
    return found


def _join(origin: str, folder: Path, places: list[Path], message: Callable[[str], None]) -> ImageFolder:
    """List the images of several folders as one; labels count the classes of all."""
    listed = [list_images(f"{origin}: {place.relative_to(folder)}", place, message) for place in places]
    classes = sorted(set().union(*(each.classes for each in listed)))
    number = {name: label for label, name in enumerate(classes)}
    stamp = hashlib.sha256()
    for place, each in zip(places, listed, strict=True):
        stamp.update(f"{place.relative_to(folder)}\0".encode(errors="surrogateescape") + each.stamp)
    return ImageFolder(
        origin,
        folder,
        classes,
        [path for each in listed for path in each.files],
        [number[each.classes[label]] for each in listed for label in each.targets],
        stamp.digest(),
    )
