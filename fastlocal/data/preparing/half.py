"""One half of a data set on its way to a file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastlocal.common.version import __version__
from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.images.files import FileImages
from fastlocal.data.images.mapped import MappedImages
from fastlocal.data.manifest import Manifest, Stamp
from fastlocal.data.normalization import from_counts
from fastlocal.data.types import StoredImages


@dataclass(frozen=True)
class SplitToWrite:
    """What is written to one file.

    name: train or val        images: read one by one        targets: int64 [n]
    source, settings: what the manifest says of where it comes from and how it is written
    """

    name: str
    images: StoredImages
    targets: Tensor
    classes: int
    class_names: tuple[str, ...] | None
    source: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what is written: the samples (files by name, size and time) and the settings."""
        digest = hashlib.sha256(json.dumps([__version__, dict(self.settings), self.class_names]).encode())
        digest.update(self.targets.numpy().tobytes())
        if isinstance(self.images, ArrayImages):
            digest.update(self.images.images.contiguous().numpy().data)
        for path in _files(self.images):
            status = path.stat()
            digest.update(os.fsencode(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return digest.hexdigest()

    def manifest(
        self, format: str, files: Mapping[str, Stamp], counts: Tensor, shape: tuple[int, int, int] | None
    ) -> Manifest:
        """What is written beside the files, whose grey levels are `counts` [channels, 256]."""
        mean, std = from_counts(counts)
        return Manifest(
            format=format,
            files=files,
            count=len(self),
            classes=self.classes,
            class_names=self.class_names,
            mean=mean,
            std=std,
            shape=shape,
            source=self.source,
            settings={**self.settings, "fingerprint": self.fingerprint},
            fastlocal=__version__,
        )


def _files(images: StoredImages) -> Sequence[Path]:
    """What lies on the disk of them."""
    if isinstance(images, FileImages):
        return images.paths
    if isinstance(images, BetonImages):
        return [images.path]
    return [images.file] if isinstance(images, MappedImages) else []
