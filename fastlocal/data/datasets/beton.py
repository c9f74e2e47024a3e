"""FFCV's .beton files: one for training, one for testing, with an image and an integer label per sample."""

from __future__ import annotations

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.datasets._prepared import classes, labels, manifests, normalisation, places
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.types import DataSet, StoredSplit


def read(request: DatasetSpec) -> DataSet:
    """RGB images that stay in `train_pth` and `val_pth`, else in train.beton and val.beton of `data_pth`.

    Files that FFCV's own writer made have no manifest: their labels say how many classes there are.
    Raises UsageError naming the flag for a file that is foreign, cut short, or not what its manifest says.
    """
    halves = places(request, ".beton")
    train, test = (BetonImages(path, flag) for flag, path in halves)
    noted = manifests(request, halves)
    targets = [
        labels(f"{flag} {path}", images.labels, manifest)
        for (flag, path), images, manifest in zip(halves, (train, test), noted, strict=True)
    ]
    mean, std = normalisation(noted[0])
    return DataSet(
        name=request.name,
        train=StoredSplit(train, targets[0], request.crop_size),
        test=StoredSplit(test, targets[1], request.crop_size),
        classes=max(classes(manifest, targets) for manifest in noted),
        mean=mean,
        std=std,
        class_names=None if noted[0] is None else noted[0].class_names,
    )
