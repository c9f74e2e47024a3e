"""Small images, problems and plans for tests of sources."""

from __future__ import annotations

import atexit
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, WriteMode, write_beton
from fastlocal.data.preparing.split_to_write import SplitToWrite
from fastlocal.data.sources.base import Source
from fastlocal.data.sources.build import make_source
from fastlocal.data.sources.source_config import SourceConfig
from fastlocal.data.types import AnySplit, Split, StoredImages, StoredSplit
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.read_ahead import make_read_ahead
from fastlocal.executors.round_plan import RoundPlan
from fastlocal.params.label_noise import LabelNoise
from fastlocal.params.losses import cross_entropy
from fastlocal.params.param_layout import param_layout
from fastlocal.params.precision import Numerics

CPU = torch.device("cpu")
SAMPLE = Path(__file__).parents[1] / "reference" / "cifar_sample.npz"
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def cifar(count: int = 60) -> Split:
    """Training images of CIFAR-10, [n, 3, 32, 32]."""
    with np.load(SAMPLE) as stored:
        images, labels = stored["x_train"][:count], stored["y_train"][:count]
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


def jpegs(folder: Path, count: int, quality: int = 90) -> list[Path]:
    """JPEG files of several sizes: enlarged CIFAR images."""
    random = np.random.default_rng(3)
    paths = []
    for index, image in enumerate(cifar(count).inputs):
        height, width = (int(side) for side in random.integers(60, 170, 2))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{index:03}.jpg")
        picture.save(paths[-1], quality=quality)
    return paths


def stored(paths: list[Path], side: int | None = 48) -> StoredSplit:
    return StoredSplit(FileImages(paths, 3), torch.arange(len(paths)) % 10, side)


@functools.cache
def writer() -> FfcvWriter:
    """One process for all files, as it takes ten seconds to import FFCV."""
    made = FfcvWriter(1)
    atexit.register(made.__exit__)
    return made


def beton(folder: Path, images: StoredImages, write_mode: WriteMode, quality: int = 95) -> Path:
    """A .beton file of these images; none where FFCV is not installed."""
    if importlib.util.find_spec("ffcv") is None:
        return folder / "train.beton"
    half = SplitToWrite("train", images, torch.arange(len(images)) % 10, 10, None, {}, {})
    return write_beton(half, folder, BetonSettings(write_mode, None, quality, 0.5), writer(), lambda done: None)


def as_read_by(kind: str, split: Split, path: Path) -> AnySplit:
    """The split, or the same images in the .beton file `path` for FFCV."""
    return StoredSplit(BetonImages(path), split.targets, None) if kind == "ffcv" else split


@contextmanager
def source_of(kind: str, split: AnySplit, *, augment: bool = True, **changes: Any) -> Iterator[Any]:
    """A source that is closed at the end."""
    given: dict[str, Any] = {"workers": 2, "prefetch": 3, "on_bad_sample": "stop", "mean": MEAN, "std": STD}
    given |= {"device": CPU, "dtype": torch.float32, **changes}
    source = make_source(split, SourceConfig(kind=kind, seed=9, **given), augment=augment)
    try:
        yield source
    finally:
        source.close()


def problem(source: Source, noise: LabelNoise | None = None) -> LocalProblem:
    """One that trains nothing, for its batches."""
    module = torch.nn.Linear(1, 1)
    return LocalProblem(
        module=module,
        layout=param_layout(module, group_weight=False),
        source=source,
        loss=cross_entropy,
        topk=(),
        noise=noise,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        ahead=make_read_ahead(source),
        numerics=Numerics(CPU, torch.float32, None),
    )


def plans(samples: int, *, rounds: int = 2, clients: int = 3, steps: int = 3, batch: int = 5) -> list[RoundPlan]:
    """Rounds of one chunk whose first client is number 2, with samples drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    made: list[RoundPlan] = []
    for number in range(rounds):
        made.append(
            RoundPlan(
                client_ids=torch.arange(2, 2 + clients),
                first_step=7 + number * steps,
                learning_rates=torch.zeros(steps, clients),
                sample_ids=torch.randint(0, samples, (steps, clients, batch), generator=generator),
                first_row=2,
                following=lambda number=number: iter(made[number + 1 :]),  # type: ignore[misc]
            )
        )
    return made


def by_step(problem: LocalProblem, rounds: list[RoundPlan]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, targets and seen targets, [steps, clients, batch, ...] of each round, as a stacked executor does."""
    found = []
    for plan in rounds:
        batches = [problem.batch(plan, step, slice(None)) for step in range(plan.local_steps)]
        found.append(_stacked([(batch.inputs, batch.targets, seen) for batch, seen in batches], 0))
    return found


def by_client(problem: LocalProblem, rounds: list[RoundPlan]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same as a looped executor takes them."""
    found = []
    for plan in rounds:
        columns = []
        for client in range(len(plan.client_ids)):
            batches = list(problem.batches_of(plan, client))
            columns.append(_stacked([(batch.inputs, batch.targets, seen) for batch, seen in batches], 0))
        found.append(_stacked(columns, 1))
    return found


def _stacked(parts: list[tuple[Tensor, Tensor, Tensor]], axis: int) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (torch.stack(column, dim=axis) for column in zip(*parts, strict=True))
    return first, second, third


def equal(found: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
