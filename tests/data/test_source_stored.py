"""Crops of stored images of many sizes: the boxes, our resize, and how far decoders are apart."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as vision

from fastlocal.common.errors import UsageError
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.transforms import Augmentation, SampleIndex, boxes, cut
from fastlocal.data.types import StoredImages, StoredSplit
from tests.data import sources

LEVELS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
DECODERS = (("ffcv", "ffcv"), ("dali", "nvidia.dali"))
MAX_APART = {"ffcv": (12, 1.5), "dali": (8, 0.5)}
"""Grey levels between a JPEG's pixels by Pillow and by another decoder after a resize: at most, and on average."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sources.jpegs(tmp_path_factory.mktemp("jpegs"), 24)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Path:
    """The same images decoded, in a .beton file."""
    return sources.beton(tmp_path_factory.mktemp("raw"), FileImages(files, 3), "raw")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Path:
    """The same images in a .beton file, half of them raw."""
    return sources.beton(tmp_path_factory.mktemp("mixed"), FileImages(files, 3), "proportion")


def rows(count: int) -> SampleIndex:
    numbers = np.arange(count, dtype=np.int64)
    return SampleIndex(numbers, numbers % 7, numbers // 7, numbers % 5)


def test_boxes_are_those_that_torchvision_would_draw() -> None:
    count = 4000
    heights, widths = np.full(count, 300), np.full(count, 400)
    ours = boxes(Augmentation("resized_crop", 224), 3, rows(count), heights, widths)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(torch.zeros(1, 300, 400), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array(drawn)
    bottom, right = ours[:, 0] + ours[:, 2], ours[:, 1] + ours[:, 3]
    assert (ours[:, :4] >= 0).all() and (bottom <= 300).all() and (right <= 400).all()
    for column in range(4):
        deviation = np.sqrt((ours[:, column].var() + theirs[:, column].var()) / count)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 4 * deviation
        assert np.abs(np.quantile(ours[:, column], (0.1, 0.9)) - np.quantile(theirs[:, column], (0.1, 0.9))).max() < 12
    assert 0.45 < ours[:, 4].mean() < 0.55
    again = boxes(Augmentation("resized_crop", 224), 3, rows(count).pick(slice(5, 9)), heights[5:9], widths[5:9])
    assert np.array_equal(again, ours[5:9])


def test_images_that_no_try_fits_are_cut_centrally() -> None:
    found = boxes(Augmentation("resized_crop", 8), 0, rows(60), np.full(60, 4), np.full(60, 400))
    central = (0, 197, 4, 5)  # as wide as 4/3 of the height
    assert (found[:, :4] == central).all(axis=1).mean() > 0.9


def test_the_resize_is_torchvisions_on_pillow_images_to_one_level(files: list[Path]) -> None:
    for path, box in zip(files, boxes(Augmentation("centre_crop", 48), 0, rows(24), *sizes(files)), strict=True):
        with Image.open(path) as image:
            top, left, height, width, _ = map(int, box)
            expected = np.asarray(vision.resized_crop(image, top, left, height, width, [48, 48]), dtype=int)
            found = cut(np.asarray(image), box, 48, 48).astype(int)
        assert np.abs(found - expected).max() <= 1
        mirrored = cut(np.asarray(Image.open(path)), np.array([*box[:4], 1]), 48, 48)
        assert np.array_equal(mirrored[:, ::-1], found)


def sizes(files: list[Path]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    found = np.array([FileImages(files, 3).size(index) for index in range(len(files))])
    return found[:, 0], found[:, 1]


@pytest.mark.needs("ffcv")
@pytest.mark.parametrize("augment", [True, False])
def test_ffcv_cuts_and_resizes_raw_images_to_the_bit(files: list[Path], raw: Path, augment: bool) -> None:
    split = sources.stored(files)
    decoded = dataclasses.replace(split, images=BetonImages(raw))
    assert sources.equal(found(decoded, "ffcv", augment), found(split, "torch", augment))


@pytest.mark.needs("ffcv")
def test_ffcv_decodes_jpegs_a_few_grey_levels_apart(files: list[Path], mixed: Path) -> None:
    split = dataclasses.replace(sources.stored(files), images=BetonImages(mixed))
    check_apart("ffcv", found(split, "ffcv"), found(split, "torch"))


def found(split: StoredSplit, kind: str, augment: bool = True) -> list[Any]:
    """Batches in grey levels."""
    with sources.source_of(kind, split, augment=augment, **LEVELS) as source:
        return sources.by_step(sources.problem(source), sources.plans(len(split)))


def check_apart(kind: str, ours: list[Any], expected: list[Any]) -> None:
    most, average = MAX_APART[kind]
    for (inputs, *others), (wanted, *targets) in zip(ours, expected, strict=True):
        assert all(map(torch.equal, others, targets))
        apart = (inputs - wanted).abs() * 255
        assert apart.max() <= most and apart.mean() <= average


@pytest.mark.needs("nvidia.dali")
@pytest.mark.parametrize("augment", [True, False])
def test_dali_decodes_and_resizes_jpegs_a_few_grey_levels_apart(files: list[Path], augment: bool) -> None:
    split = sources.stored(files)
    check_apart("dali", found(split, "dali", augment), found(split, "torch", augment))


@pytest.mark.needs("nvidia.dali")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("damaged", [False, True])
def test_dali_leaves_on_the_gpu_what_it_decodes_there(files: list[Path], tmp_path: Path, damaged: bool) -> None:
    paths = [Path(shutil.copy(path, tmp_path)) for path in files]
    if damaged:
        paths[2].write_bytes(paths[2].read_bytes()[:400])
    split, ids, client = sources.stored(paths), torch.tensor([[1, 2, 3, 20], [0, 5, 2, 9]]), torch.tensor([0, 1])
    batches = []
    for kind, device in (("dali", torch.device("cuda", 0)), ("torch", torch.device("cpu"))):
        with sources.source_of(kind, split, device=device, on_bad_sample="skip", **LEVELS) as source:
            batch = source.batch(ids, client, 0)
            assert batch.inputs.device == device
            batches.append((batch.inputs.cpu() * 255, batch.targets.cpu()))
    (found, targets), (expected, wanted) = batches
    most, mean = MAX_APART["dali"]
    assert torch.equal(targets, wanted) and (found - expected).abs().mean() < mean
    assert (found - expected).abs().max() <= most


@pytest.mark.needs("nvidia.dali")
def test_dali_resizes_raw_images_to_two_levels() -> None:
    images = sources.cifar(24)
    split = StoredSplit(ArrayImages(images.inputs), images.targets, 24)
    for (inputs, *_), (wanted, *_) in zip(found(split, "dali"), found(split, "torch"), strict=True):
        assert ((inputs - wanted).abs() * 255).max() < 2.5


@pytest.mark.needs("nvidia.dali")
def test_what_dali_cannot_decode_is_named_skipped_or_read_by_pillow(files: list[Path], tmp_path: Path) -> None:
    paths = [shutil.copy(path, tmp_path) for path in files[:8]]
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:400])
    with Image.open(paths[4]) as image:
        image.save(tmp_path / "004.gif")  # which DALI does not know
    paths[4] = tmp_path / "004.gif"
    split, client = sources.stored([Path(path) for path in paths]), torch.tensor([0])
    with sources.source_of("dali", split) as source, sources.source_of("torch", split) as workers:
        gif = torch.tensor([[1, 4]])
        assert torch.allclose(source.batch(gif, client, 0).inputs, workers.batch(gif, client, 0).inputs, atol=0.3)
        with pytest.raises(UsageError, match=r"002.jpg cannot be decoded .*--on-bad-sample skip"):
            source.batch(torch.tensor([[1, 2]]), client, 0)
        source.bad_samples.policy = workers.bad_samples.policy = "skip"
        found, expected = (each.batch(torch.tensor([[2, 7]]), client, 0) for each in (source, workers))
    assert torch.equal(found.targets, expected.targets) and found.targets.tolist() == [[3, 7]]


@pytest.mark.needs("ffcv")
def test_damaged_jpegs_in_a_beton_are_named_or_skipped(files: list[Path], mixed: Path, tmp_path: Path) -> None:
    images = BetonImages(mixed)
    jpeg = images.read_encoded(5)
    assert jpeg is not None and images.read_encoded(6) is None, "the writer's choice of JPEGs"
    path = tmp_path / "train.beton"
    path.write_bytes(mixed.read_bytes().replace(jpeg, jpeg[:300] + bytes(len(jpeg) - 300)))
    split = dataclasses.replace(sources.stored(files), images=BetonImages(path))
    ids, client = torch.tensor([[5, 7]]), torch.tensor([0])
    with sources.source_of("ffcv", split) as source:
        with pytest.raises(UsageError, match=r"sample 5 of .*train.beton cannot be decoded .*--on-bad-sample skip"):
            source.batch(ids, client, 0)
        source.bad_samples.policy = "skip"
        found = source.batch(ids, client, 0)
        expected = source.batch(torch.tensor([[6, 7]]), client, 0)
    assert torch.equal(found.inputs, expected.inputs) and found.targets.tolist() == [[6, 7]]


@pytest.mark.needs("nvidia.dali")
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif"])
def test_dali_turns_images_as_pillow_does(files: list[Path], tmp_path: Path, name: str) -> None:
    turned = Image.Exif()
    turned[0x112] = 6  # orientation: a quarter
    path = tmp_path / name
    with Image.open(files[0]) as image:
        image.resize((120, 80)).save(path, exif=turned, quality=95)
    split = StoredSplit(FileImages([files[1], path], 3), torch.tensor([0, 1]), 48)
    check_apart("dali", found(split, "dali"), found(split, "torch"))


@pytest.mark.parametrize("kind", ["torch", *(pytest.param(k, marks=pytest.mark.needs(m)) for k, m in DECODERS)])
def test_no_decoder_cuts_what_another_refuses(kind: str, files: list[Path], raw: Path, tmp_path: Path) -> None:
    if kind != "ffcv":
        deep = tmp_path / "deep.png"
        Image.fromarray(np.full((70, 80), 60_000, dtype=np.uint16)).save(deep)
        with sources.source_of(kind, StoredSplit(FileImages([files[0], deep], 3), torch.tensor([0, 1]), 48)) as source:
            with pytest.raises(UsageError, match=r"deep.png cannot be decoded \(its mode I;16 has more than 8 bits"):
                source.read_range(0, 2)
    first = FileImages(files, 3).size(0)
    images: StoredImages = BetonImages(raw) if kind == "ffcv" else FileImages(files, 3, expected=first)
    with sources.source_of(kind, StoredSplit(images, torch.arange(len(files)), None)) as source:
        with pytest.raises(UsageError, match=r"cannot be decoded \(it is \d+x\d+ pixels"):
            source.read_range(0, 2)
        source.bad_samples.policy = "skip"
        assert source.read_range(0, 2).targets.tolist() == [0, 0]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 90), (90, 1)])
@pytest.mark.parametrize("kind", ["centre_crop", "resized_crop"])
def test_a_side_of_one_pixel_is_enough(kind: Any, height: int, width: int) -> None:
    drawn = boxes(Augmentation(kind, 24), 3, rows(50), np.full(50, height), np.full(50, width))
    assert drawn[:, 2:4].min() == 1
    assert cut(np.full((height, width, 3), 7, dtype=np.uint8), drawn[0], 24, 24).min() == 7


@pytest.mark.needs("nvidia.dali")
def test_dali_skips_a_first_file_that_is_gone(files: list[Path], tmp_path: Path) -> None:
    split = sources.stored([tmp_path / "gone.jpg", *files[1:4]])
    with sources.source_of("dali", split, on_bad_sample="skip") as source:
        assert source.read_range(0, 2).targets.tolist() == [1, 1]
