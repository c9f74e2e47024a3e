"""Batches per second of every source, beside a plain DataLoader and FFCV's own loader, on the same images.

    python -m bench.loading --out bench/results/cpu/loading.csv

Two sets of smooth random images: 32x32 raw with crops after padding, and JPEGs of 256x256 with random-resized crops
to 128. Rows: source, set, batches/s (median, p20, p80 of the repeats), the ratio to
the DataLoader with as many workers, and for FFCV to its bare loader. Correctness is tests/data/test_source_equality.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, write_beton
from fastlocal.data.preparing.half import Half
from fastlocal.data.sources import Reading, make_source
from fastlocal.data.sources.base import Wanted
from fastlocal.data.streams import Streams, StreamSpec
from fastlocal.data.types import AnySplit, Split, StoredSplit

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SPEEDS = ("batches_per_s", "p20", "p80", "ratio", "of")
FIELDS = ("commit", "torch", "device", "set", "source", "batch", "workers", *SPEEDS)
SETTLE_S = 0.4
Batches = Callable[[int], None]
"""Reads so many batches."""


class Files(Dataset[tuple[Any, int]]):
    """What a user would write with torchvision."""

    def __init__(self, read: Callable[[int], Image.Image], count: int, transform: Any) -> None:
        self.read, self.count, self.transform = read, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.read(index)), index % 10


def small(count: int) -> Split:
    """Smooth random images of 32x32."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return Split((images * 255).to(torch.uint8), torch.arange(count) % 10)


def jpegs(folder: Path, count: int, side: int = 256) -> list[Path]:
    """Smooth random JPEGs of quality 90."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index in range(count):
        coarse = torch.rand(1, 3, 32, 32, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")[0].clamp(0, 1)
        paths.append(folder / f"{index:05}.jpg")
        Image.fromarray((image * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(paths[-1], quality=90)
    return paths


def ours(kind: str, split: AnySplit, batch: int, workers: int) -> Iterator[Batches]:
    """A source fed by a stream without replacement, reading on from call to call."""
    reading = Reading(
        kind=kind, workers=workers, prefetch=4, on_bad_sample="stop", mean=MEAN, std=STD, seed=0,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    source = make_source(split, reading, augment=True)
    streams = Streams(StreamSpec(len(split), 1, batch, len(split) // batch, replacement=False, seed=0))
    client = torch.zeros(1, dtype=torch.int64)
    wanted = (Wanted(streams.sample_ids(step, 1, range(1))[0], client, step) for step in itertools.count())
    feed = source.feed(wanted)

    def read(count: int) -> None:
        for _ in range(count):
            next(feed)

    yield read
    source.close()


def data_loader(
    read: Callable[[int], Image.Image], count: int, crop: Any, batch: int, workers: int
) -> Iterator[Batches]:
    """torchvision's transforms in a DataLoader."""
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = DataLoader(
        Files(read, count, transforms.Compose(steps)), batch, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    endless = itertools.chain.from_iterable(loader for _ in itertools.count())

    def take(count: int) -> None:
        for _ in range(count):
            next(endless)

    yield take


def bare_ffcv(path: Path, batch: int, workers: int, side: int | None) -> Iterator[Batches]:
    """FFCV's loader as its documentation has it, in its own random order, as float tensors."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor

    threads = torch.get_num_threads()
    if side is None:
        image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(4), ToTensor()]
    else:
        image = [RandomResizedCropRGBImageDecoder((side, side)), RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        str(path), batch, workers, os_cache=True, order=OrderOption.RANDOM, seed=0,
        pipelines={"image": image, "label": None},
    )  # fmt: skip
    endless = itertools.chain.from_iterable(loader for _ in itertools.count())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def take(count: int) -> None:
        for _ in range(count):
            images = next(endless)[0].permute(0, 3, 1, 2).contiguous()
            images.float().div_(255).sub_(mean).div_(std)

    torch.set_num_threads(threads)
    yield take


def beton(folder: Path, split: StoredSplit, mode: Any) -> Path:
    half = Half("train", split.images, split.targets, 10, None, {}, {})
    with FfcvWriter(1) as writer:
        return write_beton(half, folder, BetonSettings(mode, None, 90, 0.5), writer, lambda done: None)


def measure(readers: dict[str, Iterator[Batches]], batches: int, repeats: int) -> dict[str, list[float]]:
    """Batches per second of each, interleaved, after one warm-up.

    Each has read ahead as far as it goes when its turn comes, and does not while another is measured. The resident
    source reads eight times as many, for a time as long.
    """
    opened = {name: next(reader) for name, reader in readers.items()}
    for read in opened.values():
        read(batches)
    speeds: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(repeats):
        for name, read in opened.items():
            time.sleep(SETTLE_S)
            count = batches * (8 if name == "resident" else 1)
            began = time.perf_counter()
            read(count)
            speeds[name].append(count / (time.perf_counter() - began))
    for reader in readers.values():
        next(reader, None)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for title, batch, batches, readers in sets(Path(name), given.workers):
            rows += [row | {"set": title, "batch": batch, "workers": given.workers}
                     for row in summary(measure(readers, batches, given.repeats))]  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open(given.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"commit": commit, "torch": torch.__version__, "device": platform.machine()})
            print({key: row[key] for key in ("set", "source", "batches_per_s", "ratio", "of")})


def sets(folder: Path, workers: int) -> Iterator[tuple[str, int, int, dict[str, Iterator[Batches]]]]:
    """(name, batch size, batches per repeat, readers) of each set of images."""
    split, batch = small(4096), 128
    (folder / "small").mkdir()
    from fastlocal.data.images.arrays import ArrayImages

    stored = StoredSplit(ArrayImages(split.inputs), split.targets, None)
    raw = beton(folder / "small", stored, "raw")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.inputs]
    crop = transforms.RandomCrop(32, padding=4)
    yield "32x32 raw", batch, 32, {
        "DataLoader": data_loader(pictures.__getitem__, len(split), crop, batch, workers),
        "resident": ours("resident", split, batch, workers),
        "torch": ours("torch", split, batch, workers),
        "dali": ours("dali", split, batch, workers),
        "ffcv": ours("ffcv", StoredSplit(BetonImages(raw), split.targets, None), batch, workers),
        "bare FFCV": bare_ffcv(raw, batch, workers, None),
    }
    (folder / "jpeg").mkdir()
    paths, side, batch = jpegs(folder / "jpeg", 512), 128, 64
    files = StoredSplit(FileImages(paths, 3), torch.arange(len(paths)) % 10, side)
    packed = beton(folder / "jpeg", files, "jpg")
    contents = [path.read_bytes() for path in paths]
    decode = lambda index: Image.open(io.BytesIO(contents[index])).convert("RGB")  # noqa: E731
    yield "256x256 JPEG", batch, 8, {
        "DataLoader": data_loader(decode, len(paths), transforms.RandomResizedCrop(side), batch, workers),
        "torch": ours("torch", files, batch, workers),
        "dali": ours("dali", files, batch, workers),
        "ffcv": ours("ffcv", StoredSplit(BetonImages(packed), files.targets, side), batch, workers),
        "bare FFCV": bare_ffcv(packed, batch, workers, side),
    }


def summary(speeds: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """One row a source, beside the DataLoader, and FFCV's beside its bare loader: the median of the repeats' ratios."""
    for name, values in speeds.items():
        other = "bare FFCV" if name == "ffcv" else "DataLoader"
        ratios = [ours / theirs for ours, theirs in zip(values, speeds[other], strict=True)]
        p20, p80 = np.quantile(values, (0.2, 0.8))
        yield {
            "source": name,
            "batches_per_s": round(statistics.median(values), 1),
            "p20": round(float(p20), 1),
            "p80": round(float(p80), 1),
            "ratio": round(statistics.median(ratios), 3),
            "of": other,
        }


if __name__ == "__main__":
    main()
