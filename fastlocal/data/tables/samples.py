"""Arrays of a file turned to inputs, labels and clients, and two files to a data set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.partition.natural import natural
from fastlocal.data.types import DataSet, Split

Array = np.ndarray[Any, np.dtype[Any]]

LABEL_COLUMN, CLIENT_COLUMN = "label", "client"
"""Default names of columns."""
LEVEL_TOLERANCE = 1e-3
"""Distance from a grey level, in levels, below which a float in [0, 1] is one; fp32 pixels are within 1e-4."""
SMALLEST_SQUARE = 64
"""Values of a flat list from which a square number of grey levels is an image."""


@dataclass(frozen=True)
class Samples:
    """Samples of one split.

    Attributes:
        origin: Flag and path, for messages.
        inputs: uint8 images or float32 features, [n, channels, height, width].
        labels: Integers or texts [n].
        clients: Integers or texts [n], or None if the file names none.
        class_names: Names of integer labels, or None.
        features: Names of the features, or None if inputs are no columns.
    """

    origin: str
    inputs: Array
    labels: Array
    clients: Array | None
    class_names: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise UsageError if there are no samples, or labels are neither integers nor texts."""
        if len(self.labels) == 0:
            raise UsageError(f"{self.origin}: holds no samples")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iuU":
            raise UsageError(f"{self.origin}: labels are {self.labels.dtype}; whole numbers or texts are expected")
        if len(self.labels) != len(self.inputs):
            raise UsageError(f"{self.origin}: {len(self.inputs)} inputs, but {len(self.labels)} labels")


def to_inputs(origin: str, values: Array, *, flat_images: bool = False) -> Array:
    """Turn arrays of samples to uint8 images if they hold grey levels, else to float32 features.

    Grey levels are integers from 0 to 255, or floats in [0, 1] that are multiples of 1 / 255. Images are
    [n, height, width], [n, height, width, 1 or 3], or, with `flat_images`, [n, a square of 8 or more].

    Args:
        origin: Flag and path, for messages.
        values: Numbers [n, ...].
        flat_images: Whether rows of a square number of grey levels are images.

    Returns:
        [n, channels, height, width]; features that are no images are [n, 1, 1, features].
    """
    if values.dtype.kind not in "iufb" or values.ndim < 2:
        raise UsageError(f"{origin}: inputs are {values.dtype} of shape {values.shape}; numbers [n, ...] are expected")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"{origin}: inputs hold NaN or infinity, or a value is missing")
    n, side = len(values), math.isqrt(math.prod(values.shape[1:]))
    if values.ndim == 4 and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    elif values.ndim == 3:
        values = values[:, None]
    elif flat_images and values.ndim == 2 and side**2 == values.shape[1] >= SMALLEST_SQUARE:
        levels = _to_levels(values.reshape(n, 1, side, side))
        return values.reshape(n, 1, 1, side**2).astype(np.float32) if levels is None else levels
    else:
        return np.ascontiguousarray(values.reshape(n, 1, 1, math.prod(values.shape[1:])), dtype=np.float32)
    levels = _to_levels(values)
    return np.ascontiguousarray(values, dtype=np.float32) if levels is None else levels


def _to_levels(values: Array) -> Array | None:
    """Return uint8 grey levels, or None if `values` are none."""
    if values.size == 0 or values.min() < 0 or values.max() > (1 if values.dtype.kind == "f" else 255):
        return None
    if values.dtype.kind == "f":
        scaled = values * 255.0
        rounded = np.rint(scaled)
        if np.abs(scaled - rounded).max() > LEVEL_TOLERANCE:
            return None
        values = rounded
    return np.ascontiguousarray(values, dtype=np.uint8)


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table that are no inputs.

    Attributes:
        label: --label-column, or None for "label".
        client: --client-column, or None for "client", if there is one.
        training: Whether the split needs the column of --client-column.
    """

    label: str | None
    client: str | None
    training: bool

    def find(self, origin: str, names: Collection[str]) -> tuple[str, str | None]:
        """Return the columns of labels and clients among `names`; raise UsageError if a needed one is missing."""
        label, client = self.label or LABEL_COLUMN, self.client or CLIENT_COLUMN
        for flag, name, needed in (
            ("--label-column", label, True),
            ("--client-column", client, self.training and self.client is not None),
        ):
            if needed and name not in names:
                raise UsageError(f"{flag} {name}: {origin} has the columns {', '.join(names)[:200]}")
        return label, client if client in names else None


def from_columns(
    origin: str, columns: Mapping[str, Array], roles: ColumnNames, class_names: tuple[str, ...] | None = None
) -> Samples:
    """Make samples of the columns of a table: one column of arrays, or numbers of which each column is a feature.

    Args:
        origin: Flag and path, for messages.
        columns: Arrays [n] or [n, ...] by name.
        roles: Which columns hold labels and clients.
        class_names: Names of integer labels, or None.
    """
    label, client = roles.find(origin, columns)
    clients = None if client is None else columns[client]
    rest = {name: column for name, column in columns.items() if name not in (label, client)}
    arrays = [name for name, column in rest.items() if column.ndim > 1]
    features = None if len(arrays) == 1 else tuple(rest)
    if len(arrays) == 1:
        inputs = to_inputs(origin, rest[arrays[0]])
    else:
        for name, column in rest.items():
            if column.ndim != 1 or column.dtype.kind not in "iufb":
                raise UsageError(f"{origin}: column {name} is no number ({column.dtype}); leave it out of the file")
        if not rest:
            raise UsageError(f"{origin}: has no columns beside {', '.join(columns)}")
        inputs = to_inputs(origin, np.stack([column.astype(np.float32) for column in rest.values()], axis=1))
    if clients is not None and clients.dtype.kind not in "iuU":
        raise UsageError(
            f"--client-column {client}: {origin} has {clients.dtype} there; texts or integers are expected"
        )
    return Samples(origin, inputs, columns[label], clients, class_names, features)


def to_data_set(name: str, train: Samples, test: Samples) -> DataSet:
    """Make a data set of two splits; text labels are numbered by their sorted names in the training split."""
    if train.features is not None and test.features is not None:
        test = _reordered(test, train.features)
    shapes = [(each.inputs.shape[1:], each.inputs.dtype) for each in (train, test)]
    if shapes[0] != shapes[1]:
        both = " and ".join(f"{dtype} {list(shape)}" for shape, dtype in shapes)
        raise UsageError(f"{test.origin}: training and test samples differ: {both}")
    names = train.class_names
    if train.labels.dtype.kind == "U":
        names = tuple(np.unique(train.labels).tolist())
    targets = [_to_targets(each, names) for each in (train, test)]
    splits = [
        Split(torch.from_numpy(each.inputs), torch.from_numpy(labels))
        for each, labels in zip((train, test), targets, strict=True)
    ]
    classes = max(int(max(labels.max() for labels in targets)) + 1, len(names or ()))
    own = None if train.clients is None else natural(train.clients, targets[0])
    return DataSet(name, splits[0], splits[1], classes, mean=None, std=None, class_names=names, natural=own)


def _reordered(samples: Samples, features: tuple[str, ...]) -> Samples:
    """Bring features into this order of their names."""
    own = samples.features or ()
    odd = sorted(set(own) ^ set(features))
    if odd:
        raise UsageError(f"{samples.origin}: training and test files differ in the column {odd[0]}")
    places = [own.index(name) for name in features]
    return dataclasses.replace(samples, inputs=np.ascontiguousarray(samples.inputs[..., places]), features=features)


def _to_targets(samples: Samples, names: tuple[str, ...] | None) -> Array:
    """Return int64 labels [n] from 0."""
    labels = samples.labels
    if labels.dtype.kind == "U":
        known = np.array(names or ())
        places = np.searchsorted(known, labels).clip(max=max(len(known) - 1, 0))
        if len(known) == 0 or (known[places] != labels).any():
            wrong = labels[0] if len(known) == 0 else labels[known[places] != labels][0]
            raise UsageError(f"{samples.origin}: label {str(wrong)!r} does not occur in training")
        return places.astype(np.int64)
    if labels.min() < 0 or labels.max() >= 2**31:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(f"{samples.origin}: label {wrong}; labels count from 0")
    return labels.astype(np.int64)
