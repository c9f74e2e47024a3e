"""What every data set is once it is loaded: decoded, or listed and left where it is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .in_words import in_words, is_nested
from .randomness import Randomness

Array = np.ndarray[Any, Any]
Image = np.ndarray[Any, np.dtype[np.uint8]]
IMAGE_DIMS = 3
"""Of one image: channels, height and width."""


class BadSample(ValueError):
    """A sample that cannot be used: a stored image that cannot be decoded, or what a Dataset gives and is no sample.

    sample: its file, or its place in one        reason: why, in a few words        verdict: what is wrong with it
    """

    def __init__(self, sample: str, reason: str, verdict: str = "cannot be decoded") -> None:
        super().__init__(sample, reason, verdict)
        self.sample, self.reason, self.verdict = sample, reason, verdict

    def __str__(self) -> str:
        return f"{self.sample} {self.verdict} ({self.reason})"


class StoredImages(Protocol):
    """Images that stay on the disk and are read one by one, by any process: what implements this can be pickled.

    channels: 1 or 3
    """

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, without decoding it; raises BadSample."""
        ...

    def read(self, index: int) -> Image:
        """One image decoded, [height, width, channels]; raises BadSample."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """The compressed file of an image, or None where its pixels are stored as they are; raises BadSample."""
        ...


@dataclass(frozen=True)
class Split:
    """One half of a data set, decoded.

    inputs: uint8 images [n, channels, height, width], or any tensor of n rows that the model takes as it is
    targets: int64 labels [n], or any tensor of n rows that the loss takes
    mapped: whether the inputs lie in a file and are paged in as they are used
    """

    inputs: Tensor
    targets: Tensor
    mapped: bool = False

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model sees it."""
        return tuple(self.inputs.shape[1:])

    @property
    def resident_bytes(self) -> int:
        """Memory that the inputs need beside a CPU."""
        return 0 if self.mapped else self.inputs.numel() * self.inputs.element_size()


@dataclass(frozen=True)
class StoredSplit:
    """One half of a data set that is not resident: a source reads and decodes its images as they are asked for.

    targets: int64 labels [n]
    crop_size: height and width in pixels of the crops (random-resized in training, of the centre in tests); None: all
        images have the size of the first and reach the model whole, as resident ones do
    """

    images: StoredImages
    targets: Tensor
    crop_size: int | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image as the model sees it."""
        height, width = self.images.size(0) if self.crop_size is None else (self.crop_size, self.crop_size)
        return self.images.channels, height, width

    @property
    def resident_bytes(self) -> int:
        """Memory that the images take: none, beside what the source prefetches."""
        return 0


@dataclass(frozen=True)
class MapSplit:
    """One half of a data set behind a map-style Dataset, whose pairs are read as they are asked for.

    dataset: has a length, and gives a pair (input, target) of tensors, arrays or numbers for an index
    first: its first pair as arrays, whose shapes and dtypes all others have
    labels: whether the loss takes targets as numbers of classes, of whatever integer type they are, or bool
    randomness: the generators that it may draw from; None: it only looks up tensors
    """

    dataset: Any
    first: tuple[Array, Array]
    randomness: Randomness | None
    labels: bool = False

    @classmethod
    def of(cls, dataset: Any, *, labels: bool = False) -> MapSplit:
        """Random states are left as they were. Raises BadSample where the first pair is none."""
        if type(dataset) is TensorDataset:
            return cls(dataset, _pair(dataset, 0, labels), None, labels)
        with Randomness(dataset).kept():
            first = _pair(dataset, 0, labels)
        # a Dataset may make its generators as it is first read
        return cls(dataset, first, Randomness(dataset), labels)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.first[0].shape)

    @property
    def targets(self) -> None:
        """Not known before they are read."""

    @property
    def resident_bytes(self) -> int:
        """Memory that the samples take: none, beside what the source prefetches."""
        return 0

    def read(self, index: int, key: int) -> tuple[Array, Array]:
        """One pair, its random numbers those of the key; raises BadSample where the Dataset fails or gives other types.

        key: 128 bits, as Randomness.seed takes them
        """
        if self.randomness is not None:
            self.randomness.seed(key)
        pair = _pair(self.dataset, index, self.labels)
        for name, found, first in zip(("input", "target"), pair, self.first, strict=True):
            if (found.shape, found.dtype) != (first.shape, first.dtype):
                like = f"{name} {found.dtype} {found.shape} is unlike the first, {first.dtype} {first.shape}"
                raise BadSample(f"sample {index} of the Dataset", like, "does not fit")
        return pair


def _pair(dataset: Any, index: int, labels: bool) -> tuple[Array, Array]:
    place = f"sample {index} of the Dataset"
    try:
        sample = dataset[index]
    except Exception as error:  # whatever a user's Dataset raises
        raise BadSample(place, f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if isinstance(sample, str | bytes | Mapping | Tensor | np.ndarray) or not _has_two(sample):
        is_no = "is no pair of an input and a target"
        raise BadSample(place, f"it is {in_words(sample)}; a Dataset gives (input, target)", is_no)
    inputs, target = sample
    return _array(place, "input", inputs), label_array(_array(place, "target", target), labels)


def _has_two(sample: Any) -> bool:
    try:
        return len(sample) == 2
    except TypeError:
        return False


UNFIT = {
    "input": (
        "an input that is no tensor",
        "join what belongs to a sample in one tensor, and have the model take it apart",
    ),
    "target": ("a target that is no number", "number the classes, as classes.index(name) does, or give a tensor"),
}
"""Of each part of a pair: what is wrong with it, and what would do."""


def _array(place: str, part: str, value: Any) -> Array:
    """A tensor, an array or a number, as float32, or as int64 where torch has no such integers.

    place, part: which sample, and whether this is its input or its target, for messages
    """
    array: Array | None = None
    with contextlib.suppress(Exception):  # whatever a user's object raises that is asked for an array
        if isinstance(value, Tensor):
            tensor = value.detach().cpu()
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        elif not is_nested(value):
            array = np.asarray(value)
    if array is None or array.dtype.kind not in "fiub":
        verdict, remedy = UNFIT[part]
        raise BadSample(place, f"it is {in_words(value)}; {remedy}", f"has {verdict}")
    if array.dtype == np.float64 and not isinstance(value, Tensor | np.ndarray):
        array = array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


def label_array(target: Array, labels: bool) -> Array:
    """A target as int64 where it is a label, or a map of them: uint8 targets of an image's shape are images.

    labels: whether the loss takes targets as numbers of classes, whatever their shape
    """
    is_label = target.dtype == np.uint8 and target.ndim < IMAGE_DIMS
    return target.astype(np.int64) if is_label or (labels and target.dtype.kind in "ub") else target


AnySplit = Split | StoredSplit | MapSplit


@dataclass(frozen=True)
class DataSet:
    """Training and test samples; either half may be stored rather than resident.

    classes: number of labels, or None where the targets are not labels
    mean, std: one value per channel in units of 1, so that a model sees (x / 255 - mean) / std; None where the inputs
        reach the model as they are
    class_names: by label, where labels have names
    """

    name: str
    train: AnySplit
    test: AnySplit
    classes: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether the inputs are three-channel uint8 images."""
        return self.mean is not None and self.train.sample_shape[0] == 3
