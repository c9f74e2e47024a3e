"""The ImageNet program in miniature: JPEGs of many sizes, and .beton files of them, through every source: one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command_line import metrics, run

CLASSES = 10
SIZES = ((64, 64), (160, 120), (96, 128), (140, 70))
PER_CLASS = {"train": 8, "test": 3}

SMALL = """
    --model torchvision.resnet18 --image-size 32 --batch-size 10 --total-batch-size 20 --steps-per-epoch 4 --step1 2
    --epochs 2 --resume 0 --resume-pth None --lr 0.05 --momentum 0.9 --eval-freq1 2 --bn-batches 4 --device cpu --seed 1
    --executor looped
""".split()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/CLASS/*.jpg and test/CLASS/*.jpg of 64x64 to 160x120 pixels: real images, enlarged, two by two."""
    folder = tmp_path_factory.mktemp("imagenet")
    with np.load(Path(__file__).parents[1] / "reference" / "cifar_sample.npz") as sample:
        images, labels = sample["x_train"], sample["y_train"]
    for label in range(CLASSES):
        own = images[labels == label]
        number = 0
        for half, count in PER_CLASS.items():
            (folder / half / f"class_{label}").mkdir(parents=True)
            for _ in range(count):
                four = own[[(number + i) % len(own) for i in range(4)]]
                mosaic = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
                size = SIZES[number % len(SIZES)]
                path = folder / half / f"class_{label}" / f"{number}.jpg"
                Image.fromarray(mosaic).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
                number += 1
    return folder


@pytest.fixture(scope="module")
def betons(jpegs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.beton and val.beton with the pixels of the JPEGs, uncompressed."""
    from fastlocal.cli import main

    out = tmp_path_factory.mktemp("betons")
    assert main(["prepare", "--data-pth", str(jpegs), "--out", str(out), "--workers", "2"]) == 0
    return out


def train(
    capsys: pytest.CaptureFixture[str], directory: Path, source: str, words: tuple[object, ...]
) -> list[dict[str, float]]:
    given = ("--source", source, "--nw", 2, "--log-pth", directory)
    outcome = run(capsys, "train", "imagenet-post-local", *SMALL, *given, *words)
    assert outcome.status == 0, outcome.err
    assert json.loads((directory / "config.json").read_text())["data"]["source"] == source
    return metrics(directory)


def folder_words(jpegs: Path) -> tuple[object, ...]:
    return "--dataset", "image_folder", "--data-pth", jpegs


def beton_words(betons: Path) -> tuple[object, ...]:
    return "--train-pth", betons / "train.beton", "--val-pth", betons / "val.beton"


@pytest.fixture(scope="module")
def from_jpegs(jpegs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on JPEGs in worker processes."""
    from fastlocal.cli import main

    directory = tmp_path_factory.mktemp("runs") / "torch"
    words = [*SMALL, "--source", "torch", "--nw", "2", "--log-pth", str(directory)]
    assert main(["train", "imagenet-post-local", *words, *map(str, folder_words(jpegs))]) == 0
    return directory


def test_it_learns_and_logs_top_5(from_jpegs: Path) -> None:
    rows = metrics(from_jpegs)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert all(0 <= row["val_acc1"] <= row["val_acc5"] <= 1 for row in rows)
    config = json.loads((from_jpegs / "config.json").read_text())
    assert config["data"]["mean"] == [0.485, 0.456, 0.406] and config["data"]["image_size"] == 32


@pytest.mark.needs("ffcv")
def test_from_beton_it_is_the_same_run(
    from_jpegs: Path, betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = train(capsys, tmp_path / "run", "ffcv", beton_words(betons))
    for row, expected in zip(rows, metrics(from_jpegs), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.needs("nvidia.dali")
def test_through_dali_it_is_the_same_run_but_for_its_decoder(
    from_jpegs: Path, jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few grey levels apart per pixel: early losses are near, later ones as far as training grows it."""
    rows, expected = train(capsys, tmp_path / "run", "dali", folder_words(jpegs)), metrics(from_jpegs)
    assert len(rows) == len(expected) and rows[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=0.1)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys() and row["train_loss"] == pytest.approx(other["train_loss"], abs=0.4)
        assert 0 <= row["val_acc1"] <= row["val_acc5"] <= 1
    assert rows[1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.needs("ffcv")
def test_evaluate_cuts_the_same_centre_crops(
    from_jpegs: Path, betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dataset", "beton", "--val-pth", betons / "val.beton", "--schedule", "epochs", "--image-size", 32)
    outcome = run(capsys, "evaluate", from_jpegs / "latest.pt", "--model", "torchvision.resnet18", *words)
    assert outcome.status == 0, outcome.err
    last = metrics(from_jpegs)[-1]
    assert outcome.out.split()[::2] == ["val_acc1", "val_acc5", "val_loss"]
    assert [float(word) for word in outcome.out.split()[1::2]] == pytest.approx(
        [last["val_acc1"], last["val_acc5"], last["val_loss"]], abs=1e-3
    )


def test_crops_are_cut_from_the_stored_image(from_jpegs: Path, jpegs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--source resident has no images of several sizes to cut them from."""
    outcome = run(capsys, "train", "imagenet-post-local", *SMALL, *folder_words(jpegs), "--source", "resident")
    assert outcome.status == 2 and "--source resident: random-resized crops are cut from the stored" in outcome.err
