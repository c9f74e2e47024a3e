"""Data sets by name, one file each, imported on demand.

A file NAME.py defines `read(request: DatasetSpec) -> DataSet`, with mean and std None if they are to be computed from
the training images. Files whose names begin with an underscore are helpers. This package imports no torch.
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

_SEVERAL_IN_ONE_FILE = {
    "cifar": ("cifar10", "cifar100"),
    "fedprox_synthetic": tuple(f"fedprox_synthetic_{kind}" for kind in ("iid", "0", "0.5", "1")),
}
_FILE_OF = {
    name: file.name
    for file in pkgutil.iter_modules(__path__)
    if not file.name.startswith("_")
    for name in _SEVERAL_IN_ONE_FILE.get(file.name, (file.name,))
}

NAMES: tuple[str, ...] = tuple(sorted(_FILE_OF))
"""Names that `load` accepts, sorted."""

SEEDED: tuple[str, ...] = ("synthetic", *_SEVERAL_IN_ONE_FILE["fedprox_synthetic"])
"""Data sets that are drawn from the seed."""

STORABLE = ("array", "beton", "client_folders", "image_folder")
"""Data sets whose images can stay on the disk."""

RESIZED = ("client_folders", "image_folder")
"""Data sets whose images --image-size resizes."""

DEFAULT_CONTEXT = 64

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetSpec:
    """Request for a data set; each data set reads the fields that concern it.

    Attributes:
        name: Name of the data set.
        data_pth: Folder or file of the whole data set; None: its default place.
        train_pth: Training folder or file, instead of that in data_pth (STORABLE only).
        val_pth: Test folder or file, instead of that in data_pth (STORABLE only).
        seed: Seed of synthetic images.
        workers: Processes that decode image files.
        image_size: Resize the shorter side to this many pixels and crop the centre square (RESIZED only), or None.
        message: Called with log lines.
        lazy: Leave images on the disk (STORABLE only), as those of a .beton always are.
        crop_size: Height and width in pixels of crops of stored images (STORABLE only), or None.
        verify_checksums: Compare the checksums of prepared files, whatever their times.
        skip_bad: Skip images that cannot be decoded when all are read beforehand.
        client_column: Column of a table that names each sample's client; None: "client", if there is one.
        label_column: Column of a table with the labels; None: "label".
        context: Length of an input of text.
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
    client_column: str | None = None
    label_column: str | None = None
    context: int = DEFAULT_CONTEXT


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
    client_column: str | None = None,
    label_column: str | None = None,
    context: int = DEFAULT_CONTEXT,
) -> DataSet:
    """Load a data set: inputs [n, channels, height, width], labels int64 [n], contiguous tensors on the CPU.

    Inputs are uint8 images, or float32 features, which are not normalized. Of text, both are tokens [n, context].

    The arguments are fields of DatasetSpec, except mean and std: per channel in units of 1; None: published values,
    else those of the training images. With a crop size, images stay on the disk and are normalized as ImageNet.

    Raises:
        UsageError: The name is unknown, files are missing or malformed, or mean and std do not fit.
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
        client_column=client_column,
        label_column=label_column,
        context=context,
    )
    data = read(request)

    from fastlocal.data import normalization
    from fastlocal.data.types import StoredSplit

    if isinstance(data.train, StoredSplit) and data.train.crop_size is not None and data.train.images.channels == 3:
        data = dataclasses.replace(data, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mean, std = normalization.resolve(data, mean, std, skip_bad=skip_bad)
    return dataclasses.replace(data, mean=mean, std=std)


def read(request: DatasetSpec) -> DataSet:
    """Read a data set as `load`, but mean and std may be None."""
    name, size = request.name, request.image_size
    if name not in _FILE_OF:
        raise UsageError(f"--dataset {name!r} is unknown{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise UsageError(f"--image-size takes a number of pixels above 0; got {size}")
    if size is not None and name not in RESIZED:
        request.message(f"--image-size {size} does nothing: it is for {RESIZED[1]}, and {name} keeps its own size")

    from fastlocal.data.decode import REMEDY
    from fastlocal.data.types import BadSample

    try:
        data: DataSet = importlib.import_module(f"{__name__}.{_FILE_OF[name]}").read(request)
    except BadSample as bad:
        raise UsageError(f"--dataset {name}: {bad}; {REMEDY}") from None
    return data
