"""Classes that no training sample has are refused, whatever holds the labels, before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.preparing.array import write_array
from fastlocal.data.preparing.beton import BetonSettings, write_beton
from fastlocal.data.preparing.split_to_write import SplitToWrite
from tests.data import sources
from tests.helpers.command_line import arrays, run, tree, write_npz

SIZES = ("--batch-size", 4, "--clients", 2, "--device", "cpu")


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: object) -> str:
    before = tree(tmp_path)
    outcome = run(capsys, *words)
    assert outcome.status == 2 and outcome.err.startswith("fastlocal: error: ") and outcome.err.count("\n") == 1
    assert tree(tmp_path) == before
    return outcome.err


def test_of_arrays_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = arrays()
    gap = write_npz(tmp_path / "gap.npz", y_train=np.where(held["y_train"] == 2, 0, held["y_train"]))
    above = write_npz(tmp_path / "above.npz", y_test=held["y_test"] + 3)
    train = ("train", "--dataset", "npz", *SIZES, "--log-pth", tmp_path / "run")
    said = refused(capsys, tmp_path, *train, "--data-pth", gap)
    assert f"--data-pth {gap}: class 2 of 4 has no training sample" in said
    said = refused(capsys, tmp_path, *train, "--data-pth", above)
    assert "class 4 and 2 more of 7 has no training sample" in said  # which only the test half has
    said = refused(capsys, tmp_path, "prepare", "--dataset", "npz", "--data-pth", gap, "--out", tmp_path / "out")
    assert f"--data-pth {gap}: class 2 of 4 has no training sample" in said


def half(name: str, classes: tuple[str, ...], missing: int | None) -> SplitToWrite:
    images = ArrayImages(sources.cifar(24).inputs)
    targets = torch.arange(24) % len(classes)
    if missing is not None:
        targets[targets == missing] = 0
    return SplitToWrite(name, images, targets, len(classes), classes, {}, {})


def files(folder: Path, format: str, halves: Sequence[SplitToWrite]) -> list[Path]:
    if format == "array":
        return [write_array(one, folder, 1, lambda count, done: None) for one in halves]
    settings = BetonSettings("raw", None, 90, 0.5)
    return [write_beton(one, folder, settings, sources.writer(), lambda done: None) for one in halves]


@pytest.mark.parametrize("format", ["array", pytest.param("beton", marks=pytest.mark.needs("ffcv"))])
def test_of_prepared_files(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    animals = ("cat", "dog", "owl")
    other = dataclasses.replace(half("train", ("cat", "dog", "fox"), None), name="other")
    train, foxes, val = files(tmp_path, format, [half("train", animals, 1), other, half("val", animals, None)])
    words = ("train", "--dataset", format, *SIZES, "--log-pth", tmp_path / "run", "--val-pth", val)
    said = refused(capsys, tmp_path, *words, "--train-pth", train)
    assert f"--train-pth {train}: class 1 (dog) of 3 has no training sample" in said
    said = refused(capsys, tmp_path, *words, "--train-pth", foxes)
    assert "class 'fox' is in one of them only; prepare both together" in said
