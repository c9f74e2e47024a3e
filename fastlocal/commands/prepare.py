"""fastlocal prepare: convert a data set to files that training reads fast."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from .argv import normalise, refuse_unknown
from .parser import parse_flags

if TYPE_CHECKING:
    from ..data.datasets import DatasetSpec
    from ..data.types import DataSet


@dataclass(frozen=True)
class PrepareFlags:
    """Write a data set to --out as train.beton and val.beton, or train.npy and val.npy, each with a manifest.

    The same command continues after an interruption: an array at its place, a .beton file from its beginning. Complete
    files are kept.
    """

    out: Path
    """folder to write to; it is created"""
    dataset: str = "image_folder"
    """digits, cifar10, cifar100, fashion_mnist, image_folder, npz or synthetic"""
    data_pth: str | None = None
    """folder or file that holds the data set"""
    train_pth: str | None = None
    """training folder of images, if it is not below --data-pth"""
    val_pth: str | None = None
    """test folder of images, if it is not below --data-pth"""
    format: Literal["beton", "array"] = "beton"
    """beton: FFCV's format, of images of any size; array: one mapped array of images of one size"""
    image_size: int | None = None
    """bring image files to squares: the shorter side resized to this many pixels, then the centre cut out"""
    write_mode: Literal["raw", "jpg", "proportion", "smart"] = "raw"
    """of .beton: raw pixels, JPEG, JPEG for --jpeg-share of the images, or (smart) for those above --smart-threshold"""
    max_resolution: int | None = None
    """of .beton: longest side in pixels, longer ones are scaled down to it; None: original size"""
    quality: int = 90
    """of .beton: JPEG quality, 1 to 100"""
    jpeg_share: float = 0.5
    """of .beton --write-mode proportion: share of the images stored as JPEG, 0 to 1"""
    smart_threshold: int | None = None
    """of .beton --write-mode smart: bytes of raw pixels above which an image is stored as JPEG"""
    workers: int | None = None
    """processes that decode and write; None: one per core"""
    overwrite: bool = False
    """replace files of other data or settings"""


def run(argv: Sequence[str]) -> int:
    """Convert both splits and print the names of the files."""
    words = normalise(argv)
    refuse_unknown(words, (spec.name for spec in dataclasses.fields(PrepareFlags)), "fastlocal prepare")
    flags = parse_flags(PrepareFlags, "fastlocal prepare", words, config=(tyro.conf.FlagConversionOff,))
    _check(flags)

    with defer_signals():
        import torch

        from ..data import datasets
        from ..data.labels import refuse_empty_classes
        from ..data.preparing.beton import BetonSettings
        from ..data.preparing.run import Conversion, convert_dataset
        from ..data.types import Split
        from ..kernels.cores import machine_cores

    start = time.perf_counter()
    workers = flags.workers or machine_cores()
    paths = {name: getattr(flags, name) for name in ("data_pth", "train_pth", "val_pth")}
    try:
        request = datasets.DatasetSpec(
            name=flags.dataset,
            **paths,
            seed=0,
            workers=workers,
            image_size=flags.image_size,
            message=_say,
            lazy=True,
        )
        data = _read(request)
        if isinstance(data.train, Split) and (data.tokens or data.train.inputs.dtype != torch.uint8):
            kind = "text" if data.tokens else "features"
            raise UsageError(f"--dataset {flags.dataset}: holds {kind}, not images; training reads it as it is")
        refuse_empty_classes(data, data_pth=flags.data_pth, train_pth=flags.train_pth)
        beton = BetonSettings(
            flags.write_mode, flags.max_resolution, flags.quality, flags.jpeg_share, flags.smart_threshold
        )
        conversion = Conversion(
            out=flags.out.expanduser(),
            format=flags.format,
            beton=beton if flags.format == "beton" else None,
            image_size=flags.image_size,
            workers=workers,
            overwrite=flags.overwrite,
            source={"dataset": flags.dataset}
            | {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items() if path is not None},
            message=_say,
        )
        files = convert_dataset(data, conversion)
    except PermissionError as error:
        raise UsageError(f"--out {flags.out}: cannot be written or read ({error})") from None
    print(f"{len(data.train)} training and {len(data.test)} test images in {time.perf_counter() - start:.1f} s")
    print(f"fastlocal train --dataset {flags.format} --train-pth {files[0]} --val-pth {files[1]}")
    return 0


def _read(request: DatasetSpec) -> DataSet:
    from ..data import datasets

    try:
        return datasets.read(request)
    except OSError as error:
        raise UsageError(f"--dataset {request.name}: cannot be read ({error})") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _check(flags: PrepareFlags) -> None:
    for flag, value, highest in (
        ("--image-size", flags.image_size, 65_535),
        ("--max-resolution", flags.max_resolution, 65_535),
        ("--quality", flags.quality, 100),
        ("--workers", flags.workers, 1024),
    ):
        if value is not None and not 1 <= value <= highest:
            raise UsageError(f"{flag} {value}: must be from 1 to {highest}")
    if flags.smart_threshold is not None and flags.smart_threshold < 0:
        raise UsageError(f"--smart-threshold {flags.smart_threshold}: must be a number of bytes from 0 on")
    if not 0 <= flags.jpeg_share <= 1:
        raise UsageError(f"--jpeg-share {flags.jpeg_share}: must be a share from 0 to 1")
    defaults = {spec.name: spec.default for spec in dataclasses.fields(flags)}
    if flags.format == "array":
        for name in ("write_mode", "max_resolution", "quality", "jpeg_share", "smart_threshold"):
            if getattr(flags, name) != defaults[name]:
                raise UsageError(f"--{name.replace('_', '-')}: is for --format beton; an array holds raw pixels")
    if flags.write_mode == "raw" and flags.quality != defaults["quality"]:
        raise UsageError("--quality: means nothing with --write-mode raw; use --write-mode jpg, proportion or smart")
    if flags.write_mode != "proportion" and flags.jpeg_share != defaults["jpeg_share"]:
        raise UsageError(f"--jpeg-share: means nothing with --write-mode {flags.write_mode}; use proportion")
    if flags.write_mode == "smart" and flags.smart_threshold is None:
        raise UsageError("--write-mode smart: give --smart-threshold, the bytes above which images become JPEGs")
    if flags.write_mode != "smart" and flags.smart_threshold is not None:
        raise UsageError(f"--smart-threshold: means nothing with --write-mode {flags.write_mode}; use smart")
