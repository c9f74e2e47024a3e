"""The shipped digits: the very images, labels and split that the package promises."""

from __future__ import annotations

from pathlib import Path

import torch

import fastlocal.data.datasets
from fastlocal.data.datasets import load

# How many samples of each class the test part of the UCI data set has.
UCI_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

# The first sample of the UCI file, a 0, in its own counts 0 to 16.
UCI_FIRST = [
    [0, 0, 5, 13, 9, 1, 0, 0],
    [0, 0, 13, 15, 10, 15, 5, 0],
    [0, 3, 15, 2, 0, 11, 8, 0],
    [0, 4, 12, 0, 0, 8, 8, 0],
    [0, 5, 8, 0, 0, 9, 8, 0],
    [0, 4, 11, 0, 1, 12, 7, 0],
    [0, 2, 14, 5, 10, 12, 0, 0],
    [0, 0, 6, 13, 10, 0, 0, 0],
]


def test_shapes_and_types() -> None:
    data = load("digits", data_pth=None)
    assert data.name == "digits" and data.classes == 10 and not data.is_rgb
    for split, n in ((data.train, 1437), (data.test, 360)):
        assert split.inputs.shape == (n, 1, 8, 8) and split.inputs.dtype == torch.uint8 and split.inputs.is_contiguous()
        assert split.targets.shape == (n,) and split.targets.dtype == torch.int64


def test_the_split_is_stratified_and_complete() -> None:
    data = load("digits", data_pth=None)
    train, test = (torch.bincount(split.targets, minlength=10) for split in (data.train, data.test))
    assert (train + test).tolist() == UCI_COUNTS
    # A fifth of every class is for testing, to the nearest sample or its neighbour.
    assert ((test - (train + test) * (360 / 1797)).abs() < 1).all()


def test_the_order_never_changes() -> None:
    data = load("digits", data_pth=None)
    assert data.train.targets[:12].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8, 3, 5]
    assert data.test.targets[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    assert data.train.inputs[0, 0, 0].tolist() == [0, 0, 128, 255, 255, 191, 0, 0]
    assert data.train.inputs[0, 0, 6].tolist() == [0, 32, 255, 80, 159, 255, 0, 0]


def test_counts_became_grey_levels() -> None:
    data = load("digits", data_pth=None)
    images = torch.cat([data.train.inputs, data.test.inputs])[:, 0]
    labels = torch.cat([data.train.targets, data.test.targets])
    assert images.unique().tolist() == [round(count * 255 / 16) for count in range(17)]
    counts = (images.double() * 16 / 255).round().long()
    assert int(counts.sum()) == 561718
    found = (counts == torch.tensor(UCI_FIRST)).flatten(1).all(dim=1)
    assert labels[found].tolist() == [0]


def test_the_attribution_ships_beside_the_file() -> None:
    text = (Path(fastlocal.data.datasets.__file__).parent / "digits_source.txt").read_text()
    for part in ("UCI Machine Learning Repository", "Alpaydin", "Kaynak", "1998", "CC BY 4.0", "What was changed"):
        assert part in text
