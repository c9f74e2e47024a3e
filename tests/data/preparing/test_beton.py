"""`fastlocal prepare --format beton`: FFCV's own writer, and files read back without it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.decode import decode_all
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.normalization import channel_statistics
from fastlocal.data.preparing.beton import BetonSettings, FfcvWriter, write_beton
from fastlocal.data.preparing.ffcv_writer import Job, Samples
from fastlocal.data.preparing.split_to_write import SplitToWrite
from fastlocal.data.types import BadSample, StoredImages, StoredSplit
from tests.helpers.command_line import run, tree, write_npz

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT / "tests" / "reference" / "cifar_sample.npz"
RAW_PIXELS = BetonSettings("raw", None, 90, 0.5)

pytestmark = pytest.mark.needs("ffcv")


def half(images: StoredImages, name: str = "train") -> SplitToWrite:
    targets = torch.arange(len(images)) % 3
    return SplitToWrite(name, images, targets, 3, ("a", "b", "c"), {"dataset": "npz"}, {})


def cifar(count: int) -> ArrayImages:
    return ArrayImages(torch.from_numpy(np.load(REAL)["x_train"][:count].transpose(0, 3, 1, 2).copy()))


@pytest.fixture(scope="module")
def writer() -> Iterator[FfcvWriter]:
    with FfcvWriter(workers=2) as process:
        yield process


def write(folder: Path, images: StoredImages, settings: BetonSettings, writer: FfcvWriter) -> BetonImages:
    folder.mkdir(exist_ok=True)
    done: list[int] = []
    path = write_beton(half(images), folder, settings, writer, done.append)
    assert sum(done) == len(images)
    return BetonImages(path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, writer: FfcvWriter) -> Path:
    """The folder of two hundred images, stored raw, as train.beton and val.beton."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("train", "val"):
        write_beton(half(cifar(200), name), folder, RAW_PIXELS, writer, lambda count: None)
    return folder


@pytest.fixture
def copied(raw: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    for path in raw.iterdir():
        target = tmp_path / path.name
        target.write_bytes(path.read_bytes())
        os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    return tmp_path


def test_raw_images_have_their_pixels_labels_and_statistics(raw: Path) -> None:
    assert tree(raw) == {f"{name}.beton{suffix}" for name in ("train", "val") for suffix in ("", ".json")}
    data = load("beton", data_pth=str(raw))
    assert isinstance(data.train, StoredSplit)
    decoded = decode_all(data.train)
    assert torch.equal(decoded.inputs, cifar(200).images) and decoded.targets.tolist() == [i % 3 for i in range(200)]
    assert (data.mean, data.std) == channel_statistics(decoded.inputs)
    assert data.classes == 3 and data.class_names == ("a", "b", "c")
    images = pickle.loads(pickle.dumps(data.train.images))
    assert np.array_equal(images.read(7), data.train.images.read(7)) and images.read_encoded(7) is None
    assert json.loads((raw / "train.beton.json").read_text())["shape"] == [3, 32, 32]


def test_ffcv_reads_the_same_metadata(raw: Path) -> None:
    from ffcv.reader import Reader

    theirs, ours = Reader(str(raw / "train.beton")), BetonImages(raw / "train.beton")
    assert theirs.field_names == [ours.image_field, ours.label_field] == ["image", "label"]
    assert np.array_equal(theirs.metadata["f1"], ours.labels)
    assert np.array_equal(theirs.metadata["f0"]["height"], ours.heights)


def test_jpegs_are_near_and_a_share_is_drawn_from_the_numbers_alone(tmp_path: Path, writer: FfcvWriter) -> None:
    settings = BetonSettings("proportion", None, 95, 0.25)
    two = write(tmp_path / "two", cifar(200), settings, writer)
    writer.workers = 1
    one = write(tmp_path / "one", cifar(200), settings, writer)
    writer.workers = 2
    compressed = [i for i in range(200) if two.read_encoded(i) is not None]
    assert 25 <= len(compressed) <= 75
    assert compressed == [i for i in range(200) if one.read_encoded(i) is not None]
    assert (two.read_encoded(compressed[0]) or b"")[:2] == b"\xff\xd8"
    for index in range(200):
        error = np.abs(two.read(index).astype(int) - cifar(200).read(index))
        assert error.mean() < 6 if index in compressed else not error.any()


def test_smart_stores_large_images_as_jpegs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even ones of more raw bytes than a page of the file holds."""
    pixels = cifar(4).images.permute(0, 2, 3, 1).numpy()
    for half, sides in (("train", (32, 33, 2000)), ("test", (20, 40, 60))):
        for index, side in enumerate(sides):
            path = tmp_path / "images" / half / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).resize((side, side)).save(path)
    words = ("--write-mode", "smart", "--smart-threshold", 32 * 32 * 3, "--workers", 1)
    outcome = run(capsys, "prepare", "--data-pth", tmp_path / "images", "--out", tmp_path / "out", *words)
    assert outcome.status == 0, outcome.err
    for name, compressed in (("train", {33, 2000}), ("val", {40, 60})):
        images = BetonImages(tmp_path / "out" / f"{name}.beton")
        found = {images.size(index)[0] for index in range(len(images)) if images.read_encoded(index) is not None}
        assert found == compressed
    settings = json.loads((tmp_path / "out" / "train.beton.json").read_text())["settings"]
    assert (settings["write_mode"], settings["smart_threshold"]) == ("smart", 3072)


def test_grey_images_become_rgb_and_large_ones_are_scaled_down(tmp_path: Path, writer: FfcvWriter) -> None:
    column = torch.arange(60, dtype=torch.uint8)[:, None].expand(5, 1, 60, 40).contiguous()
    images = write(tmp_path, ArrayImages(column), BetonSettings("jpg", 30, 90, 0.5), writer)
    assert images.size(4) == (30, 20) and images.read(4).shape == (30, 20, 3)
    assert np.abs(images.read(4)[:, 0, 1].astype(int) - np.arange(0.5, 60, 2)).max() <= 3


def spoilt(change: Callable[[bytearray], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(bytearray(path.read_bytes()))) and None


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(b""), r"is no \.beton file of version 2"),
        (lambda path: Image.new("RGB", (64, 64)).save(path, "png"), r"is no \.beton file of version 2"),
        (spoilt(lambda content: content[:-24000]), "is cut short"),
        (spoilt(lambda content: content[:3000]), "is cut short"),
        (spoilt(lambda content: content[:16] + bytes(8) + content[24:]), "was never finished; prepare it again"),
        (spoilt(lambda content: content[:24] + b"\xff" + content[25:]), "has a field of the unknown type 255"),
        (spoilt(lambda content: content[:24] + b"\x01" + content[25:]), r"is cut short|has no image field"),
        (lambda path: path.unlink(), r"train\.beton does not exist; a \.beton file is expected"),
    ],
)
def test_a_truncated_or_foreign_file_is_refused_in_one_line(
    copied: Path, spoil: Callable[[Path], None], message: str
) -> None:
    (copied / "train.beton.json").unlink()
    spoil(copied / "train.beton")
    with pytest.raises(UsageError, match=message) as caught:
        load("beton", data_pth=str(copied))
    assert "\n" not in str(caught.value) and "train.beton" in str(caught.value)


def test_a_file_that_is_not_what_its_manifest_says_is_refused(copied: Path) -> None:
    content = bytearray((copied / "train.beton").read_bytes())
    content[9 << 20] ^= 1
    (copied / "train.beton").write_bytes(content)
    with pytest.raises(UsageError, match="its content does not match its manifest train.beton.json"):
        load("beton", data_pth=str(copied))
    (copied / "train.beton.json").unlink()
    assert load("beton", data_pth=str(copied)).classes == 3, "as FFCV's own files, which have no manifest"


def test_an_image_of_which_scaling_leaves_nothing_is_named() -> None:
    thin = ArrayImages(torch.zeros(2, 3, 1, 90, dtype=torch.uint8))
    samples = Samples(Job("", thin, [0, 1], "raw", 30, 90, 0.5, None, 1))
    samples[1]
    assert samples.failure.value.startswith(b"image 1 cannot be decoded (of 90x1 pixels --max-resolution 30 leaves")


def test_a_damaged_jpeg_is_named_by_its_place(tmp_path: Path, writer: FfcvWriter) -> None:
    path = write(tmp_path, cifar(5), BetonSettings("jpg", None, 90, 0.5), writer).path
    images = BetonImages(path)
    jpeg = images.read_encoded(3)
    assert jpeg is not None
    path.write_bytes(path.read_bytes().replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(BadSample, match=r"sample 3 of .*train\.beton cannot be decoded"):
        BetonImages(path).read(3)


def test_a_corrupt_image_ends_the_writing_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [f"{half}/{label}/{i}.png" for half in ("train", "test") for label in "ab" for i in range(40)]:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + len(name), 9)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "train" / "b" / "7.png").write_bytes(b"no image")
    outcome = run(capsys, "prepare", "--data-pth", tmp_path / "images", "--out", tmp_path / "out", "--workers", 2)
    assert outcome.status == 2 and "train/b/7.png cannot be decoded" in outcome.err.splitlines()[-1]
    assert tree(tmp_path / "out") == set()


def running(word: str) -> list[str]:
    """Command lines of processes that name `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line and int(entry.name) != os.getpid():
                found.append(line)
    return found


def test_a_killed_run_leaves_no_file_to_train_on_and_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(6_000) % 4
    images = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (6_000, 64, 64, 3))
    many = write_npz(tmp_path / "many.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    out = tmp_path / "out"
    words = ["--dataset", "npz", "--data-pth", str(many), "--out", str(out), "--workers", "2"]
    partial = out / "train.beton.partial"
    # The writing process finds fastlocal on a path of its own, by which it and its workers are known.
    mark = tmp_path / "mark"
    mark.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(mark)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastlocal", "prepare", *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    while process.poll() is None and (not partial.exists() or partial.stat().st_size < 20 << 20):
        time.sleep(0.0005)
    assert running(str(mark))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before"
    with pytest.raises(UsageError, match=r"train\.beton does not exist"):
        load("beton", data_pth=str(out))
    with pytest.raises(UsageError, match="is no .beton file|was never finished|is cut short"):
        BetonImages(partial)
    end = time.monotonic() + 60
    while running(str(mark)):
        assert time.monotonic() < end
        time.sleep(0.02)
    outcome = run(capsys, "prepare", *words)
    assert outcome.status == 0, outcome.err
    assert tree(out) == {f"{name}.beton{suffix}" for name in ("train", "val") for suffix in ("", ".json")}
    data = load("beton", data_pth=str(out), verify_checksums=True)
    assert (len(data.train), len(data.test), data.classes) == (6_000, 8, 4)
