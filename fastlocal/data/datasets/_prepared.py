"""Common code for files of `fastlocal prepare`: their places and manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.manifest import Manifest, check_manifest

SPLITS = (("--train-pth", "train"), ("--val-pth", "val"))


def split_files(request: DatasetSpec, suffix: str) -> list[tuple[str, Path]]:
    """Return (flag, file) of the training and the test split: from their flags, else train and val in --data-pth."""
    found = []
    for (flag, name), path in zip(SPLITS, (request.train_pth, request.val_pth), strict=True):
        if path is None and request.data_pth is None:
            raise UsageError(
                f"{flag} is needed with --dataset {request.name}: a {suffix} file that `fastlocal prepare` wrote, or "
                f"--data-pth with the folder of train{suffix} and val{suffix}"
            )
        file = Path(request.data_pth or "", name + suffix) if path is None else Path(path)
        flag = "--data-pth" if path is None else flag
        file = file.expanduser()
        if not file.is_file():
            problem = "is a folder" if file.is_dir() else "does not exist"
            raise UsageError(f"{flag} {file} {problem}; a {suffix} file is expected, as `fastlocal prepare` writes")
        found.append((flag, file))
    return found


def read_manifests(request: DatasetSpec, files: Sequence[tuple[str, Path]]) -> list[Manifest | None]:
    """Return the manifests of both splits, None for a file without one.

    Raises:
        UsageError: A manifest contradicts its file or the other manifest.
    """
    checksums = request.verify_checksums
    found = [check_manifest(flag, path, request.name, verify_checksums=checksums) for flag, path in files]
    train, test = found
    if train is None or test is None or train.class_names is None or test.class_names is None:
        return found
    odd = sorted(set(train.class_names) ^ set(test.class_names))
    if odd or train.class_names != test.class_names:
        which = f"class {odd[0]!r} is in one of them only" if odd else "they number their classes differently"
        raise UsageError(f"{files[0][0]} {files[0][1]} and {files[1][1]}: {which}; prepare both together")
    return found


def to_labels(origin: str, values: np.ndarray[Any, Any], manifest: Manifest | None) -> Tensor:
    """Convert labels to int64 [n]; raises UsageError if they are negative or contradict the manifest."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= 2**31:
        raise UsageError(f"{origin}: holds the label {lowest if lowest < 0 else highest}; labels count from 0")
    if manifest is not None and (highest >= manifest.classes or len(values) != manifest.count):
        expected = f"{manifest.count} samples of {manifest.classes} classes"
        content = f"{len(values)} with labels up to {highest}"
        raise UsageError(f"{origin}: its manifest says {expected}, it holds {content}; prepare it again")
    return torch.from_numpy(values.astype(np.int64))


def count_classes(manifest: Manifest | None, labels: Sequence[Tensor]) -> int:
    """Return the number of labels: from the manifest, else the largest label + 1."""
    return int(max(each.max() for each in labels)) + 1 if manifest is None else manifest.classes


def stored_normalisation(manifest: Manifest | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std of the manifest, or None if they are to be computed."""
    return (None, None) if manifest is None or min(manifest.std) == 0 else (manifest.mean, manifest.std)
