"""A Dataset that draws random numbers: a sample's are its own, whoever reads it, whenever, and after whatever else."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.data.sources.base import Source
from fastlocal.data.sources.build import make_source
from fastlocal.data.sources.source_config import SourceConfig
from fastlocal.data.types import DataSet, MapSplit
from tests.data import sources
from tests.helpers import interrupted
from tests.helpers.run_files import difference, run_files

OF_THE_MODULE = np.random.default_rng()


class Noisy(Dataset[tuple[Any, int]]):
    """Numbers 0, 1, 2 ... with random ones beside them."""

    def __init__(self, draw: Callable[[], Any], samples: int = 40) -> None:
        self.draw, self.samples = draw, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.float64([index, float(self.draw())]), index % 3


def everything() -> float:
    return float(torch.rand(()) + torch.randn(())) + np.random.rand() + random.random() + random.gauss(0, 1)


class Slotted:
    """Keeps its generator where there is no dictionary."""

    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = np.random.default_rng()

    def __call__(self) -> float:
        return float(self.generator.normal())


class Composed:
    """Transforms in a list, each with a generator of another kind."""

    def __init__(self) -> None:
        twister, counter = np.random.RandomState(), np.random.Generator(np.random.Philox())
        self.torch, self.python = torch.Generator(), random.Random()
        self.torch.seed()
        self.transforms = [twister.normal, counter.random, self.python.random, Slotted()]

    def __call__(self) -> float:
        return sum(draw() for draw in self.transforms) + float(torch.rand((), generator=self.torch))


def closure() -> Callable[[], float]:
    generator = np.random.default_rng()
    return lambda: float(generator.random())


KINDS: dict[str, Callable[[], Dataset[Any]]] = {
    "all of them": lambda: Noisy(everything),
    "held": lambda: Subset(Subset(Noisy(Composed(), 50), range(45)), range(40)),
    "in a closure": lambda: Noisy(closure()),
    "bound": lambda: Noisy(functools.partial(normal, Slotted())),
    "of the module": lambda: Noisy(lambda: OF_THE_MODULE.random()),
}


def normal(draw: Callable[[], float]) -> float:
    return draw()


@contextmanager
def source(dataset: Dataset[Any], **changes: Any) -> Iterator[Source]:
    given = {"mean": None, "std": None, "dtype": torch.float64, **changes}
    with sources.source_of("torch", MapSplit.from_dataset(dataset), augment=False, **given) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_random_numbers_of_its_own_at_any_number_of_workers(kind: str) -> None:
    found, plans = [], sources.plans(40)
    for workers, prefetch, take in ((1, 1, sources.by_step), (3, 5, sources.by_client)):
        with source(KINDS[kind](), workers=workers, prefetch=prefetch) as read:
            found.append(take(sources.problem(read), plans))
            tested = (
                read.read_range(0, 40).inputs,
                torch.cat([read.read_range(begin, begin + 7).inputs for begin in range(0, 40, 7)]),
            )
            assert torch.equal(*tested) and len(tested[0][:, 1].unique()) == 40
            one = read.batch(plans[1].sample_ids[2, 1:2], torch.tensor([3]), 12).inputs
        assert torch.equal(one[0], found[-1][1][0][2, 1]), "as a rank draws it that has this client alone"
    assert sources.equal(found[0], found[1])
    drawn = torch.cat([inputs[..., 1].flatten() for inputs, _, _ in found[0]])
    assert len(drawn.unique()) == len(drawn) == 90


def test_seeds_differ() -> None:
    drawn = []
    for seed in (0, 0, 1, 2**40):
        split = MapSplit.from_dataset(KINDS["all of them"]())
        reading = SourceConfig("torch", 1, 1, "stop", None, None, seed, sources.CPU, torch.float64)
        made = make_source(split, reading, augment=False)
        drawn.append(made.batch(torch.arange(8).view(2, 4), torch.arange(2), 0).inputs[..., 1])
        made.close()
    assert torch.equal(drawn[0], drawn[1]) and len(torch.stack(drawn[1:]).unique()) == 24


class Recorded(Noisy):
    """Writes what it draws to a file."""

    def __init__(self, path: Path, samples: int) -> None:
        super().__init__(everything, samples)
        self.path, self.generator = path, np.random.default_rng(5)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        inputs = np.float32([torch.rand(()), np.random.rand(), self.generator.random(), index / self.samples])
        with self.path.open("a") as file:
            file.write(f"{inputs[:3].tolist()}\n")
        return inputs, index % 3


def trained(folder: Path, **settings: Any) -> tuple[list[Tensor], list[str]]:
    """Parameters at the end, and what was drawn."""
    torch.manual_seed(0)
    path = folder / "drawn"
    given: dict[str, Any] = {"clients": 4, "local_steps": 3, "batch_size": 3, "rounds": 5, "lr": 0.5, **settings}
    test = torch.rand(6, 4), torch.arange(6) % 3
    dataset, model = Recorded(path, 90), nn.Linear(4, 3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    held = dataset.generator.bit_generator.state
    made = fastlocal.train(model, dataset, test, progress=False, directory=folder / "run", **given)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2]) and dataset.generator.bit_generator.state == held
    return list(made.model.parameters()), path.read_text().splitlines()


def test_runs_repeat_at_any_number_of_workers_and_leave_the_caller_s_random_states(tmp_path: Path) -> None:
    found = []
    for number, settings in enumerate(({"nw": 0}, {"nw": 2, "chunk": 3, "executor": "looped", "prefetch": 1})):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(trained(folder, **settings))
    for value, wanted in zip(found[1][0], found[0][0], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    assert len(set(found[0][1])) >= 4 * 3 * 3 * 5


def test_interrupted_equals_never_interrupted(tmp_path: Path) -> None:
    def data() -> DataSet:
        halves = [MapSplit.from_dataset(KINDS[kind]()) for kind in ("all of them", "held")]
        return DataSet("pairs", *halves, classes=3, mean=None, std=None)

    def module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    values: dict[str, Any] = {"source": "torch", "nw": 2, "prefetch": 3, "bn_batches": 2, "total_batch_size": 12}
    values |= {"precision": "fp64", "client_lr": 0.01}
    interrupted.run(tmp_path / "undisturbed", interrupted.Ticking(module()), data(), **values)
    moments = [7, 20]
    assert interrupted.continued(tmp_path / "run", module, data(), moments, **values) == len(moments)
    assert difference(run_files(tmp_path / "run"), run_files(tmp_path / "undisturbed")) == ""


class Counting(Noisy):
    """Goes by how often it was asked."""

    def __init__(self) -> None:
        super().__init__(everything)
        self.calls = 0

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.calls += 1
        return np.float64([index, self.calls]), 0


OTHERS: dict[str, Callable[[], Dataset[Any]]] = {
    "the system": lambda: Noisy(lambda: int.from_bytes(os.urandom(4), "little")),
    "SystemRandom": lambda: Noisy(random.SystemRandom().random),
    "a new generator": lambda: Noisy(lambda: np.random.default_rng().random()),
    "state": Counting,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_seeded_is_refused(kind: str, tmp_path: Path) -> None:
    other = OTHERS[kind]()
    with pytest.raises(
        UsageError, match=r"^sample \d+ of the Dataset \w+: differs .* torch.rand, numpy.random or random"
    ):
        fastlocal.train(nn.Linear(2, 3), other, other, clients=2, batch_size=3, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_does_not_repeat_to_the_last_digit_is_taken() -> None:
    with source(Noisy(lambda: 1 + 1e-9 * int.from_bytes(os.urandom(1), "little"))) as read:
        assert read.read_range(0, 4).inputs[:, 1] == pytest.approx(1)
