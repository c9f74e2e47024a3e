"""Folders of image files: what is read, and one line for everything that does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.images.files import FileImages
from fastlocal.data.images.listing import SUFFIXES
from fastlocal.data.types import StoredSplit
from tests.helpers.command_line import run

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def rgb(seed: int, height: int = 6, width: int = 5) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(seed: int, height: int = 6, width: int = 5) -> Pixels:
    return rgb(seed, height, width)[:, :, 0]


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, two training images and one test image of each."""
    root = tmp_path / "data"
    for seed, place in enumerate(
        ("train/dog/1", "train/dog/0", "train/Cat/x", "train/Cat/y", "test/dog/a", "test/Cat/b")
    ):
        save(root / f"{place}.png", rgb(seed))
    return root


def test_classes_and_files_are_sorted_by_name(root: Path) -> None:
    data = load("image_folder", data_pth=str(root))
    assert np.array_equal(data.train.inputs.numpy(), np.stack([rgb(i).transpose(2, 0, 1) for i in (2, 3, 1, 0)]))
    assert np.array_equal(data.test.inputs.numpy(), np.stack([rgb(i).transpose(2, 0, 1) for i in (5, 4)]))
    assert data.train.targets.tolist() == [0, 0, 1, 1] and data.test.targets.tolist() == [0, 1]
    assert data.classes == 2 and data.name == "image_folder"
    for split in (data.train, data.test):
        assert split.inputs.dtype == torch.uint8 and split.inputs.is_contiguous() and split.targets.dtype == torch.int64
    scaled = data.train.inputs.numpy() / 255
    assert data.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_does_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    # Large enough that each process gets several lists of files.
    places = [(half, label, i) for half in ("train", "test") for label in "ab" for i in range(6)]
    for seed, (half, label, i) in enumerate(places):
        (tmp_path / half / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (1100, 1000), seed).save(tmp_path / half / label / f"{i}.png")
    data = load("image_folder", data_pth=str(tmp_path), workers=workers)
    assert data.train.inputs[:, 0, -1, -1].tolist() == list(range(12))
    assert data.test.inputs[:, 0, 0, 0].tolist() == list(range(12, 24))


def test_only_image_files_count(root: Path) -> None:
    (root / "train" / "dog" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "dog" / "._0.png").write_bytes(b"x")
    (root / "train" / "dog" / "nested.png").mkdir()
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "list.txt").write_text("x")
    assert load("image_folder", data_pth=str(root)).train.targets.tolist() == [0, 0, 1, 1]


def test_images_are_found_where_torchvision_finds_them(root: Path, tmp_path: Path) -> None:
    """At any depth, through links, whatever the case of a suffix, in the same order; a loop of links is no more."""
    for seed, place in enumerate(("b/x.PNG", "b/deep/er/y.jpg", "b-c/z.Bmp", "a.png/w.tiff", "B/v.webp"), 10):
        save(root / "train" / "dog" / place, rgb(seed))
    (root / "train" / "dog" / "empty").mkdir()
    save(tmp_path / "elsewhere" / "more" / "0.png", rgb(20))
    (root / "train" / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "dog" / "again.png").symlink_to(root / "train" / "dog" / "0.png")
    (root / "train" / "fox").symlink_to(tmp_path / "elsewhere")
    save(root / "test" / "fox" / "0.png", rgb(21))
    wanted = datasets.ImageFolder(str(root / "train"))
    (root / "train" / "dog" / "b" / "round").symlink_to(root / "train" / "dog")
    said: list[str] = []
    for stored in (False, True):
        data = load("image_folder", data_pth=str(root), lazy=stored, message=said.append)
        assert data.train.targets is not None and data.train.targets.tolist() == wanted.targets
        if isinstance(data.train, StoredSplit):
            assert isinstance(data.train.images, FileImages)
            assert [str(path) for path in data.train.images.paths] == [path for path, _ in wanted.samples]
    assert len(wanted) == 2 + 2 + 5 + 2 + 1 and not any("passes over" in line for line in said)


def test_what_is_passed_over_is_said(root: Path) -> None:
    for name in ("notes.txt", "list.TXT", "0.png.bak", "README", "deeper/a.heic"):
        (root / "train" / "dog" / name).parent.mkdir(exist_ok=True)
        (root / "train" / "dog" / name).write_text("x")
    save(root / "train" / "dog" / ".thumbs" / "0.png", rgb(0))
    save(root / "test" / "stray.png", rgb(0))
    said: list[str] = []
    assert len(load("image_folder", data_pth=str(root), message=said.append).train) == 4
    origin = f"--data-pth {root}: train: passes over"
    assert said[:3] == [
        f"{origin} 5 files of other kinds (.txt 2, without suffix 1, .bak 1, .heic 1); images are {' '.join(SUFFIXES)}",
        f"{origin} 1 name with a dot before it, such as .thumbs",
        f"--data-pth {root}: test: passes over 1 image outside the class folders",
    ]


def test_what_cannot_be_read_is_named(root: Path) -> None:
    (root / "train" / "dog" / "deep").mkdir()
    (root / "train" / "dog" / "deep" / "gone.png").symlink_to(root / "nowhere.png")
    wanted = f"--data-pth {root}: train: {root}/train/dog/deep/gone.png cannot be read (No such file or directory); "
    assert refusal(data_pth=str(root)).startswith(wanted)
    (root / "train" / "dog" / "deep" / "gone.png").unlink()
    os.mkfifo(root / "train" / "dog" / "deep" / "pipe.png")
    assert "deep/pipe.png cannot be read (it is no file); mend or remove it" in refusal(data_pth=str(root))


def test_suffixes_in_any_case_and_any_common_format(root: Path) -> None:
    for suffix in ("JPG", "jpeg", "PNG", "bmp", "ppm", "TIFF", "webp", "gif"):
        save(root / "train" / "dog" / f"other.{suffix}", rgb(9))
    data = load("image_folder", data_pth=str(root))
    assert len(data.train) == 4 + 8
    # Sorted behind 0.png and 1.png: other.JPG, .PNG, .TIFF, .bmp ...; the lossless ones come back exactly.
    assert np.array_equal(data.train.inputs[6].numpy(), rgb(9).transpose(2, 0, 1))


def test_grey_folders_have_one_channel(tmp_path: Path) -> None:
    for seed, half in enumerate(("train", "test")):
        save(tmp_path / half / "a" / "0.png", grey(seed))
    data = load("image_folder", data_pth=str(tmp_path))
    assert np.array_equal(data.train.inputs.numpy(), grey(0)[None, None]) and not data.is_rgb
    assert data.mean is not None and len(data.mean) == 1


@pytest.mark.parametrize("coloured", ["train/a/0.png", "train/a/1.png", "test/a/0.png"])
def test_one_coloured_file_makes_all_rgb(tmp_path: Path, coloured: str) -> None:
    for seed, place in enumerate(("train/a/0.png", "train/a/1.png", "test/a/0.png")):
        save(tmp_path / place, rgb(seed) if place == coloured else grey(seed))
    data = load("image_folder", data_pth=str(tmp_path))
    images = torch.cat([data.train.inputs, data.test.inputs]).numpy()
    for seed, place in enumerate(("train/a/0.png", "train/a/1.png", "test/a/0.png")):
        expected = rgb(seed) if place == coloured else np.repeat(grey(seed)[:, :, None], 3, axis=2)
        assert np.array_equal(images[seed], expected.transpose(2, 0, 1))


def test_transparency_is_dropped_and_palettes_are_looked_up(root: Path) -> None:
    opaque = Image.fromarray(rgb(7))
    opaque.putalpha(40)
    opaque.save(root / "train" / "Cat" / "x.png")
    Image.fromarray(rgb(8)).quantize(256).save(root / "train" / "Cat" / "y.png")
    data = load("image_folder", data_pth=str(root))
    assert np.array_equal(data.train.inputs[0].numpy(), rgb(7).transpose(2, 0, 1))
    assert np.array_equal(data.train.inputs[1].numpy(), rgb(8).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(40, 71), (35, 32), (32, 35), (20, 25), (32, 32)])
def test_resizing_is_torchvisions(tmp_path: Path, height: int, width: int) -> None:
    save(tmp_path / "train" / "a" / "0.png", rgb(0, height, width))
    save(tmp_path / "test" / "a" / "0.png", rgb(1, 50, 60))
    data = load("image_folder", data_pth=str(tmp_path), image_size=32)
    both = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32)])
    for split, image in ((data.train, rgb(0, height, width)), (data.test, rgb(1, 50, 60))):
        expected = np.asarray(both(Image.fromarray(image))).transpose(2, 0, 1)
        assert np.array_equal(split.inputs[0].numpy(), expected)


def test_train_pth_and_val_pth_stand_in_for_the_folders(root: Path, tmp_path: Path) -> None:
    (root / "test").rename(tmp_path / "elsewhere")
    data = load("image_folder", data_pth=str(root), val_pth=str(tmp_path / "elsewhere"))
    assert data.test.inputs.shape == (2, 3, 6, 5)
    data = load("image_folder", data_pth=None, train_pth=str(root / "train"), val_pth=str(tmp_path / "elsewhere"))
    assert data.train.targets.tolist() == [0, 0, 1, 1] and data.test.targets.tolist() == [0, 1]


def refusal(**arguments: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load("image_folder", **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folders(root: Path, tmp_path: Path) -> None:
    assert refusal(data_pth=None).startswith("--data-pth is needed with --dataset image_folder")
    assert refusal(data_pth=None, train_pth=str(root / "train")).endswith("or --val-pth")
    expected = f"--data-pth {tmp_path}/no: train is not a folder; images are expected in {tmp_path}/no/train/CLASS/"
    assert refusal(data_pth=f"{tmp_path}/no") == expected
    expected = f"--val-pth {root}/val is not a folder; images are expected in {root}/val/CLASS/"
    assert refusal(data_pth=str(root), val_pth=f"{root}/val") == expected
    expected = f"--train-pth {root}/x is not a folder; images are expected in {root}/x/CLASS/"
    assert refusal(data_pth=str(root), train_pth=f"{root}/x") == expected


def test_no_class_folders(root: Path) -> None:
    text = refusal(data_pth=str(root), train_pth=f"{root}/train/dog")
    assert text == f"--train-pth {root}/train/dog has no class folders; images are expected in {root}/train/dog/CLASS/"


def test_an_empty_class_folder(root: Path) -> None:
    for half in ("train", "test"):
        save(root / half / "bird" / "0.png", rgb(0))
    (root / "test" / "bird" / "0.png").rename(root / "test" / "bird" / "0.txt")
    assert refusal(data_pth=str(root)).startswith(
        f"--data-pth {root}: test/bird holds no images; at least one is needed"
    )


def test_classes_that_differ(root: Path) -> None:
    save(root / "test" / "ant" / "0.png", rgb(0))
    save(root / "train" / "bee" / "0.png", rgb(0))
    text = refusal(data_pth=str(root))
    assert text == f"--data-pth {root}: train has no class folder 'ant', but {root}/test has; both need the same"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_file_of_another_size(root: Path, workers: int) -> None:
    save(root / "test" / "Cat" / "a.png", rgb(0, 7, 5))
    save(root / "test" / "dog" / "z.png", rgb(0, 8, 8))
    text = refusal(data_pth=str(root), workers=workers)
    assert text == (
        f"--data-pth {root}: test/Cat/a.png is 5x7 pixels (width x height), the first image 5x6; "
        "all must have one size, or --image-size be given"
    )


def test_a_turned_image_is_of_another_size(root: Path) -> None:
    save(root / "train" / "dog" / "0.png", rgb(0, 5, 6))
    assert "train/dog/0.png is 6x5 pixels" in refusal(data_pth=str(root))


@pytest.mark.parametrize("place", ["train/Cat/x.png", "train/dog/1.png", "test/dog/a.png"])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_file_is_named(root: Path, place: str, content: bytes | None) -> None:
    whole = (root / place).read_bytes()
    (root / place).write_bytes(whole[: len(whole) - 40] if content is None else content)
    text = refusal(data_pth=str(root))
    assert text.startswith(f"--data-pth {root}: {place} cannot be decoded (") and "; replace or remove it" in text


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    for half in ("train", "test"):
        save(tmp_path / half / "a" / "0.jpg", rgb(0, 64, 64))
    path = tmp_path / "test" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert f"--data-pth {tmp_path}: test/a/0.jpg cannot be decoded (" in refusal(data_pth=str(tmp_path))


def test_sixteen_bits_are_refused_rather_than_cut(root: Path) -> None:
    Image.fromarray(np.full((6, 5), 40000, dtype=np.uint16)).save(root / "train" / "dog" / "0.png")
    assert "train/dog/0.png cannot be decoded (its mode I;16 has more than 8 bits a value)" in refusal(
        data_pth=str(root)
    )


@pytest.mark.parametrize("name", ["x.png", "y.png"])
def test_a_corrupt_file_is_left_out_where_that_is_asked_for(
    root: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train" / "Cat" / name).write_bytes(b"no image")
    words: list[object] = [
        "train",
        "--dataset",
        "image_folder",
        "--data-pth",
        root,
        "--device",
        "cpu",
        "--model",
        "mlp",
    ]
    words += ["--batch-size", 2, "--total-batch-size", 4, "--epochs", 1, "--executor", "looped", "--nw", 1]
    for source in ("resident", "torch"):
        refused = run(capsys, *words, "--log-pth", tmp_path / "run", "--source", source)
        assert refused.status == 2 and refused.err.count("\n") == 1 and f"train/Cat/{name} cannot be" in refused.err
        assert "--source torch --on-bad-sample skip" in refused.err and not (tmp_path / "run").exists()
    went = run(capsys, *words, "--log-pth", tmp_path / "run", "--source", "torch", "--on-bad-sample", "skip")
    assert went.status == 0 and f"train/Cat/{name} cannot be decoded" in went.out + went.err
    left = load("image_folder", data_pth=str(root), lazy=True, skip_bad=True)
    (root / "train" / "Cat" / name).unlink()
    assert (left.mean, left.std) == ((data := load("image_folder", data_pth=str(root))).mean, data.std)
