"""What the commands of the documentation find: small data, weights and a run under the names that pages use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.data.datasets import DatasetSpec, cifar, fashion_mnist
from fastlocal.data.preparing import run
from fastlocal.data.types import DataSet, Split
from fastlocal.models import build
from tests.helpers.sweep_files import rows_of, write_sweep

SMALLER = {
    "cifar10-post-local": ("--batch-size", "2", "--total-batch-size", "4", "--steps-per-epoch", "-1"),
    "imagenet-post-local": (
        *("--batch-size", "2", "--total-batch-size", "4", "--steps-per-epoch", "-1", "--image-size", "32"),
        *("--model", "torchvision.resnet18", "--dataset", "image_folder", "--nw", "1"),
    ),
    "cifar10_jpeg": ("--batch-size", "2", "--clients", "2"),
}
"""Flags behind a `train` command that holds this word: its data here are smaller."""
FILES = [Path("inet/train.beton"), Path("inet/val.beton")]
INSTEAD = {
    "torchvision.resnet50": ("torchvision.resnet18",),
    "inet/train.beton": ("imagenet/train",),
    "inet/val.beton": ("imagenet/val",),
    "beton": ("image_folder", "--train-pth", "imagenet/train", "--image-size", "32"),
}
"""Words in the place of others: tests/training/test_imagenet.py trains from files that FFCV has written."""


def make(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Fill the folder, have `cifar10` and `fashion_mnist` read a few random images, and FFCV write nothing."""
    convert = run.convert_dataset
    patch.setattr(run, "convert_dataset", lambda data, how: FILES if how.beton else convert(data, how))
    for module, shape in ((cifar, (3, 32, 32)), (fashion_mnist, (1, 28, 28))):
        patch.setattr(module, "read", lambda request, shape=shape: _random(request, shape))
    _images(folder / "cifar10_jpeg", (32, 32), halves=("train", "test"), classes=10)
    _images(folder / "imagenet", (48, 40), halves=("train", "val"), classes=2)
    _weights(folder / "phase1_common.pt", "resnet56", 10)
    _weights(folder / "epoch100.pt", "torchvision.resnet18", 2)
    (folder / "runs" / "imagenet").mkdir(parents=True)
    _weights(folder / "runs" / "imagenet" / "latest.pt", "torchvision.resnet18", 2)
    fields = {"seed": [0, 1], "start_lr": [0.05, 0.1]}
    write_sweep(folder / "sweeps" / "rates", fields, lambda values: rows_of(0.8 + values["start_lr"]))


def shrunk(words: Sequence[str]) -> list[str]:
    """Return the words of a command of fastlocal with the flags that fit it to this world."""
    given = [new for word in words for new in INSTEAD.get(word, (word,))]
    more = [flag for word, flags in SMALLER.items() if word in words for flag in flags if words[0] == "train"]
    return [*given, *more]


def _random(request: DatasetSpec, shape: tuple[int, ...]) -> DataSet:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(n) % 10)

    return DataSet(request.name, split(1024), split(16), classes=10, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])


def _images(folder: Path, size: tuple[int, int], halves: Sequence[str], classes: int) -> None:
    """Write 8 JPEG files for each class and half."""
    random = np.random.default_rng(0)
    for half in halves:
        for label in range(classes):
            place = folder / half / f"class{label}"
            place.mkdir(parents=True)
            for number in range(8):
                pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpeg")


def _weights(path: Path, model: str, classes: int) -> None:
    torch.save(build(model, in_channels=3, classes=classes, image_size=(32, 32)).state_dict(), path)
