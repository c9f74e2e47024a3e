"""FFCV's .beton files for training and testing, with an image and an integer label per sample."""

from __future__ import annotations

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._prepared import (
    count_classes,
    read_manifests,
    split_files,
    stored_normalisation,
    to_labels,
)
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.types import DataSet, StoredSplit


def read(request: DatasetSpec) -> DataSet:
    """Read the RGB images of `train_pth` and `val_pth`, else of train.beton and val.beton in `data_pth`, lazily.

    Files of FFCV's own writer have no manifest; their classes are counted from the labels.

    Raises:
        UsageError: A file is foreign, truncated, or contradicts its manifest; the message names the flag.
    """
    files = split_files(request, ".beton")
    train, test = (BetonImages(path, flag) for flag, path in files)
    manifests = read_manifests(request, files)
    targets = [
        to_labels(f"{flag} {path}", images.labels, manifest)
        for (flag, path), images, manifest in zip(files, (train, test), manifests, strict=True)
    ]
    mean, std = stored_normalisation(manifests[0])
    return DataSet(
        name=request.name,
        train=StoredSplit(train, targets[0], request.crop_size),
        test=StoredSplit(test, targets[1], request.crop_size),
        classes=max(count_classes(manifest, targets) for manifest in manifests),
        mean=mean,
        std=std,
        class_names=None if manifests[0] is None else manifests[0].class_names,
    )
