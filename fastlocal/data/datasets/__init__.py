"""Data sets by name: each is one file of this folder, imported when it is asked for.

A file NAME.py offers `read(request: Request) -> DataSet`, with None for a mean and std that are to be computed from
the training images. Files whose names begin with an underscore are helpers. Importing this package imports no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastlocal.common.errors import UsageError, nearest

if TYPE_CHECKING:
    from fastlocal.data.types import DataSet

_SEVERAL_IN_ONE_FILE = {"cifar": ("cifar10", "cifar100")}
_FILE_OF = {
    name: file.name
    for file in pkgutil.iter_modules(__path__)
    if not file.name.startswith("_")
    for name in _SEVERAL_IN_ONE_FILE.get(file.name, (file.name,))
}

NAMES: tuple[str, ...] = tuple(sorted(_FILE_OF))
"""What `load` knows, sorted."""

STORABLE = ("array", "beton", "image_folder")
"""Data sets whose images can stay where they are stored."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetSpec:
    """What a data set is asked for with; each reads the fields that mean something to it.

    data_pth, train_pth, val_pth: folder or file of the whole, of the training half, of the test half
    workers: processes that decode image files
    image_size: height and width to bring image files to, in pixels; None keeps theirs
    message: takes one line for a person
    lazy: leave images where they are stored        crop_size: that of the crops that are cut from them, or None
    whole: compare the checksums of prepared files with their manifests, whatever their times
    skip_bad: pass over stored images that cannot be decoded, where all are looked at beforehand
    """

    name: str
    data_pth: str | None
    train_pth: str | None
    val_pth: str | None
    seed: int
    workers: int
    image_size: int | None
    message: Callable[[str], None]
    lazy: bool = False
    crop_size: int | None = None
    verify_checksums: bool = False
    skip_bad: bool = False


def load(
    name: str,
    *,
    data_pth: str | None,
    train_pth: str | None = None,
    val_pth: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: int = 0,
    workers: int = 2,
    image_size: int | None = None,
    message: Callable[[str], None] | None = None,
    lazy: bool = False,
    crop_size: int | None = None,
    verify_checksums: bool = False,
    skip_bad: bool = False,
) -> DataSet:
    """The data set `name`: images uint8 [n, channels, height, width], labels int64 [n], contiguous tensors on the CPU.

    data_pth: folder or file that holds it; None: where the data set is looked for by default
    train_pth, val_pth: STORABLE only: training and test folder or file, instead of those in data_pth
    mean, std: one value per channel, in units of 1; None: the published ones, else those of the training images
    seed: synthetic only: what the images are drawn from
    workers: image_folder only: processes that decode
    image_size: image_folder only: resize the shorter side to this many pixels and crop the centre square
    message: called with one line for a person, where there is something to say
    lazy: STORABLE only: leave the images where they are stored, for a source to read them one by one, as those of a
        .beton always are
    crop_size: STORABLE only: height and width in pixels of crops that are cut from images that stay stored, and
        normalised as ImageNet is
    verify_checksums: STORABLE only: compare the checksums of prepared files, whatever their times of change
    skip_bad: STORABLE only: pass over images that cannot be decoded as mean and std are computed

    Raises UsageError where the name is unknown, files are missing or malformed, or mean and std do not fit.
    """
    request = DatasetSpec(
        name=name,
        data_pth=data_pth,
        train_pth=train_pth,
        val_pth=val_pth,
        seed=seed,
        workers=workers,
        image_size=image_size if crop_size is None else None,
        message=message or (lambda text: None),
        lazy=lazy or crop_size is not None,
        crop_size=crop_size,
        verify_checksums=verify_checksums,
        skip_bad=skip_bad,
    )
    data = read(request)

    from fastlocal.data import normalization
    from fastlocal.data.types import StoredSplit

    if isinstance(data.train, StoredSplit) and data.train.crop_size is not None and data.train.images.channels == 3:
        data = dataclasses.replace(data, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mean, std = normalization.resolve(data, mean, std, skip_bad=skip_bad)
    return dataclasses.replace(data, mean=mean, std=std)


def read(request: DatasetSpec) -> DataSet:
    """The same as its own file reads it, whose mean and std may be None. Raises UsageError as `load` does."""
    name, size = request.name, request.image_size
    if name not in _FILE_OF:
        raise UsageError(f"--dataset {name!r} is unknown{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise UsageError(f"--image-size takes a number of pixels above 0; got {size}")
    if size is not None and name != "image_folder":
        request.message(f"--image-size {size} does nothing: it is for image_folder, and {name} keeps its own size")

    from fastlocal.data.decode import REMEDY
    from fastlocal.data.types import BadSample

    try:
        data: DataSet = importlib.import_module(f"{__name__}.{_FILE_OF[name]}").read(request)
    except BadSample as bad:
        raise UsageError(f"--dataset {name}: {bad}; {REMEDY}") from None
    return data
