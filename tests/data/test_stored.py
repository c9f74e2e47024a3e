"""Images left where they are stored: the same pixels, statistics and errors as those decoded at once."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data import normalization
from fastlocal.data.datasets import load
from fastlocal.data.decode import decode_all
from fastlocal.data.images.files import FileImages
from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import BadSample, DataSet, StoredSplit


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty digits as PNG files of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load("digits", data_pth=None).train.inputs
    paths = [folder / f"{index:03}.png" for index in range(20)]
    for path, digit in zip(paths, digits, strict=False):
        Image.fromarray(digit[0].numpy()).save(path)
    return paths


def split(files: list[Path], channels: int = 1, side: int | None = None) -> StoredSplit:
    return StoredSplit(FileImages(files, channels), torch.arange(len(files)) % 10, side)


def test_files_have_the_pixels_that_were_written_and_travel_to_other_processes(files: list[Path]) -> None:
    images = pickle.loads(pickle.dumps(FileImages(files, 1)))
    digits = load("digits", data_pth=None).train.inputs
    assert len(images) == 20 and images.size(7) == (8, 8)
    assert np.array_equal(images.read(7), digits[7].permute(1, 2, 0).numpy())
    assert images.read_encoded(7) == files[7].read_bytes()
    assert np.array_equal(FileImages(files, 3).read(7), images.read(7).repeat(3, axis=2))


def test_a_square_is_cut_as_resident_folders_cut_it(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for half in ("train", "test"):
        (tmp_path / half / "only").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / half / "only" / "a.png")
    resident = load("image_folder", data_pth=str(tmp_path), image_size=20, workers=1).train.inputs[0]
    images = FileImages([tmp_path / "train" / "only" / "a.png"], 3, square=20)
    assert images.size(0) == (20, 20) and images.read_encoded(0) is None
    assert np.array_equal(images.read(0), resident.permute(1, 2, 0).numpy())


def test_statistics_and_batches_are_those_of_the_decoded_images(files: list[Path]) -> None:
    stored = split(files)
    decoded = decode_all(stored)
    both = [DataSet("files", half, half, classes=10, mean=None, std=None) for half in (stored, decoded)]
    assert normalization.resolve(both[0], None, None) == normalization.resolve(both[1], None, None)
    device = torch.device("cpu")
    batches = [
        ResidentSource(half, mean=(0.5,), std=(0.2,), augment=True, seed=3, device=device, dtype=torch.float32).batch(
            torch.tensor([[1, 5], [6, 2]]), torch.arange(2), 4
        )
        for half in (stored, decoded)
    ]
    assert torch.equal(batches[0].inputs, batches[1].inputs) and torch.equal(batches[0].targets, batches[1].targets)
    assert stored.sample_shape == decoded.sample_shape == (1, 8, 8)
    assert split(files, 3, side=224).sample_shape == (3, 224, 224)


def test_a_file_that_is_cut_short_is_named_with_the_reason(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(files[0].read_bytes()[:60])
    images = FileImages([*files, bad], 1)
    with pytest.raises(BadSample, match=r"bad\.png cannot be decoded \(.*truncated"):
        images.read(20)
    assert str(pickle.loads(pickle.dumps(BadSample("x.png", "odd")))) == "x.png cannot be decoded (odd)"
    with pytest.raises(UsageError, match=r"bad\.png cannot be decoded .*; replace or remove it"):
        decode_all(dataclasses.replace(split(files), images=images))


def test_images_of_several_sizes_are_not_decoded_into_one_array(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (9, 8)).save(other)
    with pytest.raises(UsageError, match=r"image 20 is 9x8 pixels .*, the first 8x8; all must have one size"):
        decode_all(split([*files, other]))
    with pytest.raises(UsageError, match="--source resident: random-resized crops"):
        decode_all(split(files, side=8))
