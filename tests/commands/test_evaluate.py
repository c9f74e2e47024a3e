"""fastlocal evaluate: what a training run wrote evaluates to what it said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastlocal.models import build
from tests.helpers.command_line import metrics, run, train_words, write_npz

FORMAT = re.compile(r"val_acc1 [01]\.\d{4} val_loss \d+\.\d{4}\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz", channels=3)


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        ("--model mlp", ""),
        ("--model mlp --precision fp64 --mean 0.1 0.2 0.3 --std 0.5 0.5 0.25", ""),
        ("--model cnn --precision bf16", ""),
        ("--model resnet20 --bn-batches 3 --momentum 0.9", "--start-lr 0.1 --steps-per-epoch 2"),
        ("--model resnet20_gn --n-groups 4", "--start-lr 0.1 --steps-per-epoch 1"),
    ],
)
def test_the_last_line_of_a_run(
    flags: str, own: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *train_words(data, tmp_path / "run"), *flags.split(), *own.split()).status == 0
    row = metrics(tmp_path / "run")[-1]
    shared = flags.replace("--bn-batches 3 --momentum 0.9", "").split()
    words = ("--dataset", "npz", "--data-pth", data, "--device", "cpu", *shared)
    outcome = run(capsys, "evaluate", tmp_path / "run" / "latest.pt", *words)
    assert outcome.status == 0, outcome.err
    assert outcome.out == f"val_acc1 {row['val_acc1']:.4f} val_loss {row['val_loss']:.4f}\n"
    assert FORMAT.fullmatch(outcome.out) and outcome.err == ""


def test_the_shipped_digits_are_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "train --rounds 1 --eval-freq1 1 --device cpu --log-pth".split()
    assert run(capsys, *words, tmp_path / "run").status == 0
    row = metrics(tmp_path / "run")[-1]
    outcome = run(capsys, "evaluate", tmp_path / "run" / "latest.pt")
    assert outcome.out == f"val_acc1 {row['val_acc1']:.4f} val_loss {row['val_loss']:.4f}\n"


def test_flags_before_the_checkpoint(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--mean and --std take any number of values, but a file name is none of them."""
    path = tmp_path / "start.pt"
    torch.save(build("mlp", in_channels=3, classes=4, image_size=(8, 8)).state_dict(), path)
    words = ["--dataset", "npz", "--data-pth", str(data), "--device", "cpu"]
    mean, std = ["--mean", "0.1", "0.2", "0.3"], ["--std=0.5,0.5,0.5"]
    first = run(capsys, "evaluate", path, *words, *mean, *std)
    assert first.status == 0, first.err
    for order in ((*words, *std, *mean, path), (*words, path, *std, *mean), (*mean, path, *words, *std)):
        assert run(capsys, "evaluate", *order).out == first.out
    assert run(capsys, "evaluate", path, *words).out != first.out


def test_a_checkpoint_of_more_classes_than_the_labels(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ten.pt"
    torch.save(build("cnn", in_channels=3, classes=10, image_size=(8, 8)).state_dict(), path)
    words = ("--dataset", "npz", "--data-pth", data, "--model", "cnn")
    assert FORMAT.fullmatch(run(capsys, "evaluate", path, *words).out)
    torch.save(build("cnn", in_channels=3, classes=3, image_size=(8, 8)).state_dict(), path)
    outcome = run(capsys, "evaluate", path, *words)
    assert outcome.status == 2 and "'linear.weight' has shape (3, 128), the model needs (4, 128)" in outcome.err


def test_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "evaluate", tmp_path / "missing.pt")
    assert outcome.status == 2 and "missing.pt" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model resnet21", ("--model", "resnet21", "did you mean")),
        ("--model cnn", ("'conv1.weight' is missing", "'hidden.weight'")),
        ("--model resnet20_gn --n-groups 5", ("--n-groups 5", "divide")),
        ("--n-groups 0", ("--n-groups 0", "at least 1")),
        ("--dataset numpy", ("--dataset", "numpy")),
        ("--data-pth missing.npz", ("--data-pth", "missing.npz")),
        ("--mean 0.5", ("--mean", "3 value")),
        ("--std 0 0 0", ("--std", "above 0")),
        ("--device tpu", ("--device tpu", "cpu, cuda")),
        ("--precision tf32", ("--precision tf32", "fp32")),
        ("--dataset digits", ("'hidden.weight' has shape (128, 192), the model needs (128, 64)",)),
        ("--batch-size 5", ("unknown flag --batch-size",)),
    ],
)
def test_mistakes(
    flags: str, says: tuple[str, ...], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "start.pt"
    torch.save(build("mlp", in_channels=3, classes=4, image_size=(8, 8)).state_dict(), path)
    outcome = run(capsys, "evaluate", path, "--dataset", "npz", "--data-pth", data, "--device", "cpu", *flags.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("fastlocal: error: ") and outcome.err.count("\n") == 1
    for part in says:
        assert part in outcome.err
