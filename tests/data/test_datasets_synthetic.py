"""The synthetic blobs: drawn from the seed, and learnable."""

from __future__ import annotations

import torch

from fastlocal.data.datasets import load


def test_shapes_types_and_balance() -> None:
    data = load("synthetic", data_pth=None)
    assert data.classes == 10 and data.is_rgb
    for split, n in ((data.train, 2000), (data.test, 500)):
        assert split.inputs.shape == (n, 3, 32, 32) and split.inputs.dtype == torch.uint8
        assert split.inputs.is_contiguous()
        assert split.targets.dtype == torch.int64
        assert torch.bincount(split.targets).tolist() == [n // 10] * 10
        assert split.targets.tolist() != sorted(split.targets.tolist())


def test_the_seed_decides_everything() -> None:
    one, same, other = (load("synthetic", data_pth=None, seed=seed) for seed in (1, 1, 2))
    for half in ("train", "test"):
        assert torch.equal(getattr(one, half).inputs, getattr(same, half).inputs)
        assert torch.equal(getattr(one, half).targets, getattr(same, half).targets)
        assert not torch.equal(getattr(one, half).inputs, getattr(other, half).inputs)
    assert not torch.equal(one.train.inputs[:500], one.test.inputs)


def test_classes_can_be_told_apart_by_place_and_by_colour() -> None:
    data = load("synthetic", data_pth=None)
    train, test = (split.inputs.flatten(1).float() for split in (data.train, data.test))
    centres = torch.stack([train[data.train.targets == label].mean(dim=0) for label in range(10)])
    right = (torch.cdist(test, centres).argmin(dim=1) == data.test.targets).float().mean()
    assert right > 0.95

    colours, colours_test = (split.inputs.float().mean(dim=(2, 3)) for split in (data.train, data.test))
    centres = torch.stack([colours[data.train.targets == label].mean(dim=0) for label in range(10)])
    right = (torch.cdist(colours_test, centres).argmin(dim=1) == data.test.targets).float().mean()
    assert right > 0.95, "random crops and flips move the place, so that the colour must do"
