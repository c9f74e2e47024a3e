"""One reader of bench.loading, in a process of its own, since FFCV's compiled loops of one process share their threads.

    python -m bench.readers FOLDER write
    python -m bench.readers FOLDER SET READER WORKERS THREADS

The first writes the images. The second opens the reader and reads a few batches, says "= ready", and then for each
line on its input reads batches for as many seconds as the line says, and answers "= batches per second".
"""

from __future__ import annotations

import argparse
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

from fastlocal.common.machine import keep_freed_memory
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, WriteMode, write_beton
from fastlocal.data.preparing.half import SplitToWrite
from fastlocal.data.sample_streams import Streams, StreamSpec
from fastlocal.data.sources.base import BatchRequest
from fastlocal.data.sources.build import make_source
from fastlocal.data.sources.engine import Cropper
from fastlocal.data.sources.source_config import SourceConfig
from fastlocal.data.transforms import PADDING, Augmentation, SampleIndex, boxes
from fastlocal.data.types import AnySplit, Split, StoredSplit
from fastlocal.kernels.gather_augment.cpu import normalise

from .loading import BARE, BATCH, OWN_DECODER, RAW

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SMALL, JPEGS, SIDE = 4096, 512, 128
CPU = torch.device("cpu")
Read = Callable[[int], None]
"""Reads so many batches."""


def write(folder: Path) -> None:
    """Smooth random images: 32x32 as an array and raw in a .beton, 256x256 as JPEGs of quality 90 and in a .beton."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(SMALL, 3, 8, 8, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)
    np.save(folder / "small.npy", images.numpy())
    for index in range(JPEGS):
        coarse = torch.rand(1, 3, 32, 32, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=256, mode="bicubic")[0].clamp(0, 1)
        array = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{index:05}.jpg", quality=90)
    modes: dict[str, tuple[StoredSplit, WriteMode]] = {"raw": (_arrays(folder), "raw"), "jpeg": (_files(folder), "jpg")}
    for name, (split, mode) in modes.items():
        (folder / name).mkdir()
        half = SplitToWrite("train", split.images, split.targets, 10, None, {}, {})
        with FfcvWriter(1) as writer:
            write_beton(half, folder / name, BetonSettings(mode, None, 90, 0.5), writer, lambda done: None)


def _arrays(folder: Path) -> StoredSplit:
    return StoredSplit(ArrayImages(torch.from_numpy(np.load(folder / "small.npy"))), torch.arange(SMALL) % 10, None)


def _files(folder: Path) -> StoredSplit:
    return StoredSplit(FileImages(sorted(folder.glob("*.jpg")), 3), torch.arange(JPEGS) % 10, SIDE)


def _beton(folder: Path, title: str) -> StoredSplit:
    images = BetonImages(folder / ("raw" if title == RAW else "jpeg") / "train.beton")
    return StoredSplit(images, torch.arange(len(images)) % 10, None if title == RAW else SIDE)


def open_reader(folder: Path, title: str, name: str, workers: int) -> Read:
    """One of the rows of bench.loading."""
    batch = BATCH[title]
    if name == "DataLoader":
        return data_loader(folder, title, batch, workers)
    if name == BARE:
        return bare_ffcv(_beton(folder, title), batch, workers)
    if name == OWN_DECODER:
        return own_decoder(_beton(folder, title), batch, workers)
    split: AnySplit = _beton(folder, title) if name == "ffcv" else _arrays(folder) if title == RAW else _files(folder)
    if name == "resident":
        split = Split(torch.from_numpy(np.load(folder / "small.npy")), torch.arange(SMALL) % 10)
    return ours(name, split, batch, workers)


def ours(kind: str, split: AnySplit, batch: int, workers: int) -> Read:
    """A source fed by a stream without replacement, reading on from call to call."""
    reading = SourceConfig(
        kind=kind, workers=workers, prefetch=4, on_bad_sample="stop", mean=MEAN, std=STD, seed=0, device=CPU,
        dtype=torch.float32,
    )  # fmt: skip
    source = make_source(split, reading, augment=True)
    streams = Streams(StreamSpec(len(split), 1, batch, len(split) // batch, replacement=False, seed=0))
    client = torch.zeros(1, dtype=torch.int64)
    wanted = (BatchRequest(streams.sample_ids(step, 1, range(1))[0], client, step) for step in itertools.count())
    return _taking(source.feed(wanted))


def _taking(endless: Iterator[Any]) -> Read:
    def read(count: int) -> None:
        for _ in range(count):
            next(endless)

    return read


class Files(Dataset[tuple[Any, int]]):
    """What a user would write with torchvision."""

    def __init__(self, read: Callable[[int], Image.Image], count: int, transform: Any) -> None:
        self.read, self.count, self.transform = read, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.read(index)), index % 10


def data_loader(folder: Path, title: str, batch: int, workers: int) -> Read:
    """torchvision's transforms in a DataLoader, of images or JPEGs in memory."""
    if title == RAW:
        pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in np.load(folder / "small.npy")]
        count, picture, crop = SMALL, pictures.__getitem__, transforms.RandomCrop(32, padding=PADDING)
    else:
        contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        count, crop = JPEGS, transforms.RandomResizedCrop(SIDE)

        def picture(index: int) -> Image.Image:
            return Image.open(io.BytesIO(contents[index])).convert("RGB")

    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = DataLoader(
        Files(picture, count, transforms.Compose(steps)), batch, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    return _taking(itertools.chain.from_iterable(loader for _ in itertools.count()))


def bare_ffcv(split: StoredSplit, batch: int, workers: int) -> Read:
    """FFCV's loader over boxes that are drawn beforehand, in random order, by the ffcv source's own decoder.

    Decoding, resizing and normalising are those of the ffcv source; there is no stream, no queue, no copy of a batch
    out of FFCV's memory, and nobody asks whether a sample could be decoded.
    """
    from ffcv.traversal_order.base import TraversalOrder

    from fastlocal.data.sources.ffcv_stream import SAMPLE, STATUS, TOP, BoxDecoder

    count = len(split)
    augmentation = Augmentation("crop" if split.crop_size is None else "resized_crop", split.crop_size)
    cutter = Cropper(split.images, augmentation, 0)
    sizes = np.array([split.images.size(index) for index in range(count)], dtype=np.int64)
    numbers, zeros = np.arange(count), np.zeros(count, dtype=np.int64)
    requests = np.zeros((count, STATUS + 1), dtype=np.int64)
    requests[:, SAMPLE] = numbers
    index = SampleIndex(numbers, zeros, zeros, numbers)
    requests[:, TOP:STATUS] = boxes(augmentation, 0, index, sizes[:, 0], sizes[:, 1])

    class Order(TraversalOrder):
        def __init__(self) -> None:
            pass

        def __call__(self, loader: Any) -> Order:
            return self

        def sample_order(self, epoch: int) -> Any:
            return requests[np.random.default_rng(epoch).permutation(count)]

    height, width = augmentation.output(*cutter.first_size())
    return _ffcv(split, batch, workers, Order(), [BoxDecoder(height, width)])


def own_decoder(split: StoredSplit, batch: int, workers: int) -> Read:
    """FFCV's loader as its documentation has it: its decoder, its resize, its random order."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate

    if split.crop_size is None:
        steps = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(PADDING)]
    else:
        steps = [RandomResizedCropRGBImageDecoder((split.crop_size, split.crop_size)), RandomHorizontalFlip()]
    return _ffcv(split, batch, workers, OrderOption.RANDOM, steps)


def _ffcv(split: StoredSplit, batch: int, workers: int, order: Any, steps: list[Any]) -> Read:
    """ffcv.Loader with these steps; its images are normalised as the ffcv source does it."""
    from ffcv.loader import Loader
    from ffcv.transforms import ToTensor

    assert isinstance(split.images, BetonImages)
    threads = torch.get_num_threads()
    loader = Loader(
        str(split.images.path), batch, workers, os_cache=True, order=order, seed=0, drop_last=True,
        pipelines={"image": [*steps, ToTensor()], "label": None},
    )  # fmt: skip
    torch.set_num_threads(threads)  # FFCV sets torch's beside its own

    def endless() -> Iterator[torch.Tensor]:
        for (images,) in itertools.chain.from_iterable(loader for _ in itertools.count()):
            torch.set_num_threads(threads)
            if images.shape[-1] == 3:  # FFCV's own decoder
                images = images.permute(0, 3, 1, 2).contiguous()
            yield normalise(images, mean=MEAN, std=STD, dtype=torch.float32)

    return _taking(endless())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("which", nargs="+", help="write, or SET READER WORKERS THREADS")
    given = parser.parse_args()
    if given.which == ["write"]:
        write(given.folder)
        return
    keep_freed_memory()  # as training does on a CPU
    title, name, workers, threads = given.which
    torch.set_num_threads(int(threads))
    read = open_reader(given.folder, title, name, int(workers))
    read(4)
    print("= ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        count = 0
        while time.perf_counter() - began < float(line):
            read(1)
            count += 1
        print(f"= {count / (time.perf_counter() - began)}", flush=True)


if __name__ == "__main__":
    main()
