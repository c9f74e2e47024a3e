"""The quasi-random order: all samples, the same for everybody, and few pages of the file at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlocal.data.images.beton import BetonImages
from fastlocal.data.sample_streams import Pages, Streams, StreamSpec
from tests.data.sources import cifar
from tests.helpers.command_line import metrics, run

FEW, EPOCHS = 3, 4


@st.composite
def page_lists(draw: st.DrawFn) -> Pages:
    """Pages of one to many samples, with numbers in no order and with gaps."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    numbers = draw(st.permutations(range(3, 3 + 2 * len(sizes), 2)))
    of = [number for number, size in zip(numbers, sizes, strict=True) for _ in range(size)]
    return Pages(torch.tensor(draw(st.permutations(of))), draw(st.integers(1, 8)))


def streams(pages: Pages, clients: int = 1, seed: int = 0) -> Streams:
    samples = len(pages.page_ids)
    return Streams(StreamSpec(samples, clients, 1, samples // clients, replacement=False, seed=seed), pages)


def order(pages: Pages, epoch: int, seed: int = 0) -> list[int]:
    samples = len(pages.page_ids)
    ids: list[int] = streams(pages, seed=seed).sample_ids(epoch * samples, samples, range(1)).flatten().tolist()
    return ids


@given(pages=page_lists(), epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_an_epoch_has_every_sample_once_and_is_the_same_again(pages: Pages, epoch: int, seed: int) -> None:
    assert sorted(order(pages, epoch, seed)) == list(range(len(pages.page_ids)))
    assert order(pages, epoch, seed) == order(pages, epoch, seed)


@given(pages=page_lists(), epoch=st.integers(0, 5))
def test_no_more_pages_are_open_than_are_mixed(pages: Pages, epoch: int) -> None:
    assert most_open([int(pages.page_ids[sample]) for sample in order(pages, epoch)]) <= pages.mix_count


def most_open(pages: Sequence[int]) -> int:
    """Pages at most that were read from before and will be again, or are read from now, at any place of an order."""
    first = {page: place for place, page in reversed(list(enumerate(pages)))}
    last = {page: place for place, page in enumerate(pages)}
    return max(sum(first[page] <= place <= last[page] for page in first) for place in range(len(pages)))


def test_samples_are_mixed_and_pages_come_in_another_order_each_epoch() -> None:
    pages = Pages(torch.arange(400) // 20, FEW)
    first, second = order(pages, 0), order(pages, 1)
    assert first != second and first != order(pages, 0, seed=1)
    used = [pages.page_ids[ids[: 20 * FEW]].unique().tolist() for ids in (torch.tensor(first), torch.tensor(second))]
    assert len(used[0]) == len(used[1]) == FEW and used[0] != used[1]
    changes = sum(pages.page_ids[a] != pages.page_ids[b] for a, b in zip(first, first[1:], strict=False))
    assert changes > 200  # of 399; page after page it would be 19


def test_clients_take_turns_in_it_however_they_are_asked_for() -> None:
    pages = Pages(torch.arange(60) // 7, FEW)
    whole = streams(pages, clients=4).sample_ids(0, 15, range(4))
    assert sorted(whole.flatten().tolist()) == list(range(60))
    parts = [streams(pages, clients=4).sample_ids(5, 10, clients) for clients in (range(3), range(3, 4))]
    assert torch.equal(torch.cat(parts, dim=1), whole[5:])


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.beton and val.beton with raw images of 32x32 in pages of 2 MiB: three and one."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    folder = tmp_path_factory.mktemp("betons")
    images = cifar(64).inputs.permute(0, 2, 3, 1).numpy()
    for name, count in (("train", 1500), ("val", 32)):
        samples = [(np.roll(images[index % len(images)], index, axis=0), index % 10) for index in range(count)]
        fields: dict[str, Any] = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        writer = DatasetWriter(str(folder / f"{name}.beton"), fields, page_size=2**21, num_workers=1)
        writer.from_indexed_dataset(samples)
    return folder


WORDS = """train --dataset beton --model mlp --epochs 1 --clients 4 --batch-size 16 --step1 5 --eval-freq1 2 --seed 3
    --device cpu --executor stacked""".split()


def trained(capsys: pytest.CaptureFixture[str], directory: Path, betons: Path, *words: object) -> Any:
    halves = ("--train-pth", betons / "train.beton", "--val-pth", betons / "val.beton")
    outcome = run(capsys, *WORDS, *halves, "--log-pth", directory, *words)
    assert outcome.status == 0, outcome.err
    return [{key: row[key] for key in ("train_loss", "val_loss")} for row in metrics(directory)]


@pytest.mark.needs("ffcv")
def test_a_beton_is_trained_on_in_it(betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = torch.from_numpy(BetonImages(betons / "train.beton").pages)
    assert len(pages.unique()) == 3 and pages.bincount().max() == 2**21 // (32 * 32 * 3)
    words = ("--sampling", "quasi-random", "--sampling-pages", 1)
    rows = trained(capsys, tmp_path / "ffcv", betons, "--source", "ffcv", "--nw", 1, *words)
    same = trained(capsys, tmp_path / "resident", betons, "--source", "resident", "--chunk", 2, *words)
    shuffled = trained(capsys, tmp_path / "shuffled", betons, "--source", "resident")
    assert len(rows) == len(same) > 1
    for row, expected, other in zip(rows, same, shuffled, strict=True):
        assert row == pytest.approx(expected, rel=1e-4) and row != pytest.approx(other, rel=1e-4)
    client = json.loads((tmp_path / "ffcv" / "config.json").read_text())["client"]
    assert (client["sampling"], client["sampling_pages"]) == ("quasi-random", 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "prepare"),
        (("--replacement", 1), "--replacement"),
        (("--sampling-pages", 0), "--sampling-pages 0"),
    ],
)
def test_what_has_no_such_order(
    words: tuple[object, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "train", "--log-pth", tmp_path / "run", "--sampling", "quasi-random", *words)
    assert outcome.status == 2 and says in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not (tmp_path / "run").exists()
