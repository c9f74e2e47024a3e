"""CIFAR as torchvision stores it: tiny archives in the real layout, on disk and behind a local server.

torchvision accepts files by their MD5 alone, so its tables of checksums and addresses are pointed at the tiny ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load

NOWHERE = "http://127.0.0.1:9/cifar.tar.gz"  # the discard port: refused at once


def images(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[n, 3072]: a row is the red plane, then green, then blue."""
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(path: Path, content: dict[str, Any]) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, md5(path)]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with five training batches of 2 images and a test batch of 3."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    train = [
        write(folder / f"data_batch_{i}", {"data": images(2, i), "labels": [i, 9 - i], "batch_label": str(i)})
        for i in range(1, 6)
    ]
    test = [write(folder / "test_batch", {"data": images(3, 6), "labels": [7, 0, 9]})]
    meta = write(folder / "batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]})
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    return tmp_path / "data"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a local server of `folder`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def archived(data: Path, folder: Path) -> Path:
    """The batches of `data` packed in `folder`, as they are published."""
    folder.mkdir()
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(data / "cifar-10-batches-py", "cifar-10-batches-py")
    return path


def test_planes_order_and_labels(cifar10: Path) -> None:
    data = load("cifar10", data_pth=str(cifar10))
    stored = np.concatenate([images(2, i) for i in range(1, 6)])
    assert np.array_equal(data.train.inputs.numpy(), stored.reshape(10, 3, 32, 32))
    assert np.array_equal(data.test.inputs.numpy(), images(3, 6).reshape(3, 3, 32, 32))
    assert data.train.inputs[4, 1, 2, 3] == images(2, 3)[0, 1024 + 2 * 32 + 3]
    assert data.train.targets.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    assert data.test.targets.tolist() == [7, 0, 9]
    for split in (data.train, data.test):
        assert split.inputs.dtype == torch.uint8 and split.inputs.is_contiguous() and split.targets.dtype == torch.int64
    assert data.classes == 10
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)


def test_cifar100_has_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    batch = {"data": images(4, 0), "fine_labels": [99, 0, 50, 98], "coarse_labels": [1, 2, 3, 4]}
    monkeypatch.setattr(CIFAR100, "train_list", [write(folder / "train", batch)])
    monkeypatch.setattr(CIFAR100, "test_list", [write(folder / "test", batch | {"fine_labels": [3, 2, 1, 0]})])
    meta = write(folder / "meta", {"fine_label_names": [str(label) for label in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": meta[1]})
    data = load("cifar100", data_pth=str(tmp_path))
    assert data.train.targets.tolist() == [99, 0, 50, 98] and data.test.targets.tolist() == [3, 2, 1, 0]
    assert np.array_equal(data.train.inputs.numpy(), images(4, 0).reshape(4, 3, 32, 32))
    assert data.classes == 100
    assert data.mean == (0.5071, 0.4867, 0.4408) and data.std == (0.2675, 0.2565, 0.2761)


def test_the_default_folder_is_data(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cifar10.parent)
    assert len(load("cifar10", data_pth=None).train) == 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_files_and_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    monkeypatch.setattr(reader, "url", NOWHERE)
    root = tmp_path / "deep" / "data"
    with pytest.raises(UsageError) as caught:
        load(name, data_pth=str(root))
    text = str(caught.value)
    assert text.startswith(f"--data-pth {root}: CIFAR-{name[5:]} is not there and could not be downloaded (")
    assert str(root / reader.base_folder) in text and reader.filename in text and "\n" not in text
    assert not root.exists()


@pytest.mark.parametrize("damaged", ["data_batch_3", "test_batch"])
def test_a_damaged_batch_is_not_read(cifar10: Path, damaged: str) -> None:
    path = cifar10 / "cifar-10-batches-py" / damaged
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match=f"^--data-pth {cifar10}: CIFAR-10 is not there and could not be downloaded"):
        load("cifar10", data_pth=str(cifar10))


def test_missing_files_are_downloaded_once(cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archived(cifar10, tmp_path / "server")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    said: list[str] = []
    root = tmp_path / "fresh"
    with served(archive.parent) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}/{archive.name}")
        first = load("cifar10", data_pth=str(root), message=said.append)
    assert said == [f"downloading CIFAR-10 into {root}"]
    second = load("cifar10", data_pth=str(root), message=said.append)
    assert len(said) == 1
    assert torch.equal(first.train.inputs, second.train.inputs) and len(first.test) == 3


def test_half_a_download_leaves_nothing(cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archived(cifar10, tmp_path / "server")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    archive.write_bytes(archive.read_bytes()[:-500])
    with served(archive.parent) as address, pytest.raises(UsageError, match="could not be downloaded"):
        monkeypatch.setattr(CIFAR10, "url", f"{address}/{archive.name}")
        load("cifar10", data_pth=str(tmp_path / "fresh"))
    assert not (tmp_path / "fresh").exists()


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "set.npz").touch()
    with pytest.raises(UsageError, match="^--data-pth .*set.npz: CIFAR-10 is not there and could not be downloaded"):
        load("cifar10", data_pth=str(tmp_path / "set.npz"))
