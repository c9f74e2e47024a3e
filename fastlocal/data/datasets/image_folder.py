"""Folders of image files, train/CLASS/** and test/CLASS/**: decoded once, then read from a cached array."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._image_cache import CacheEntry, Images
from fastlocal.data.decode import REMEDY
from fastlocal.data.images.decoding import decoded
from fastlocal.data.images.files import FileImages, mode_and_size
from fastlocal.data.images.listing import SUFFIXES, PassedOver, image_files
from fastlocal.data.images.worker import GREY_MODES, Unfit, decode
from fastlocal.data.progress_bar import progress_bar
from fastlocal.data.types import BadSample, DataSet, Split, StoredSplit

OWN_CACHE = ".fastlocal_cache"
"""The folder of decoded images beside the data."""


@dataclass(frozen=True)
class _Half:
    """The files of the training or the test folder, sorted by class, sub-folder and name.

    origin: the flag and folder, for messages        stamp: every file's name, size and time
    """

    origin: str
    folder: Path
    classes: list[str]
    files: list[Path]
    targets: list[int]
    stamp: bytes


def read(request: DatasetSpec) -> DataSet:
    """Images of one size, grey where every file is, else RGB; labels by sorted class-folder name.

    The decoded array lies in `data_pth`/.fastlocal_cache or, where that cannot be written, in the user's cache folder;
    it is made anew when a file comes, goes or changes. Images become squares of one size only where image_size asks.
    Where they are to stay stored the files are only listed.
    Raises UsageError naming the folder flag for folders and files that do not fit.
    """
    train = _scan(*_folder(request, "--train-pth", request.train_pth, "train"), request.message)
    test = _scan(*_folder(request, "--val-pth", request.val_pth, "test"), request.message)
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        here, there = (train, test) if odd[0] in train.classes else (test, train)
        raise UsageError(f"{there.origin} has no class folder {odd[0]!r}, but {here.folder} has; both need the same")

    targets = [torch.tensor(half.targets, dtype=torch.int64) for half in (train, test)]
    halves: list[Split | StoredSplit]
    if request.lazy:
        halves = _listed(request, (train, test), targets)
    else:
        images = torch.from_numpy(_images(request, train, test)).tensor_split([len(train.files)])
        halves = [Split(*pair, mapped=True) for pair in zip(images, targets, strict=True)]
    return DataSet(
        name=request.name,
        train=halves[0],
        test=halves[1],
        classes=len(train.classes),
        mean=None,
        std=None,
        class_names=tuple(train.classes),
    )


def _listed(request: DatasetSpec, halves: Sequence[_Half], targets: Sequence[Tensor]) -> list[Split | StoredSplit]:
    """The files as they are, to be decoded one by one; without crops of a given side they must be of one size."""
    files = [half.files for half in halves]
    if request.crop_size is not None:
        images = [FileImages(paths, channels=3) for paths in files]
    else:
        headers = list(_headers(chain(*files), request.skip_bad)) or [mode_and_size(files[0][0])]
        grey = all(mode in GREY_MODES for mode, _ in headers)
        expected = None if request.image_size else headers[0][1]
        images = [FileImages(paths, 1 if grey else 3, request.image_size, expected) for paths in files]
    return [StoredSplit(each, labels, request.crop_size) for each, labels in zip(images, targets, strict=True)]


def _headers(paths: Iterable[Path], skip_bad: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """Mode and (height, width) of each file."""
    for path in paths:
        try:
            yield mode_and_size(path)
        except BadSample:
            if not skip_bad:
                raise


def _folder(request: DatasetSpec, flag: str, given: str | None, name: str) -> tuple[str, Path]:
    """The folder of one half, and how to name it in a message: by its own flag where that was given."""
    if given is not None:
        folder = Path(given).expanduser()
        return f"{flag} {folder}", folder
    if request.data_pth is None:
        raise UsageError(f"--data-pth is needed with --dataset image_folder: the folder with {name}/CLASS/*, or {flag}")
    root = Path(request.data_pth).expanduser()
    return f"--data-pth {root}: {name}", root / name


def _scan(origin: str, folder: Path, message: Callable[[str], None]) -> _Half:
    """Lists the image files below every class folder, and says what else is there."""
    if not folder.is_dir():
        raise UsageError(f"{origin} is not a folder; images are expected in {folder}/CLASS/")
    over = PassedOver()
    classes = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            if entry.name != OWN_CACHE:
                over.hidden.append(entry.name)
        elif entry.is_dir():
            classes.append(entry.name)
        elif entry.name.lower().endswith(SUFFIXES):
            over.outside += 1
    if not classes:
        raise UsageError(f"{origin} has no class folders; images are expected in {folder}/CLASS/")
    files: list[Path] = []
    targets: list[int] = []
    stamp = hashlib.sha256()
    for label, name in enumerate(sorted(classes)):
        try:
            images = image_files(folder / name, over)
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
    for line in over.lines():
        message(f"{origin}: {line}")
    return _Half(origin, folder, sorted(classes), files, targets, stamp.digest())


def _images(request: DatasetSpec, train: _Half, test: _Half) -> Images:
    """All images [training + test, channels, height, width], from a cache or decoded into one."""
    entries = _cache_entries(request, train, test)
    for entry in entries:
        images = entry.load()
        if images is not None:
            request.message(f"decoded images are read from {entry.array}")
            return images
    for entry in entries:
        try:
            with entry.locked(lambda: request.message("another process is decoding these images; waiting for it")):
                images = entry.load()
                return _decode_into(entry, request, train, test) if images is None else images
        except OSError as error:
            refused = error
    raise UsageError(
        f"{train.origin}: decoded images can be kept neither in {' nor in '.join(str(e.folder) for e in entries)} "
        f"({refused}); set XDG_CACHE_HOME to a folder that can be written"
    )


def _cache_entries(request: DatasetSpec, train: _Half, test: _Half) -> list[CacheEntry]:
    """Where the array may lie, best first; its name tells the folders and the size, its fingerprint the files."""
    fingerprint = hashlib.sha256(train.stamp + test.stamp + str(request.image_size).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    bases: list[tuple[Path, str]] = [(home / "fastlocal", "/")]
    if request.data_pth is not None and Path(request.data_pth).expanduser().is_dir():
        root = Path(request.data_pth).expanduser()
        # Named relative to the data, the array is found again when the data moves as a whole.
        bases.insert(0, (root / OWN_CACHE, os.path.abspath(root)))
    entries = []
    for folder, base in bases:
        places = [os.path.relpath(os.path.abspath(half.folder), base) for half in (train, test)]
        identity = hashlib.sha256("\0".join([*places, str(request.image_size)]).encode(errors="surrogateescape"))
        entries.append(CacheEntry(folder, f"images-{identity.hexdigest()[:12]}", fingerprint))
    return entries


def _decode_into(entry: CacheEntry, request: DatasetSpec, train: _Half, test: _Half) -> Images:
    """Decodes everything as the first file suggests: grey until a coloured file shows up, then all as RGB."""
    files = train.files + test.files
    try:
        for channels in (1, 3):
            try:
                first = decode(str(files[0]), channels, request.image_size)
                shape = (len(files), channels, first.height, first.width)
                with closing(_pixels(files, shape, request)) as pieces:
                    return entry.store(shape, pieces)
            except Unfit as stop:
                if stop.why != "colour":
                    raise
        raise AssertionError("no file is coloured where three channels are asked for")
    except Unfit as stop:
        half = train if Path(stop.path).is_relative_to(train.folder) else test
        file = f"{half.origin}/{os.path.relpath(stop.path, half.folder)}"
        if stop.why == "size":
            raise UsageError(
                f"{file} is {stop.detail} pixels (width x height), the first image {first.width}x{first.height}; "
                "all must have one size, or --image-size be given"
            ) from None
        raise UsageError(f"{file} cannot be decoded ({stop.detail}); {REMEDY}") from None


def _pixels(files: list[Path], shape: tuple[int, ...], request: DatasetSpec) -> Generator[bytes, None, None]:
    """The pixels of all files in order, with progress on standard error."""
    _, channels, height, width = shape
    start = time.perf_counter()
    with progress_bar("decoding images", len(files)) as advance:
        with closing(
            decoded(
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
