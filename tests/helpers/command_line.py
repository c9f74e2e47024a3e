"""Small data and short runs for tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastlocal.cli import main


class Outcome(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """One command in this process."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return Outcome(status, printed.out, printed.err)


def arrays(*, train: int = 64, test: int = 16, side: int = 8, channels: int = 1, classes: int = 4) -> dict[str, Any]:
    """Images [n, side, side, channels] whose brightness tells their class, and labels."""
    random = np.random.default_rng(0)

    def half(n: int) -> tuple[Any, Any]:
        labels = np.arange(n) % classes
        noise = random.integers(0, 64, (n, side, side, channels))
        return (noise + 191 * labels[:, None, None, None] // max(classes - 1, 1)).astype(np.uint8), labels

    x_train, y_train = half(train)
    x_test, y_test = half(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def write_npz(path: Path, **changes: Any) -> Path:
    """An .npz data set; `changes` are sizes for `arrays`, or arrays in place of its own (None leaves one out)."""
    sizes = {name: changes.pop(name) for name in list(changes) if not name.startswith(("x_", "y_"))}
    held = arrays(**sizes) | changes
    np.savez(path, **{name: array for name, array in held.items() if array is not None})
    return path


def train_words(data: Path, directory: Path | str) -> list[str]:
    """Two clients of the perceptron, 8 samples each, for the four steps of one epoch: about 30 ms."""
    words = ["train", "--dataset", "npz", "--data-pth", str(data), "--log-pth", str(directory), "--device", "cpu"]
    return [*words, "--batch-size", "8", "--total-batch-size", "16", "--epochs", "1"]


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; each line must be whole."""
    text = (directory / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def tree(folder: Path) -> set[str]:
    """Every file and folder below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
