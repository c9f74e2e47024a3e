"""The cached array of an image folder: used again while it fits, made anew when not, never accepted half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.types import DataSet


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 4, 3), level, dtype=np.uint8)
    pixels[0] = 255 - level
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for level, place in enumerate(("train/a/0", "train/a/1", "train/b/0", "test/a/0", "test/b/0")):
        save(tmp_path / "data" / f"{place}.png", level)
    return tmp_path / "data"


def levels(data: DataSet) -> list[int]:
    return torch.cat([data.train.inputs, data.test.inputs])[:, 0, -1, -1].tolist()


class Loader:
    """Loads, and tells whether that meant decoding."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, root: Path, image_size: int | None = None) -> tuple[list[int], bool]:
        self.said.clear()
        data = load("image_folder", data_pth=str(root), image_size=image_size, message=self.said.append)
        assert len(self.said) == 1
        return levels(data), self.said[0].startswith("decoded 5 images") or self.said[0].startswith("decoded 6 images")


@pytest.fixture
def start() -> Loader:
    return Loader()


def the_array(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_the_second_start_decodes_nothing(root: Path, start: Loader) -> None:
    assert start(root) == ([0, 1, 2, 3, 4], True)
    before = the_array(root / ".fastlocal_cache").stat()
    assert start(root) == ([0, 1, 2, 3, 4], False)
    assert start.said == [f"decoded images are read from {the_array(root / '.fastlocal_cache')}"]
    assert the_array(root / ".fastlocal_cache").stat() == before
    assert sorted(path.suffix for path in (root / ".fastlocal_cache").iterdir()) == ["", ".json", ".npy"]


def test_what_is_done_to_a_tensor_does_not_reach_the_cache(root: Path, start: Loader) -> None:
    for _ in range(2):
        load("image_folder", data_pth=str(root)).train.inputs.fill_(99)
    assert start(root) == ([0, 1, 2, 3, 4], False)


def change_pixels(root: Path) -> list[int]:
    path = root / "train" / "a" / "1.png"
    status = path.stat()
    save(path, 77)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return [0, 77, 2, 3, 4]


def add_file(root: Path) -> list[int]:
    save(root / "test" / "a" / "1.png", 66)
    return [0, 1, 2, 3, 66, 4]


def rename_file(root: Path) -> list[int]:
    (root / "train" / "a" / "0.png").rename(root / "train" / "a" / "2.png")
    return [1, 0, 2, 3, 4]


def swap_files(root: Path) -> list[int]:
    """Two files change places between the classes and keep their times."""
    a, b, spare = (root / "train" / name for name in ("a/1.png", "b/0.png", "a/spare"))
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    return [0, 2, 1, 3, 4]


@pytest.mark.parametrize("change", [change_pixels, add_file, rename_file, swap_files])
def test_a_stale_cache_is_made_anew(root: Path, start: Loader, change: Callable[[Path], list[int]]) -> None:
    start(root)
    expected = change(root)
    assert start(root) == (expected, True)
    assert start(root) == (expected, False)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", flip_byte),
        (".npy", truncate),
        (".npy", empty),
        (".npy", Path.unlink),
        (".json", truncate),
        (".json", lambda path: path.write_text("[1, 2]")),
        (".json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_made_anew(root: Path, start: Loader, suffix: str, damage: Callable[[Path], object]) -> None:
    start(root)
    damage(the_array(root / ".fastlocal_cache").with_suffix(suffix))
    assert start(root) == ([0, 1, 2, 3, 4], True)


def test_an_array_beside_another_ones_manifest_is_not_accepted(root: Path, start: Loader) -> None:
    """What a crash between the two renames leaves."""
    start(root)
    array = the_array(root / ".fastlocal_cache")
    np.save(array, 255 - np.load(array))
    assert start(root) == ([0, 1, 2, 3, 4], True)


def test_sizes_have_their_own_arrays(root: Path, start: Loader) -> None:
    assert start(root) == ([0, 1, 2, 3, 4], True)
    small, decoding = start(root, image_size=2)
    assert decoding
    assert start(root) == ([0, 1, 2, 3, 4], False)
    assert start(root, image_size=2) == (small, False)


def test_the_cache_moves_with_the_data(root: Path, start: Loader, tmp_path: Path) -> None:
    start(root)
    root.rename(tmp_path / "moved")
    assert start(tmp_path / "moved") == ([0, 1, 2, 3, 4], False)


def test_data_that_cannot_be_written_is_cached_for_the_user(root: Path, start: Loader, own_cache: Path) -> None:
    (root / ".fastlocal_cache").touch()
    assert start(root) == ([0, 1, 2, 3, 4], True)
    assert the_array(own_cache / "fastlocal").is_file()
    assert start(root) == ([0, 1, 2, 3, 4], False)


def test_nowhere_to_write_is_said(root: Path, own_cache: Path) -> None:
    (root / ".fastlocal_cache").touch()
    own_cache.touch()
    with pytest.raises(
        UsageError, match=f"^--data-pth {root}: train: .* set XDG_CACHE_HOME to a folder that can be written$"
    ):
        load("image_folder", data_pth=str(root))


def test_the_manifest_says_what_the_array_is(root: Path, start: Loader) -> None:
    start(root)
    manifest = json.loads(the_array(root / ".fastlocal_cache").with_suffix(".json").read_text())
    assert manifest["shape"] == [5, 3, 4, 4] and set(manifest) == {"version", "fingerprint", "shape", "crc32"}
