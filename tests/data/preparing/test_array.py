"""`fastlocal prepare --format array`: what is written is what the data set's own reader has, killed or not."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.normalization import channel_statistics
from fastlocal.data.types import DataSet, Split, StoredSplit
from tests.helpers.command_line import Outcome, run, train_words, tree, write_npz
from tests.helpers.fork_server import ForkServer

FILES = {"train.npy", "train.npy.json", "train_labels.npy", "val.npy", "val.npy.json", "val_labels.npy"}


def prepare(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    return run(capsys, "prepare", "--format", "array", *words)


def inputs(data: DataSet) -> list[torch.Tensor]:
    assert isinstance(data.train, Split) and isinstance(data.test, Split)
    return [data.train.inputs, data.train.targets, data.test.inputs, data.test.targets]


def same(one: DataSet, other: DataSet) -> bool:
    return all(map(torch.equal, inputs(one), inputs(other)))


def image_folder(folder: Path, odd: str | None = None, size: tuple[int, int] = (12, 10)) -> Path:
    """Two classes of three images of noise in each half, 12x10 pixels apart from the file `odd`."""
    noise = np.random.default_rng(0)
    for name in [f"{half}/{label}/{i}.png" for half in ("train", "test") for label in ("cat", "dog") for i in range(3)]:
        width, height = size if name == odd else (12, 10)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "x.npz")


@pytest.fixture
def prepared(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of arrays made of `npz`."""
    outcome = prepare(capsys, "--dataset", "npz", "--data-pth", npz, "--out", tmp_path / "a")
    assert outcome.status == 0, outcome.err
    return tmp_path / "a"


def test_arrays_hold_what_was_read_and_say_so_in_their_manifest(npz: Path, prepared: Path) -> None:
    own, data = load("npz", data_pth=str(npz)), load("array", data_pth=str(prepared))
    assert tree(prepared) == FILES and same(own, data)
    assert (data.classes, data.mean, data.std) == (own.classes, own.mean, own.std)
    assert isinstance(data.train, Split) and data.train.mapped and data.train.resident_bytes == 0
    said = json.loads((prepared / "train.npy.json").read_text())
    assert (said["count"], said["classes"], said["shape"]) == (64, 4, [1, 8, 8])
    assert said["source"] == {"dataset": "npz", "data_pth": str(npz)}


def test_a_run_on_the_array_is_the_run_on_its_source(
    npz: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_words(npz, tmp_path / "one")
    assert run(capsys, *words).status == 0
    changed = [str(prepared) if word == str(npz) else "array" if word == "npz" else word for word in words]
    changed[changed.index(str(tmp_path / "one"))] = str(tmp_path / "two")
    assert run(capsys, *changed).status == 0
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == (tmp_path / "two" / "metrics.jsonl").read_text()


def test_stored_halves_are_read_image_by_image_by_any_process(prepared: Path) -> None:
    data, stored = load("array", data_pth=str(prepared)), load("array", data_pth=str(prepared), lazy=True)
    assert isinstance(data.train, Split) and isinstance(stored.train, StoredSplit)
    images = pickle.loads(pickle.dumps(stored.train.images))
    assert np.array_equal(images.read(5), data.train.inputs[5].permute(1, 2, 0).numpy())
    assert stored.train.sample_shape == (1, 8, 8) and images.read_encoded(5) is None


def test_image_files_are_brought_to_squares_and_keep_their_class_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "images", odd="train/dog/1.png", size=(30, 20))
    words = ("--data-pth", folder, "--out", tmp_path / "a", "--workers", 2)
    outcome = prepare(capsys, *words)
    assert outcome.status == 2 and "train/dog/1.png is 30x20 pixels (width x height), the first 12x10" in outcome.err
    assert prepare(capsys, *words, "--image-size", 8).status == 0
    data = load("array", data_pth=str(tmp_path / "a"))
    own = load("image_folder", data_pth=str(folder), image_size=8, workers=1)
    assert same(own, data) and data.class_names == ("cat", "dog")
    assert isinstance(data.train, Split) and data.mean == channel_statistics(data.train.inputs)[0]


def test_the_same_command_twice_writes_once(npz: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (prepared / "train.npy").stat().st_mtime_ns
    outcome = prepare(capsys, "--dataset", "npz", "--data-pth", npz, "--out", prepared)
    assert outcome.status == 0 and "train.npy is there already" in outcome.err
    assert (prepared / "train.npy").stat().st_mtime_ns == before


def test_other_data_are_replaced_only_when_asked(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset", "digits", "--out", prepared)
    outcome = prepare(capsys, *words)
    assert outcome.status == 2 and "holds a train.npy of other data or settings; --overwrite" in outcome.err
    assert prepare(capsys, *words, "--overwrite").status == 0
    assert same(load("digits", data_pth=None), load("array", data_pth=str(prepared)))


def refused(folder: Path, **asked: bool) -> str:
    with pytest.raises(UsageError) as caught:
        load("array", data_pth=str(folder), **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_no_longer_matches_its_manifest_is_refused(prepared: Path) -> None:
    path = prepared / "train.npy"
    status, content = path.stat(), path.read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert "train.npy: its content does not match its manifest train.npy.json; prepare it again" in refused(prepared)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    load("array", data_pth=str(prepared))
    assert "its content does not match" in refused(prepared, verify_checksums=True)
    path.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes, {len(content)} expected" in refused(prepared)
    path.write_bytes(content)
    assert load("array", data_pth=str(prepared)).classes == 4
    noted = json.loads((prepared / "train.npy.json").read_text())
    assert noted["files"]["train.npy"]["mtime_ns"] == path.stat().st_mtime_ns, "is not read as a whole the next time"


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda folder: (folder / "val.npy").unlink(), r"val\.npy does not exist; a \.npy file is expected"),
        (lambda folder: (folder / "val.npy.json").unlink(), r"has no manifest val\.npy\.json; `fastlocal prepare`"),
        (lambda folder: (folder / "val.npy.json").write_text("{"), "its manifest val.npy.json cannot be read"),
        (lambda folder: (folder / "val_labels.npy").unlink(), "val_labels.npy: is in the manifest .*No such file"),
    ],
)
def test_what_is_missing_is_named(prepared: Path, broken: object, message: str) -> None:
    assert callable(broken)
    broken(prepared)
    with pytest.raises(UsageError, match=message):
        load("array", data_pth=str(prepared))


def test_halves_of_different_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, other in (("one", "dog"), ("two", "fox")):
        folder = image_folder(tmp_path / name)
        for half in ("train", "test"):
            (folder / half / "dog").rename(folder / half / other)
        assert prepare(capsys, "--data-pth", folder, "--out", tmp_path / f"{name}.a").status == 0
    with pytest.raises(UsageError, match=r"train\.npy and .*two\.a/val\.npy: class 'dog' is in one of them only"):
        load("array", data_pth=None, train_pth=f"{tmp_path}/one.a/train.npy", val_pth=f"{tmp_path}/two.a/val.npy")


@pytest.mark.parametrize(
    "words, message",
    [
        (("--quality", 50), "--quality: is for --format beton"),
        (("--format", "beton", "--quality", 50), "--quality: means nothing with --write-mode raw"),
        (("--format", "beton", "--jpeg-share", 0.1), "--jpeg-share: means nothing with --write-mode raw"),
        (("--format", "beton", "--write-mode", "smart"), "--write-mode smart: give --smart-threshold, the bytes"),
        (("--format", "beton", "--smart-threshold", 9), "--smart-threshold: means nothing with --write-mode raw"),
        (("--smart-threshold", -1), "--smart-threshold -1: must be a number of bytes from 0 on"),
        (("--jpeg-share", 1.5), "--jpeg-share 1.5: must be a share from 0 to 1"),
        (("--workers", 0), "--workers 0: must be from 1 to 1024"),
        (("--dataset", "nothing"), "--dataset 'nothing' is unknown"),
        (("--qualty", 3), "unknown flag --qualty; did you mean '--quality'?"),
    ],
)
def test_mistakes_are_one_line_and_make_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], message: str
) -> None:
    outcome = prepare(capsys, "--data-pth", tmp_path, "--out", tmp_path / "a", *words)
    assert outcome.status == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert tree(tmp_path) == set()


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "images")
    bad = folder / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:80])
    outcome = prepare(capsys, "--data-pth", folder, "--out", tmp_path / "a", "--workers", 2)
    assert outcome.status == 2 and f"{bad} cannot be decoded" in outcome.err
    assert not {"train.npy", "train.npy.json"} & tree(tmp_path / "a")


def killed_at(fork_server: ForkServer, moment: int, words: list[str], partial: Path) -> bool:
    """A `prepare` that is killed, with SIGKILL, as soon as `partial` has `moment` bytes; whether it was still at it."""
    process = fork_server.start(["prepare", *words], partial.parent.with_suffix(".log"))
    while process.running() and (not partial.exists() or partial.stat().st_size < moment):
        time.sleep(0.0005)
    process.send(signal.SIGKILL)
    return process.status() == -signal.SIGKILL


def test_a_killed_run_leaves_nothing_to_train_on_and_goes_on_where_it_was(
    fork_server: ForkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(10_000) % 4
    rows = np.arange(64, dtype=np.uint8)[:, None] + labels.astype(np.uint8)[:, None, None]
    images = np.broadcast_to(rows, (10_000, 64, 64))
    many = write_npz(tmp_path / "many.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    words = ["--dataset", "npz", "--data-pth", str(many), "--format", "array", "--out"]

    def killed(out: Path) -> bool:
        for moment in (1, 20 << 20):
            if not killed_at(fork_server, moment, [*words, str(out)], out / "train.npy.partial"):
                return False
            with pytest.raises(UsageError, match=r"train\.npy does not exist"):
                load("array", data_pth=str(out))
        return True

    out = next((path for path in (tmp_path / str(number) for number in range(5)) if killed(path)), None)
    assert out is not None, "each time it was over before it was killed"
    outcome = prepare(capsys, *words[:4], "--out", out)
    assert outcome.status == 0 and "going on after " in outcome.err
    assert int(outcome.err.split("going on after ")[1].split()[0]) >= (16 << 20) // 64**2
    assert tree(out) == FILES
    own, data = load("npz", data_pth=str(many)), load("array", data_pth=str(out), verify_checksums=True)
    assert same(own, data) and (data.mean, data.std) == (own.mean, own.std)


def test_what_was_prepared_from_files_that_have_changed_is_not_there_already(
    npz: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dataset", "array", "--data-pth", prepared, "--out", tmp_path / "again")
    assert prepare(capsys, *words).status == 0 and "is there already" in prepare(capsys, *words).err
    with np.load(npz) as stored:
        arrays = dict(stored)
    np.savez(npz, **arrays | {"x_train": 255 - arrays["x_train"]})
    assert prepare(capsys, "--dataset", "npz", "--data-pth", npz, "--out", prepared, "--overwrite").status == 0
    outcome = prepare(capsys, *words)
    assert outcome.status == 2 and "holds a train.npy of other data or settings; --overwrite" in outcome.err
    assert prepare(capsys, *words, "--overwrite").status == 0
    assert same(load("array", data_pth=str(prepared)), load("array", data_pth=str(tmp_path / "again")))


def test_a_link_to_itself_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "train" / "dog" / "loop.png").symlink_to("loop.png")
    outcome = prepare(capsys, "--data-pth", folder, "--out", tmp_path / "a")
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and "dog/loop.png" in outcome.err
