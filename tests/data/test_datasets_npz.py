"""One .npz file: which axis holds the channels, and one line for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load

Arrays = dict[str, Any]


def arrays(shape: tuple[int, ...] = (8, 9, 3), n_train: int = 6, n_test: int = 4) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train, dtype=np.int64) % 3,
        "x_test": generator.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test, dtype=np.int64) % 3,
    }


def written(folder: Path, content: Arrays) -> str:
    np.savez(folder / "set.npz", **content)
    return str(folder / "set.npz")


@pytest.mark.parametrize(
    ("shape", "to_channels_first"),
    [
        ((8, 9, 3), (0, 3, 1, 2)),
        ((8, 9, 1), (0, 3, 1, 2)),
        ((3, 8, 9), (0, 1, 2, 3)),
        ((1, 8, 9), (0, 1, 2, 3)),
        ((3, 8, 3), (0, 3, 1, 2)),
        ((1, 8, 3), (0, 3, 1, 2)),
        ((3, 8, 1), (0, 3, 1, 2)),
    ],
)
def test_the_channel_axis_is_found(tmp_path: Path, shape: tuple[int, ...], to_channels_first: tuple[int, ...]) -> None:
    content = arrays(shape)
    data = load("npz", data_pth=written(tmp_path, content))
    for half in ("train", "test"):
        split = getattr(data, half)
        assert np.array_equal(split.inputs.numpy(), content[f"x_{half}"].transpose(to_channels_first))
        assert split.inputs.is_contiguous() and split.inputs.dtype == torch.uint8
        assert split.targets.tolist() == content[f"y_{half}"].tolist() and split.targets.dtype == torch.int64


def test_three_axes_are_grey_images(tmp_path: Path) -> None:
    content = arrays((8, 3))
    data = load("npz", data_pth=written(tmp_path, content))
    assert np.array_equal(data.train.inputs.numpy(), content["x_train"][:, None])
    assert data.mean is not None and len(data.mean) == 1


def test_compressed_files_and_further_arrays_are_fine(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", **arrays(), names=np.array(["a", "b"]))
    assert len(load("npz", data_pth=str(tmp_path / "set.npz")).train) == 6


def test_classes_count_both_halves_and_labels_may_be_small_integers(tmp_path: Path) -> None:
    content = arrays()
    content["y_train"] = content["y_train"].astype(np.uint8)
    content["y_test"] = np.array([0, 1, 2, 250], dtype=np.uint8)
    data = load("npz", data_pth=written(tmp_path, content))
    assert data.classes == 251 and data.test.targets.tolist() == [0, 1, 2, 250]


def nan_images() -> Any:
    images = np.full((6, 8, 9, 3), 0.5, dtype=np.float32)
    images[3, 1, 2, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x_train": np.zeros((6, 8, 9, 3), np.float32)}, "x_train is float32; uint8 expected"),
        ({"x_test": np.zeros((4, 8, 9, 3), np.int64)}, "x_test is int64; uint8 expected"),
        ({"x_train": nan_images()}, "x_train is float32 and holds NaN; uint8 expected"),
        ({"x_train": np.zeros((6, 216), np.uint8)}, r"x_train has shape \(6, 216\); images \[n, height, width,"),
        ({"x_train": np.zeros((6, 8, 9, 4), np.uint8)}, r"x_train has shape \(6, 8, 9, 4\); neither .* 1 or 3"),
        ({"x_test": np.zeros((4, 9, 8, 3), np.uint8)}, r"x_train is \(6, 8, 9, 3\) and x_test \(4, 9, 8, 3\); all"),
        ({"x_test": np.zeros((4, 8, 9), np.uint8)}, r"x_train is \(6, 8, 9, 3\) and x_test \(4, 8, 9\); all images"),
        ({"y_train": np.zeros(5, np.int64)}, "y_train has 5 labels for 6 images in x_train"),
        ({"y_test": np.zeros(7, np.int64)}, "y_test has 7 labels for 4 images in x_test"),
        ({"y_train": np.array([0, 1, -3, 0, 1, 2])}, "y_train holds the label -3; labels count from 0"),
        ({"y_train": np.array([0, 1, 2**32 - 1, 0, 1, 2], np.uint32)}, "y_train holds the label 4294967295; labels"),
        ({"y_train": np.array([0.0, 1, 2, 0, 1, 2])}, "y_train is float64; integer labels expected"),
        ({"y_train": np.zeros((6, 1), np.int64)}, r"y_train has shape \(6, 1\); one label per image"),
        ({"x_train": np.zeros((0, 8, 9, 3), np.uint8), "y_train": np.zeros(0, np.int64)}, "x_train is empty"),
        ({"x_test": np.zeros((0, 8, 9, 3), np.uint8), "y_test": np.zeros(0, np.int64)}, "x_test is empty"),
        ({"x_train": np.zeros((6, 0, 9, 3), np.uint8)}, "x_train is empty"),
        ({"x_train": np.array([None] * 6)}, "x_train cannot be read .*Object arrays.*; write plain arrays"),
        ({"y_test": np.array([0, "a", None, 1], dtype=object)}, "y_test cannot be read .*Object arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_named_in_one_line(tmp_path: Path, change: Arrays, text: str) -> None:
    path = written(tmp_path, arrays() | change)
    with pytest.raises(UsageError, match=f"^--data-pth {path}: {text}") as caught:
        load("npz", data_pth=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_array_is_named(tmp_path: Path, key: str) -> None:
    content = arrays()
    del content[key]
    path = written(tmp_path, content)
    with pytest.raises(UsageError, match=f"^--data-pth {path} has no array {key}; it holds .*, and needs x_train,"):
        load("npz", data_pth=path)


def test_no_path_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^--data-pth is needed with --dataset npz"):
        load("npz", data_pth=None)
    with pytest.raises(UsageError, match=f"^--data-pth {tmp_path}/none.npz does not exist; --dataset npz takes an"):
        load("npz", data_pth=f"{tmp_path}/none.npz")
    with pytest.raises(UsageError, match=f"^--data-pth {tmp_path} is a folder; --dataset npz takes an .npz"):
        load("npz", data_pth=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04", b"\x80\x04N."])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(UsageError, match="^--data-pth .*set.npz is no .npz file, or a truncated one") as caught:
        load("npz", data_pth=str(tmp_path / "set.npz"))
    assert "\n" not in str(caught.value)


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UsageError, match="^--data-pth .*one.npy holds a single array; an .npz file with x_train"):
        load("npz", data_pth=str(tmp_path / "one.npy"))


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.98])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = Path(written(tmp_path, arrays((32, 32, 3), 50, 20)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UsageError, match="^--data-pth .*set.npz is no .npz file, or a truncated one"):
        load("npz", data_pth=str(path))


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    path = Path(written(tmp_path, arrays((32, 32, 3), 50, 20)))
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UsageError, match="^--data-pth .*set.npz: x_train cannot be read"):
        load("npz", data_pth=str(path))


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = written(tmp_path, arrays() | {"x_train": np.array([Trap()] * 6, dtype=object)})
    with pytest.raises(UsageError, match="x_train cannot be read"):
        load("npz", data_pth=path)
    assert not (tmp_path / "sprung").exists()
