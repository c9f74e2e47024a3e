"""Folders of image files, train/CLASS/** and test/CLASS/**: decoded once, then read from a cached array."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._class_folders import OWN_CACHE, ImageFolder, list_images, split_folder
from fastlocal.data.datasets._image_cache import CacheEntry, Images
from fastlocal.data.decode import REMEDY
from fastlocal.data.images.decoding import decode_files
from fastlocal.data.images.files import FileImages, read_header
from fastlocal.data.images.worker import GREY_MODES, Unfit, decode
from fastlocal.data.progress_bar import progress_bar
from fastlocal.data.types import BadSample, DataSet, Split, StoredSplit


def read(request: DatasetSpec) -> DataSet:
    """Read images of one size, grey if every file is, else RGB; labels by sorted name of the class folder.

    The decoded array is cached in `data_pth`/.fastlocal_cache or, if that cannot be written, in the user's cache
    folder; it is rebuilt if a file is added, removed or changed. Only image_size turns images into squares of one size.
    With `lazy` the files are only listed.

    Raises:
        UsageError: A folder or file does not fit; the message names the folder's flag.
    """
    train = list_images(*split_folder(request, "--train-pth", request.train_pth, "train"), request.message)
    test = list_images(*split_folder(request, "--val-pth", request.val_pth, "test"), request.message)
    return assemble(request, train, test)


def assemble(request: DatasetSpec, train: ImageFolder, test: ImageFolder) -> DataSet:
    """Make the data set of two listed folders; decode and cache the images unless the request is lazy."""
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        here, there = (train, test) if odd[0] in train.classes else (test, train)
        raise UsageError(f"{there.origin} has no class folder {odd[0]!r}, but {here.folder} has; both need the same")

    targets = [torch.tensor(folder.targets, dtype=torch.int64) for folder in (train, test)]
    splits: list[Split | StoredSplit]
    if request.lazy:
        splits = _stored_splits(request, (train, test), targets)
    else:
        images = torch.from_numpy(_images(request, train, test)).tensor_split([len(train.files)])
        splits = [Split(*pair, mapped=True) for pair in zip(images, targets, strict=True)]
    return DataSet(
        name=request.name,
        train=splits[0],
        test=splits[1],
        classes=len(train.classes),
        mean=None,
        std=None,
        class_names=tuple(train.classes),
    )


def _stored_splits(
    request: DatasetSpec, folders: Sequence[ImageFolder], targets: Sequence[Tensor]
) -> list[Split | StoredSplit]:
    """Make splits of the listed files; without a crop size all images must have one size."""
    files = [folder.files for folder in folders]
    if request.crop_size is not None:
        images = [FileImages(paths, channels=3) for paths in files]
    else:
        headers = list(_headers(chain(*files), request.skip_bad)) or [read_header(files[0][0])]
        grey = all(mode in GREY_MODES for mode, _ in headers)
        expected = None if request.image_size else headers[0][1]
        images = [FileImages(paths, 1 if grey else 3, request.image_size, expected) for paths in files]
    return [StoredSplit(each, labels, request.crop_size) for each, labels in zip(images, targets, strict=True)]


def _headers(paths: Iterable[Path], skip_bad: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield mode and (height, width) of each file."""
    for path in paths:
        try:
            yield read_header(path)
        except BadSample:
            if not skip_bad:
                raise


def _images(request: DatasetSpec, train: ImageFolder, test: ImageFolder) -> Images:
    """Return all images [training + test, channels, height, width], from a cache or decoded into one."""
    entries = _cache_entries(request, train, test)
    for entry in entries:
        images = entry.load()
        if images is not None:
            request.message(f"decoded images are read from {entry.array}")
            return images
    for entry in entries:
        try:
            with entry.hold_lock(lambda: request.message("another process is decoding these images; waiting for it")):
                images = entry.load()
                return _decode_into(entry, request, train, test) if images is None else images
        except OSError as error:
            failure = error
    raise UsageError(
        f"{train.origin}: decoded images can be kept neither in {' nor in '.join(str(e.folder) for e in entries)} "
        f"({failure}); set XDG_CACHE_HOME to a folder that can be written"
    )


def _cache_entries(request: DatasetSpec, train: ImageFolder, test: ImageFolder) -> list[CacheEntry]:
    """Return the possible cache entries, best first; names hash folders and size, the fingerprint the files."""
    fingerprint = hashlib.sha256(train.stamp + test.stamp + str(request.image_size).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    bases: list[tuple[Path, str]] = [(home / "fastlocal", "/")]
    if request.data_pth is not None and Path(request.data_pth).expanduser().is_dir():
        root = Path(request.data_pth).expanduser()
        # named relative to the data, so that moved data find their array again
        bases.insert(0, (root / OWN_CACHE, os.path.abspath(root)))
    entries = []
    for folder, base in bases:
        places = [os.path.relpath(os.path.abspath(each.folder), base) for each in (train, test)]
        identity = hashlib.sha256("\0".join([*places, str(request.image_size)]).encode(errors="surrogateescape"))
        entries.append(CacheEntry(folder, f"images-{identity.hexdigest()[:12]}", fingerprint))
    return entries


def _decode_into(entry: CacheEntry, request: DatasetSpec, train: ImageFolder, test: ImageFolder) -> Images:
    """Decode all files: as grey until the first coloured file, then all as RGB."""
    files = train.files + test.files
    try:
        for channels in (1, 3):
            try:
                first = decode(str(files[0]), channels, request.image_size)
                shape = (len(files), channels, first.height, first.width)
                with closing(_pixels(files, shape, request)) as pieces:
                    return entry.store(shape, pieces)
            except Unfit as stop:
                if stop.kind != "colour":
                    raise
        raise AssertionError("with three channels no file is refused for its colour")
    except Unfit as stop:
        folder = train if Path(stop.path).is_relative_to(train.folder) else test
        file = f"{folder.origin}/{os.path.relpath(stop.path, folder.folder)}"
        if stop.kind == "size":
            raise UsageError(
                f"{file} is {stop.detail} pixels (width x height), the first image {first.width}x{first.height}; "
                "all must have one size, or --image-size be given"
            ) from None
        raise UsageError(f"{file} cannot be decoded ({stop.detail}); {REMEDY}") from None


def _pixels(files: list[Path], shape: tuple[int, ...], request: DatasetSpec) -> Generator[bytes, None, None]:
    """Yield the pixels of all files in order, with a progress bar."""
    _, channels, height, width = shape
    start = time.perf_counter()
    with progress_bar("decoding images", len(files)) as advance:
        with closing(
            decode_files(
                files,
                channels=channels,
                width=width,
                height=height,
                image_size=request.image_size,
                workers=request.workers,
            )
        ) as chunks:
            for count, pixels in chunks:
                yield pixels
                advance(count)
    request.message(f"decoded {len(files)} images in {time.perf_counter() - start:.1f} s")
