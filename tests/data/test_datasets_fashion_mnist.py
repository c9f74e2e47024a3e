"""Fashion-MNIST from Debian's package, from --data-pth, and from torchvision's download."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import fashion_mnist, load

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def idx(array: Bytes) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny() -> dict[str, Bytes]:
    generator = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: generator.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        TRAIN_LABELS: np.array([9, 0, 3, 3, 1], dtype=np.uint8),
        TEST_IMAGES: generator.integers(0, 256, (2, 28, 28), dtype=np.uint8),
        TEST_LABELS: np.array([4, 9], dtype=np.uint8),
    }


def write(folder: Path, content: dict[str, Bytes], compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in content.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    return folder


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Debian's package and without a network."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nonexistent"))
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_debian: None) -> Iterator[Path]:
    """The folder of a local server that torchvision takes for Fashion-MNIST's, with tiny files."""
    folder = write(tmp_path / "server", tiny())
    checksums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(FashionMNIST, "resources", checksums)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as http_server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{http_server.server_address[1]}/"])
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield folder
        http_server.shutdown()


def test_debians_package(tmp_path: Path) -> None:
    assert fashion_mnist.DEBIAN_FOLDER.is_dir(), "apt-get install dataset-fashion-mnist"
    said: list[str] = []
    data = load("fashion_mnist", data_pth=str(tmp_path / "none"), message=said.append)
    assert said == ["Fashion-MNIST is read from /usr/share/datasets/fashion-mnist"]
    assert not (tmp_path / "none").exists()
    assert data.classes == 10 and data.mean == (0.2860,) and data.std == (0.3530,)
    for split, n in ((data.train, 60000), (data.test, 10000)):
        assert (
            split.inputs.shape == (n, 1, 28, 28) and split.inputs.dtype == torch.uint8 and split.inputs.is_contiguous()
        )
        assert split.targets.dtype == torch.int64
        assert torch.bincount(split.targets).tolist() == [n // 10] * 10
    assert data.train.targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert data.test.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    # An ankle boot: its top right corner is empty and its sole, near the bottom, is not.
    boot = data.train.inputs[0, 0]
    assert boot[3].tolist() == [0] * 12 + [1, 0, 0, 13, 73, 0, 0, 1, 4, 0, 0, 0, 0, 1, 1, 0]
    scaled = data.train.inputs.double() / 255
    assert scaled.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert scaled.std().item() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "."])
def test_files_in_data_pth_come_before_debians(tmp_path: Path, inside: str, compressed: bool) -> None:
    content = tiny()
    write(tmp_path / inside, content, compressed)
    data = load("fashion_mnist", data_pth=str(tmp_path))
    assert np.array_equal(data.train.inputs[:, 0].numpy(), content[TRAIN_IMAGES])
    assert np.array_equal(data.test.inputs[:, 0].numpy(), content[TEST_IMAGES])
    assert data.train.targets.tolist() == [9, 0, 3, 3, 1] and data.test.targets.tolist() == [4, 9]
    assert data.train.inputs.is_contiguous() and data.classes == 10


def test_an_incomplete_set_in_data_pth_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, {name: array for name, array in tiny().items() if name != TEST_LABELS})
    assert len(load("fashion_mnist", data_pth=str(tmp_path)).train) == 60000


def test_nowhere_and_no_network(tmp_path: Path, no_debian: None) -> None:
    with pytest.raises(UsageError) as caught:
        load("fashion_mnist", data_pth=str(tmp_path / "none"))
    text = str(caught.value)
    assert text.startswith(f"--data-pth {tmp_path}/none: Fashion-MNIST is not there and could not be downloaded (")
    assert f"{TEST_LABELS} in {tmp_path}/none/FashionMNIST/raw" in text and "\n" not in text
    assert not (tmp_path / "none").exists()


def test_missing_files_are_downloaded_once(tmp_path: Path, server: Path) -> None:
    said: list[str] = []
    root = tmp_path / "fresh"
    load("fashion_mnist", data_pth=str(root), message=said.append)
    data = load("fashion_mnist", data_pth=str(root), message=said.append)
    assert said == [f"downloading Fashion-MNIST into {root}"]
    assert data.train.targets.tolist() == [9, 0, 3, 3, 1]
    assert [path.name for path in root.iterdir()] == ["FashionMNIST"]


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_half_a_download_leaves_nothing(tmp_path: Path, server: Path, fault: str) -> None:
    last = server / f"{TRAIN_LABELS}.gz"
    if fault == "missing":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-4])
    with pytest.raises(UsageError, match="could not be downloaded"):
        load("fashion_mnist", data_pth=str(tmp_path / "fresh"))
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (f"{TRAIN_IMAGES}.gz", gzip.compress(idx(tiny()[TRAIN_IMAGES]))[:-20]),
        (f"{TRAIN_IMAGES}.gz", b"no gzip"),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(idx(tiny()[TRAIN_IMAGES])[:-1])),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(b"")),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(idx(tiny()[TRAIN_LABELS]))),
        (TEST_LABELS, idx(tiny()[TEST_LABELS]) + b"\0"),
        (TEST_LABELS, b"\0\0\x0d\x01" + idx(tiny()[TEST_LABELS])[4:]),
    ],
    ids=["cut off", "no gzip", "too short", "empty", "labels for images", "too long", "other type"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, tiny())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"^--data-pth {tmp_path}/{name} .*; fetch it anew$"):
        load("fashion_mnist", data_pth=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        (TRAIN_LABELS, np.zeros(4, np.uint8), r"images \[5, 28, 28\] and 4 labels up to 0"),
        (TRAIN_LABELS, np.array([9, 0, 3, 10, 1], np.uint8), r"images \[5, 28, 28\] and 5 labels up to 10"),
        (TEST_IMAGES, np.zeros((2, 32, 32), np.uint8), r"images \[2, 32, 32\] and 2 labels up to 9"),
        (TEST_IMAGES, np.zeros((0, 28, 28), np.uint8), r"images \[0, 28, 28\] and 2 labels up to 9"),
    ],
)
def test_a_foreign_set_is_refused(tmp_path: Path, name: str, array: Bytes, text: str) -> None:
    write(tmp_path, tiny() | {name: array})
    with pytest.raises(UsageError, match=f"^--data-pth {tmp_path} does not hold Fashion-MNIST: {text}, where"):
        load("fashion_mnist", data_pth=str(tmp_path))
