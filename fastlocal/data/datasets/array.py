"""Images in one memory-mapped array per split, as `fastlocal prepare --format array` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._prepared import read_manifests, split_files, stored_normalisation, to_labels
from fastlocal.data.images.mapped import MappedImages
from fastlocal.data.manifest import Manifest, manifest_path
from fastlocal.data.types import DataSet, Split, StoredSplit


def labels_path(path: Path) -> Path:
    """Return the path of the labels of an array of images: train_labels.npy beside train.npy."""
    return path.with_name(f"{path.stem}_labels.npy")


def read(request: DatasetSpec) -> DataSet:
    """Read the images of `train_pth` and `val_pth`, else of train.npy and val.npy in `data_pth`, memory-mapped.

    Raises:
        UsageError: An array has no manifest, or contradicts it; the message names the flag.
    """
    files = split_files(request, ".npy")
    manifests = read_manifests(request, files)
    splits = [_split(request, flag, path, manifest) for (flag, path), manifest in zip(files, manifests, strict=True)]
    if splits[0].sample_shape != splits[1].sample_shape:
        shapes = f"{list(splits[0].sample_shape)} and {list(splits[1].sample_shape)}"
        both = f"{files[0][0]} {files[0][1]} and {files[1][1]}"
        raise UsageError(f"{both}: images are {shapes}; prepare both together")
    mean, std = stored_normalisation(manifests[0])
    return DataSet(
        name=request.name,
        train=splits[0],
        test=splits[1],
        classes=max(manifest.classes for manifest in manifests if manifest is not None),
        mean=mean,
        std=std,
        class_names=None if manifests[0] is None else manifests[0].class_names,
    )


def _split(request: DatasetSpec, flag: str, path: Path, manifest: Manifest | None) -> Split | StoredSplit:
    origin = f"{flag} {path}"
    if manifest is None:
        raise UsageError(f"{origin}: has no manifest {manifest_path(path).name}; `fastlocal prepare` writes both")
    try:
        images = MappedImages(path)
        array, numbers = images.array, np.load(labels_path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{origin}: cannot be read ({' '.join(str(error).split())}); prepare it again") from None
    if array.dtype != np.uint8 or array.shape != (manifest.count, *(manifest.shape or ())):
        raise UsageError(f"{origin}: is {array.dtype} {list(array.shape)}, which its manifest does not say")
    targets = to_labels(origin, numbers, manifest)
    if request.lazy:
        return StoredSplit(images, targets, request.crop_size)
    return Split(torch.from_numpy(array), targets, mapped=True)
