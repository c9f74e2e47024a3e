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

from fastlocal.errors import UsageError, nearest

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


@dataclass(frozen=True)
class Request:
    """What a data set is asked for with; each reads the fields that mean something to it.

    data_pth, train_pth, val_pth: folder or file of the whole, of the training half, of the test half
    workers: processes that decode image files
    image_size: height and width to bring image files to, in pixels; None keeps theirs
    message: takes one line for a person
    """

    name: str
    data_pth: str | None
    train_pth: str | None
    val_pth: str | None
    seed: int
    workers: int
    image_size: int | None
    message: Callable[[str], None]


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
) -> DataSet:
    """The data set `name`: images uint8 [n, channels, height, width], labels int64 [n], contiguous tensors on the CPU.

    data_pth: folder or file that holds it; None: where the data set is looked for by default
    train_pth, val_pth: image_folder only: training and test folder, instead of train/ and test/ in data_pth
    mean, std: one value per channel, in units of 1; None: the published ones, else those of the training images
    seed: synthetic only: what the images are drawn from
    workers: image_folder only: processes that decode
    image_size: image_folder only: resize the shorter side to this many pixels and crop the centre square
    message: called with one line for a person, where there is something to say

    Raises UsageError where the name is unknown, files are missing or malformed, or mean and std do not fit.
    """
    if name not in _FILE_OF:
        raise UsageError(f"--dataset {name!r} is unknown{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    if image_size is not None and image_size < 1:
        raise UsageError(f"--image-size takes a number of pixels above 0; got {image_size}")
    say = message or (lambda text: None)
    request = Request(name, data_pth, train_pth, val_pth, seed, workers, image_size, say)
    if image_size is not None and name != "image_folder":
        say(f"--image-size {image_size} does nothing: it is for image_folder, and {name} keeps its own size")
    data: DataSet = importlib.import_module(f"{__name__}.{_FILE_OF[name]}").read(request)

    from fastlocal.data.datasets import _channels

    mean, std = _channels.resolve(data, mean, std)
    return dataclasses.replace(data, mean=mean, std=std)
