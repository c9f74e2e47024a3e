"""Every source delivers the resident source's batches: the same samples, crops, mirrorings, pixels and noisy labels."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from pathlib import Path

import pytest
import torch

from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.sources.base import BatchRequest
from fastlocal.data.sources.resident import FEED_BYTES
from fastlocal.params.label_noise import LabelNoise
from tests.data import sources
from tests.helpers import command_line

KINDS = [
    "torch",
    pytest.param("ffcv", marks=pytest.mark.needs("ffcv")),
    pytest.param("dali", marks=pytest.mark.needs("nvidia.dali")),
]
NOISE = LabelNoise(p=0.3, classes=10, seed=9)


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR images stored raw; not there without FFCV, which writes it."""
    return sources.beton(tmp_path_factory.mktemp("beton"), ArrayImages(sources.cifar().inputs), "raw")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", [True, False])
def test_raw_images_have_the_same_pixels_in_every_order(kind: str, augment: bool, beton: Path) -> None:
    split = sources.cifar()
    rounds = sources.plans(len(split))
    with sources.source_of("resident", split, augment=augment) as resident:
        expected = sources.by_step(sources.problem(resident, NOISE), rounds)
        assert sources.equal(sources.by_client(sources.problem(resident, NOISE), rounds), expected)
    with sources.source_of(kind, sources.as_read_by(kind, split, beton), augment=augment) as source:
        assert sources.equal(sources.by_step(sources.problem(source, NOISE), rounds), expected)
        assert sources.equal(sources.by_client(sources.problem(source, NOISE), rounds), expected)
        # a run that starts in the middle, and a plan that is left half-way
        assert sources.equal(sources.by_step(sources.problem(source, NOISE), rounds[1:]), expected[1:])
        problem = sources.problem(source, NOISE)
        problem.batch(rounds[0], 0, slice(None))
        next(iter(problem.batches_of(rounds[0], 1)))
        assert sources.equal(sources.by_client(problem, rounds), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [3, 8])
def test_it_is_closed_though_nobody_takes_what_was_read_ahead(ahead: int, kind: str, beton: Path) -> None:
    """As where a run is refused after its first samples were looked at."""
    split = sources.cifar()
    with sources.source_of(kind, sources.as_read_by(kind, split, beton), prefetch=ahead) as source:
        for begin in (0, 30, 10):
            source.read_range(begin, begin + 5)
        time.sleep(1.0)  # all that is read ahead is decoded, and waits
        closing = threading.Thread(target=source.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_resident_batches_in_a_row_are_those_asked_for_one_by_one() -> None:
    """Of several shapes, at steps of their own, and more than are gathered at a time."""
    generator = torch.Generator().manual_seed(1)
    with sources.source_of("resident", sources.cifar()) as source:
        wanted = [
            BatchRequest(torch.randint(0, 60, (2, size), generator=generator), torch.tensor([3, number]), step)
            for number, size in enumerate([300] * 5 + [7, 7, 300])
            for step in (number, torch.tensor([5, number]))
        ]
        assert source.batch_bytes(2 * 300 * 10) > FEED_BYTES
        for one, found in zip(wanted, source.feed(wanted), strict=True):
            assert one.clients is not None
            expected = source.batch(one.sample_ids, one.clients, one.step)
            assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.targets, expected.targets)


def test_resident_batches_take_a_seed_for_each_client() -> None:
    ids, clients, seeds = torch.arange(10).view(2, 5), torch.tensor([3, 3]), [9, 2**40]
    with sources.source_of("resident", sources.cifar()) as source:
        found = source.batch(ids, clients, 4, seed=torch.tensor(seeds)).inputs
        assert torch.equal(found[:1], source.batch(ids[:1], clients[:1], 4).inputs)  # the source's own seed is 9
        assert torch.equal(found[1:], source.batch(ids[1:], clients[1:], 4, seed=seeds[1]).inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_processes_see_what_one_chunk_sees(kind: str, beton: Path) -> None:
    split = sources.cifar()
    whole = sources.plans(len(split), clients=4)
    with sources.source_of(kind, sources.as_read_by(kind, split, beton)) as source:
        expected = sources.by_step(sources.problem(source), whole)
        for first, size in ((0, 1), (1, 3), (2, 2)):
            part = [
                dataclasses.replace(
                    plan,
                    client_ids=plan.client_ids[first : first + size],
                    sample_ids=plan.sample_ids[:, first : first + size],
                    first_row=2 + first,
                    following=lambda: iter(()),
                )
                for plan in whole
            ]
            wanted = [tuple(values[:, first : first + size] for values in one) for one in expected]
            assert sources.equal(sources.by_step(sources.problem(source), part), wanted)
            assert sources.equal(sources.by_client(sources.problem(source), part), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_clients_may_be_taken_by_several_threads_at_once(kind: str, beton: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    split = sources.cifar()
    (plan,) = sources.plans(len(split), rounds=1, clients=6, steps=4)
    with sources.source_of(kind, sources.as_read_by(kind, split, beton)) as source:
        expected = sources.by_step(sources.problem(source), [plan])[0]
        problem = sources.problem(source)

        def inputs(client: int) -> torch.Tensor:
            return torch.stack([batch.inputs for batch, _ in problem.batches_of(plan, client)])

        with ThreadPoolExecutor(3) as threads:
            found = torch.stack(list(threads.map(inputs, range(6))), dim=1)
    assert torch.equal(found, expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_sees_every_sample_once_in_order(kind: str, beton: Path) -> None:
    split = sources.cifar()
    with (
        sources.source_of("resident", split, augment=False) as resident,
        sources.source_of(kind, sources.as_read_by(kind, split, beton), augment=False) as source,
    ):
        for _, (begin, end) in itertools.product(range(2), ((0, 25), (25, 50), (50, 75))):
            expected, found = resident.read_range(begin, end), source.read_range(begin, end)
            assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_never_more_than_the_prefetch_depth_is_held(kind: str, beton: Path) -> None:
    with sources.source_of(kind, sources.as_read_by(kind, sources.cifar(), beton), prefetch=2) as source:
        rounds = sources.plans(60, rounds=4)
        sources.by_step(sources.problem(source), rounds)
        sources.by_client(sources.problem(source), rounds)
        assert source.max_ahead == 2
        source.read_range(0, 10)
        source.close_feeds()
        assert source.ahead == 0


@pytest.mark.needs("ffcv", "nvidia.dali")
def test_the_command_line_trains_alike_through_every_source(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("resident", "torch", "ffcv", "dali")
    for kind in kinds:
        words = ("train", "--dataset", "beton", "--train-pth", beton, "--val-pth", beton, "--source", kind)
        sizes = ("--batch-size", 5, "--clients", 3, "--epochs", 2, "--step1", 3, "--device", "cpu")
        outcome = command_line.run(capsys, *words, *sizes, "--executor", "stacked", "--log-pth", tmp_path / kind)
        assert outcome.status == 0, outcome.err
    first, *others = (command_line.metrics(tmp_path / kind) for kind in kinds)
    assert first and all(other == first for other in others)
