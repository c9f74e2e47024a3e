"""Data that a run cannot train on, or not as asked: status 2, one line that names the flag, no run directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command_line import Outcome, arrays, run, train_words, write_npz
from tests.helpers.refusals import assert_refused

IMAGES = arrays()
BAD_DATA: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "float images": ({"x_train": IMAGES["x_train"].astype(np.float32)}, ("x_train", "float32", "uint8")),
    "NaN images": ({"x_test": np.full((16, 8, 8, 1), np.nan)}, ("x_test", "NaN")),
    "flat images": ({"x_train": IMAGES["x_train"].reshape(64, -1)}, ("x_train", "(64, 64)")),
    "two channels": ({"x_train": np.zeros((64, 8, 8, 2), np.uint8)}, ("x_train", "(64, 8, 8, 2)")),
    "other test shape": ({"x_test": np.zeros((16, 9, 9, 1), np.uint8)}, ("x_train", "x_test", "(16, 9, 9, 1)")),
    "fewer labels": ({"y_train": IMAGES["y_train"][:-1]}, ("y_train", "63 labels", "64 images")),
    "negative label": ({"y_train": IMAGES["y_train"] - 1}, ("y_train", "-1")),
    "label out of range": ({"y_test": np.full(16, 2**40)}, ("y_test", str(2**40))),
    "float labels": ({"y_train": IMAGES["y_train"] / 2}, ("y_train", "float64")),
    "no training images": ({"x_train": IMAGES["x_train"][:0], "y_train": IMAGES["y_train"][:0]}, ("x_train", "empty")),
    "no test images": ({"x_test": IMAGES["x_test"][:0], "y_test": IMAGES["y_test"][:0]}, ("x_test", "empty")),
    "no y_test": ({"y_test": None}, ("y_test", "x_train")),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str, refused: Callable[..., Outcome], tmp_path: Path) -> None:
    changes, says = BAD_DATA[case]
    refused(says=("--data-pth", *says), data=write_npz(tmp_path / "bad.npz", **changes))


def test_truncated_data(refused: Callable[..., Outcome], data: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes(data.read_bytes()[:-200])
    refused(says=("--data-pth", "truncated"), data=torn)


def test_label_beyond_memory(refused: Callable[..., Outcome], tmp_path: Path) -> None:
    labels = IMAGES["y_train"].copy()
    labels[5] = 2**31 - 2
    refused(says=("--data-pth", "2,147,483,647 has no training"), data=write_npz(tmp_path / "bad.npz", y_train=labels))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--batch-size 2000000000 --total-batch-size 2000000000", "--batch-size 2000000000"),
        ("--batch-size 1 --total-batch-size 100000000 --chunk 100000000", "--chunk 100000000"),
        ("--batch-size 1 --total-batch-size 100000000 --momentum 0.9", "--clients 100000000"),
    ],
)
def test_more_than_memory(words: str, says: str, refused: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(*words.split(), "--replacement", says=(says, "GiB"), data=write_npz(tmp_path / "large.npz", side=64))


def test_one_class_has_no_other_label(refused: Callable[..., Outcome], tmp_path: Path) -> None:
    refused("--label-noise", says=("--label-noise 1", "two classes"), data=write_npz(tmp_path / "one.npz", classes=1))


def test_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for half in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / half / name).mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(tmp_path / half / name / "0.png")
    words = [*train_words(tmp_path, tmp_path / "run"), "--dataset", "image_folder"]

    (tmp_path / "train" / "dog" / "0.png").unlink()
    assert_refused(run(capsys, *words), ("--data-pth", "train/dog", "no images"))
    shutil.rmtree(tmp_path / "train" / "dog")
    assert_refused(run(capsys, *words), ("--data-pth", "'dog'"))
    shutil.rmtree(tmp_path / "test")
    assert_refused(run(capsys, *words), ("--data-pth", "test", "not a folder"))
    assert not (tmp_path / "run").exists()


def test_batchnorm_of_single_values(tmp_path: Path, refused: Callable[..., Outcome]) -> None:
    """One image of 2 x 2 pixels leaves BatchNorm one value per channel."""
    small = write_npz(tmp_path / "small.npz", side=2, channels=3)
    words = ("--model", "resnet20", "--batch-size", "1", "--total-batch-size", "2")
    refused(*words, says=("--model resnet20", "more than 1 value"), data=small)
