"""fastlocal partition: what it writes, prints and draws, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastlocal import partition
from fastlocal.data.datasets import load
from tests.helpers.command_line import run, tree
from tests.helpers.refusals import assert_refused

DIGITS = load("digits", data_pth=None).train.targets


def words(*more: object) -> list[object]:
    return ["partition", "--dataset", "digits", "--partition", "dirichlet", "--clients", 20, "--alpha", 0.4, *more]


@pytest.mark.needs("matplotlib")
def test_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastlocal", *words("--seed", 3, "--out", "parts.npz", "--plot", "parts.png")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert tree(tmp_path) == {"parts.npz", "parts.png"}
    parts, expected = partition.load(tmp_path / "parts.npz"), partition.dirichlet(DIGITS, clients=20, alpha=0.4, seed=3)
    assert np.array_equal(parts.indices, expected.indices) and parts.meta == expected.meta
    with Image.open(tmp_path / "parts.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    sizes, labels = parts.sizes, np.asarray(DIGITS)
    assert lines["clients"] == "20" and lines["samples"] == "1,437 of 1,437"
    assert (
        lines["size"] == f"min {sizes.min()}, median {np.median(sizes):g}, max {sizes.max()}, mean {sizes.mean():.1f}"
    )
    overall = np.bincount(labels) / len(labels)
    own = [np.bincount(labels[parts.samples_of(client)], minlength=10) for client in range(20)]
    skew = [float(np.abs(count / count.sum() - overall).sum() / 2) for count in own]
    assert lines["skew"].startswith(f"median {np.median(skew):.3f}, mean {np.mean(skew):.3f}, max {max(skew):.3f}")
    held = [int((count > 0).sum()) for count in own]
    assert lines["labels"] == f"min {min(held)}, median {np.median(held):g}, max {max(held)}, of 10"


def test_a_file_is_looked_at_and_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = run(capsys, *words("--out", tmp_path / "a.json"))
    looked = run(capsys, "partition", "--partition", tmp_path / "a.json", "--out", tmp_path / "b.npz")
    assert drawn.status == looked.status == 0
    assert drawn.out.splitlines()[:-1] == looked.out.splitlines()[:-1]
    a, b = (partition.load(tmp_path / name) for name in ("a.json", "b.npz"))
    assert np.array_equal(a.indices, b.indices) and np.array_equal(a.offsets, b.offsets)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--out", "parts.csv"], "--out parts.csv: name a file that ends in .npz or .json"),
        (["--plot", "parts.gif"], "--plot parts.gif: name a file that ends in .png or .svg or .pdf"),
        (["--out", "none/parts.npz"], "there is no folder none"),
        (["--out", "there.npz"], "--out there.npz: is there already; --overwrite replaces it"),
        (["--alpha", "0"], "--alpha 0.0: must be a number above 0"),
        (["--alpha", "nan"], "--alpha nan: must be a number above 0"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--clients", "2000"], "2000 clients with at least 1 samples each need 2000, of 1437"),
        (
            ["--partition", "classes", "--classes-per-client", "11"],
            "--alpha 0.4: means nothing with --partition classes",
        ),
        (["--partition", "shared"], "--partition shared: nobody owns samples then"),
        (["--partition", "there.npz"], "--alpha 0.4: means nothing with --partition there.npz"),
        (["--partition-as", "flwr"], "--partition-as"),
        (["--shard", "3"], "--shard"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_bytes(b"")
    out = [] if "--out" in more else ["--out", "parts.npz"]
    assert_refused(run(capsys, *words(*out, *more)), (says,))
    assert tree(tmp_path) == {"there.npz"}
