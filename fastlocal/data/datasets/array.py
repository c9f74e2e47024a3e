"""Images in one array per half, mapped from the disk: what `fastlocal prepare --format array` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._prepared import labels, manifests, normalisation, places
from fastlocal.data.images.mapped import MappedImages
from fastlocal.data.manifest import Manifest, manifest_of
from fastlocal.data.types import DataSet, Split, StoredSplit


def labels_of(path: Path) -> Path:
    """Where the labels of an array of images lie: train_labels.npy beside train.npy."""
    return path.with_name(f"{path.stem}_labels.npy")


def read(request: DatasetSpec) -> DataSet:
    """Images of `train_pth` and `val_pth`, else of train.npy and val.npy in `data_pth`, paged in as they are used.

    Raises UsageError naming the flag for an array without a manifest, and for one that is not what its manifest says.
    """
    halves = places(request, ".npy")
    noted = manifests(request, halves)
    splits = [_split(request, flag, path, manifest) for (flag, path), manifest in zip(halves, noted, strict=True)]
    if splits[0].sample_shape != splits[1].sample_shape:
        shapes = f"{list(splits[0].sample_shape)} and {list(splits[1].sample_shape)}"
        both = f"{halves[0][0]} {halves[0][1]} and {halves[1][1]}"
        raise UsageError(f"{both}: images are {shapes}; prepare both together")
    mean, std = normalisation(noted[0])
    return DataSet(
        name=request.name,
        train=splits[0],
        test=splits[1],
        classes=max(manifest.classes for manifest in noted if manifest is not None),
        mean=mean,
        std=std,
        class_names=None if noted[0] is None else noted[0].class_names,
    )


def _split(request: DatasetSpec, flag: str, path: Path, manifest: Manifest | None) -> Split | StoredSplit:
    origin = f"{flag} {path}"
    if manifest is None:
        raise UsageError(f"{origin}: has no manifest {manifest_of(path).name}; `fastlocal prepare` writes both")
    try:
        images = MappedImages(path)
        array, numbers = images.array, np.load(labels_of(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{origin}: cannot be read ({' '.join(str(error).split())}); prepare it again") from None
    if array.dtype != np.uint8 or array.shape != (manifest.count, *(manifest.shape or ())):
        raise UsageError(f"{origin}: is {array.dtype} {list(array.shape)}, which its manifest does not say")
    targets = labels(origin, numbers, manifest)
    if request.lazy:
        return StoredSplit(images, targets, request.crop_size)
    return Split(torch.from_numpy(array), targets, mapped=True)
