"""Child process of bench.loading: one reader, since FFCV's compiled loops of one process share their threads.

    python -m bench.loading_readers FOLDER SET READER WORKERS THREADS

It opens the reader, reads a few batches and answers {} (see bench.processes). Then it reads batches for as many seconds
as each line of its input says, and answers with "batches_per_s".
"""

from __future__ import annotations

import io
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.processes import answer, answer_pipe
from fastlocal.common.machine import keep_freed_memory
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, WriteMode, write_beton
from fastlocal.data.preparing.split_to_write import SplitToWrite
from fastlocal.data.sample_streams import Streams, StreamSpec
from fastlocal.data.sources.base import BatchRequest
from fastlocal.data.sources.build import make_source
from fastlocal.data.sources.source_config import SourceConfig
from fastlocal.data.transforms import PADDING
from fastlocal.data.types import AnySplit, Split, StoredSplit
from fastlocal.kernels.gather_augment.cpu import normalise

RAW, JPEG = "32x32 raw", "256x256 JPEG"
BATCH = {RAW: 128, JPEG: 64}
DATA_LOADER, FFCV_LOADER = "DataLoader", "bare FFCV, its own decoder"
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
RAW_IMAGES, JPEG_IMAGES, CROP_SIZE = 4096, 512, 128

Batches = Iterator[Any]
"""Endless batches."""


def write_images(folder: Path) -> None:
    """Write smooth random images: raw as an array and in a .beton, JPEGs of quality 90 as files and in a .beton."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(RAW_IMAGES, 3, 8, 8, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)
    np.save(folder / "raw.npy", images.numpy())
    for index in range(JPEG_IMAGES):
        coarse = torch.rand(1, 3, 32, 32, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=256, mode="bicubic")[0].clamp(0, 1)
        array = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{index:05}.jpg", quality=90)
    splits: dict[str, tuple[str, WriteMode]] = {"raw": (RAW, "raw"), "jpeg": (JPEG, "jpg")}
    for name, (title, mode) in splits.items():
        (folder / name).mkdir()
        split = plain_split(folder, title)
        to_write = SplitToWrite("train", split.images, split.targets, 10, None, {}, {})
        with FfcvWriter(1) as writer:
            write_beton(to_write, folder / name, BetonSettings(mode, None, 90, 0.5), writer, lambda done: None)


def plain_split(folder: Path, title: str) -> StoredSplit:
    """Return the images of a set as an array, or as files."""
    if title == RAW:
        images = ArrayImages(torch.from_numpy(np.load(folder / "raw.npy")))
        return StoredSplit(images, torch.arange(RAW_IMAGES) % 10, None)
    return StoredSplit(FileImages(sorted(folder.glob("*.jpg")), 3), torch.arange(JPEG_IMAGES) % 10, CROP_SIZE)


def beton_split(folder: Path, title: str) -> StoredSplit:
    """Return the images of a set in a .beton file."""
    images = BetonImages(folder / ("raw" if title == RAW else "jpeg") / "train.beton")
    return StoredSplit(images, torch.arange(len(images)) % 10, None if title == RAW else CROP_SIZE)


def open_reader(folder: Path, title: str, name: str, workers: int) -> Batches:
    """Open a reader of bench.loading by its name."""
    if name == DATA_LOADER:
        return data_loader(folder, title, workers)
    if name == FFCV_LOADER:
        return ffcv_loader(beton_split(folder, title), BATCH[title], workers)
    split: AnySplit = beton_split(folder, title) if name == "ffcv" else plain_split(folder, title)
    if name == "resident":
        split = Split(torch.from_numpy(np.load(folder / "raw.npy")), torch.arange(RAW_IMAGES) % 10)
    return own_source(name, split, BATCH[title], workers)


def own_source(kind: str, split: AnySplit, batch: int, workers: int) -> Batches:
    """Read from a source of fastlocal by a stream without replacement."""
    config = SourceConfig(
        kind=kind, workers=workers, prefetch=4, on_bad_sample="stop", mean=MEAN, std=STD, seed=0,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    source = make_source(split, config, augment=True)
    streams = Streams(StreamSpec(len(split), 1, batch, len(split) // batch, replacement=False, seed=0))
    client = torch.zeros(1, dtype=torch.int64)
    requests = (BatchRequest(streams.sample_ids(step, 1, range(1))[0], client, step) for step in itertools.count())
    return source.feed(requests)


class ImageDataset(Dataset[tuple[Any, int]]):
    """Images with labels, as a user of torchvision would write it."""

    def __init__(self, read: Callable[[int], Image.Image], count: int, transform: Any) -> None:
        self.read, self.count, self.transform = read, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.read(index)), index % 10


def data_loader(folder: Path, title: str, workers: int) -> Batches:
    """Read images or JPEGs in memory by a DataLoader with torchvision's transforms."""
    if title == RAW:
        images = [Image.fromarray(image.transpose(1, 2, 0)) for image in np.load(folder / "raw.npy")]
        count, read, crop = RAW_IMAGES, images.__getitem__, transforms.RandomCrop(32, padding=PADDING)
    else:
        files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        count, crop = JPEG_IMAGES, transforms.RandomResizedCrop(CROP_SIZE)

        def read(index: int) -> Image.Image:
            return Image.open(io.BytesIO(files[index])).convert("RGB")

    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = DataLoader(
        ImageDataset(read, count, transforms.Compose(steps)), BATCH[title], shuffle=True, num_workers=workers,
        drop_last=True, persistent_workers=True,
    )  # fmt: skip
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def ffcv_loader(split: StoredSplit, batch: int, workers: int) -> Batches:
    """Read by FFCV's loader as its documentation shows it, and normalise as the ffcv source does."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor

    if split.crop_size is None:
        steps = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(PADDING)]
    else:
        steps = [RandomResizedCropRGBImageDecoder((split.crop_size, split.crop_size)), RandomHorizontalFlip()]
    assert isinstance(split.images, BetonImages)
    threads = torch.get_num_threads()
    loader = Loader(
        str(split.images.path), batch, workers, os_cache=True, order=OrderOption.RANDOM, seed=0, drop_last=True,
        pipelines={"image": [*steps, ToTensor()], "label": None},
    )  # fmt: skip
    for (images,) in itertools.chain.from_iterable(loader for _ in itertools.count()):
        torch.set_num_threads(threads)  # FFCV sets it with its own
        images = images.permute(0, 3, 1, 2).contiguous()
        yield normalise(images, mean=MEAN, std=STD, dtype=torch.float32)


def main(folder: str, title: str, name: str, workers: str, threads: str) -> None:
    """Read until the end of standard input."""
    pipe = answer_pipe()
    keep_freed_memory()  # as training does on a CPU
    torch.set_num_threads(int(threads))
    batches = open_reader(Path(folder), title, name, int(workers))
    for _ in range(4):
        next(batches)
    answer(pipe)
    for line in sys.stdin:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            next(batches)
            count += 1
        answer(pipe, batches_per_s=count / (time.perf_counter() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
