"""One split of a data set for conversion to a file."""

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
from fastlocal.data.normalization import statistics_from_counts
from fastlocal.data.types import StoredImages


@dataclass(frozen=True)
class SplitToWrite:
    """Content of one file.

    Attributes:
        name: train or val.
        images: Images, read one by one.
        targets: int64 [n].
        classes: Number of labels.
        class_names: Names of the labels, or None.
        source: Origin of the data, for the manifest.
        settings: Settings of the conversion, for the manifest.
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
        """Hash of the samples (files by name, size and time) and the settings."""
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
        """Return the manifest of the files; `counts` [channels, 256] are the images' grey levels."""
        mean, std = statistics_from_counts(counts)
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
    """Return the files of the images on the disk."""
    if isinstance(images, FileImages):
        return images.paths
    if isinstance(images, BetonImages):
        return [images.path]
    return [images.file] if isinstance(images, MappedImages) else []
