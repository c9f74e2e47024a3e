"""What files made by `fastlocal prepare` have in common: where they lie, and what their manifests say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.manifest import Manifest, verified

HALVES = (("--train-pth", "train"), ("--val-pth", "val"))


def places(request: DatasetSpec, suffix: str) -> list[tuple[str, Path]]:
    """(flag, file) of the training and the test half: those given, else train and val in --data-pth."""
    found = []
    for (flag, name), given in zip(HALVES, (request.train_pth, request.val_pth), strict=True):
        if given is None and request.data_pth is None:
            raise UsageError(
                f"{flag} is needed with --dataset {request.name}: a {suffix} file that `fastlocal prepare` wrote, or "
                f"--data-pth with the folder of train{suffix} and val{suffix}"
            )
        file = Path(request.data_pth or "", name + suffix) if given is None else Path(given)
        flag = "--data-pth" if given is None else flag
        file = file.expanduser()
        if not file.is_file():
            is_not = "is a folder" if file.is_dir() else "does not exist"
            raise UsageError(f"{flag} {file} {is_not}; a {suffix} file is expected, as `fastlocal prepare` writes")
        found.append((flag, file))
    return found


def manifests(request: DatasetSpec, halves: Sequence[tuple[str, Path]]) -> list[Manifest | None]:
    """Of both halves, or None for one that has none. Raises UsageError where they contradict their files or another."""
    found = [verified(flag, path, request.name, whole=request.verify_checksums) for flag, path in halves]
    train, test = found
    if train is None or test is None or train.class_names is None or test.class_names is None:
        return found
    odd = sorted(set(train.class_names) ^ set(test.class_names))
    if odd or train.class_names != test.class_names:
        which = f"class {odd[0]!r} is in one of them only" if odd else "they number their classes differently"
        raise UsageError(f"{halves[0][0]} {halves[0][1]} and {halves[1][1]}: {which}; prepare both together")
    return found


def labels(origin: str, values: np.ndarray[Any, Any], manifest: Manifest | None) -> Tensor:
    """int64 [n]; raises UsageError where they do not count from 0, or not as far as the manifest says."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= 2**31:
        raise UsageError(f"{origin}: holds the label {lowest if lowest < 0 else highest}; labels count from 0")
    if manifest is not None and (highest >= manifest.classes or len(values) != manifest.count):
        said = f"{manifest.count} samples of {manifest.classes} classes"
        raise UsageError(
            f"{origin}: its manifest says {said}, it holds {len(values)} with labels up to {highest}; prepare it again"
        )
    return torch.from_numpy(values.astype(np.int64))


def classes(manifest: Manifest | None, halves: Sequence[Tensor]) -> int:
    """Number of labels: as prepared, else the largest label + 1."""
    return int(max(half.max() for half in halves)) + 1 if manifest is None else manifest.classes


def normalisation(manifest: Manifest | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std as prepared, None for what the images are to be read for."""
    return (None, None) if manifest is None or min(manifest.std) == 0 else (manifest.mean, manifest.std)
