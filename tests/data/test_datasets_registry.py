"""Choosing a data set by name, and the mean and std that come with it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import NAMES, load

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_the_names_are_those_of_the_files() -> None:
    with_clients = ("client_folders", "csv", "flower", "hdf5", "leaf", "parquet", "text")
    known = ("array", "beton", "cifar10", "cifar100", "digits", "fashion_mnist", "image_folder", "npz", "synthetic")
    with_clients += tuple(f"fedprox_synthetic_{kind}" for kind in ("iid", "0", "0.5", "1"))
    assert NAMES == tuple(sorted(known + with_clients))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^--dataset 'cifar-10' is unknown; did you mean 'cifar10'\?; known are"):
        load("cifar-10", data_pth=None)


def test_helpers_are_not_data_sets() -> None:
    with pytest.raises(UsageError, match="--dataset '_prepared' is unknown"):
        load("_prepared", data_pth=None)


def test_the_names_cost_no_torch_and_the_digits_nothing_but_torch_and_numpy() -> None:
    out = run_python(
        "import sys\n"
        "from fastlocal.data import datasets\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "for name in ('sklearn', 'torchvision', 'PIL', 'rich', 'requests'): sys.modules[name] = None\n"
        "print(len(datasets.load('digits', data_pth=None).train))\n"
    )
    assert out == "1437\n"


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_computed_statistics_are_those_of_the_training_images(name: str) -> None:
    data = load(name, data_pth=None)
    scaled = data.train.inputs.numpy().astype(np.float64) / 255
    assert data.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_statistics_of_more_images_than_are_counted_at_once(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9001, 3, 2, 3), dtype=np.uint8)
    labels = np.zeros(9001, dtype=np.int64)
    np.savez(tmp_path / "many.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    data = load("npz", data_pth=str(tmp_path / "many.npz"))
    # The last axis has 3 values as well, so that it is the one that counts as channels.
    assert data.mean == pytest.approx((images.astype(np.float64) / 255).mean(axis=(0, 1, 2)).tolist(), rel=1e-12)
    assert data.std == pytest.approx((images.astype(np.float64) / 255).std(axis=(0, 1, 2)).tolist(), rel=1e-12)


def test_given_statistics_replace_the_data_sets_own_one_by_one() -> None:
    own = load("synthetic", data_pth=None)
    data = load("synthetic", data_pth=None, mean=(0.5, 0, 1))
    assert data.mean == (0.5, 0.0, 1.0) and data.std == own.std
    data = load("synthetic", data_pth=None, std=(0.5, 1, 2))
    assert data.mean == own.mean and data.std == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("flag", "values", "text"),
    [
        ("mean", (0.5,), r"^--mean takes 3 value\(s\), one per channel of synthetic; got 1: 0.5$"),
        ("std", (1.0, 1.0, 1.0, 1.0), r"^--std takes 3 value\(s\), one per channel of synthetic; got 4: 1 1 1 1$"),
        ("mean", (0.5, math.nan, 0.5), r"^--mean takes finite numbers; got 0.5 nan 0.5$"),
        ("std", (1.0, 1.0, math.inf), r"^--std takes finite numbers; got 1 1 inf$"),
        ("std", (1.0, 0.0, 1.0), r"^--std takes numbers above 0; got 1 0 1$"),
        ("std", (1.0, 1.0, -0.25), r"^--std takes numbers above 0; got 1 1 -0.25$"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(flag: str, values: tuple[float, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load("synthetic", data_pth=None, **{flag: values})  # type: ignore[arg-type]


def test_a_channel_that_never_varies_needs_a_given_std(tmp_path: Path) -> None:
    images = np.zeros((4, 5, 6, 3), dtype=np.uint8)
    images[..., 0] = np.arange(4)[:, None, None]
    labels = np.arange(4)
    np.savez(tmp_path / "flat.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UsageError, match="^--std must be given: channel 1 of npz's training images never varies$"):
        load("npz", data_pth=str(tmp_path / "flat.npz"))
    assert load("npz", data_pth=str(tmp_path / "flat.npz"), std=(1, 1, 1)).std == (1, 1, 1)


def test_an_image_size_that_changes_nothing_is_said() -> None:
    said: list[str] = []
    data = load("digits", data_pth=None, image_size=16, message=said.append)
    assert data.train.inputs.shape[2:] == (8, 8)
    assert said == ["--image-size 16 does nothing: it is for image_folder, and digits keeps its own size"]
    with pytest.raises(UsageError, match="^--image-size takes a number of pixels above 0; got 0$"):
        load("digits", data_pth=None, image_size=0)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    load("synthetic", data_pth=None, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
