"""Types of a loaded data set: decoded splits, stored splits, and splits behind a Dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .describe import describe, is_nested
from .partition.partition import Partition
from .randomness import Randomness

Array = np.ndarray[Any, Any]
Image = np.ndarray[Any, np.dtype[np.uint8]]
IMAGE_DIMS = 3
"""Dimensions of one image: channels, height and width."""


class BadSample(ValueError):
    """A sample that cannot be used: an image that cannot be decoded, or a Dataset's value that is not a sample.

    Attributes:
        sample: Its file, or its place in one.
        reason: The reason in a few words.
        verdict: The fault.
    """

    def __init__(self, sample: str, reason: str, verdict: str = "cannot be decoded") -> None:
        super().__init__(sample, reason, verdict)
        self.sample, self.reason, self.verdict = sample, reason, verdict

    def __str__(self) -> str:
        return f"{self.sample} {self.verdict} ({self.reason})"


class StoredImages(Protocol):
    """Images on the disk, decoded one by one in any process; implementations can be pickled.

    Attributes:
        channels: 1 or 3.
    """

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image without decoding it; raises BadSample."""
        ...

    def read(self, index: int) -> Image:
        """Decode an image, [height, width, channels]; raises BadSample."""
        ...

    def read_encoded(self, index: int) -> bytes | None:
        """Return the compressed file of an image, or None if pixels are stored; raises BadSample."""
        ...


@dataclass(frozen=True)
class Split:
    """A decoded split.

    Attributes:
        inputs: uint8 images [n, channels, height, width], or any tensor of n rows for the model.
        targets: int64 labels [n], or any tensor of n rows for the loss.
        mapped: Whether the inputs are a memory-mapped file.
        tokens: Whether inputs and targets are uint8 tokens [n, length], which a source returns as int64.
    """

    inputs: Tensor
    targets: Tensor
    mapped: bool = False
    tokens: bool = False

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample for the model."""
        return tuple(self.inputs.shape[1:])

    @property
    def resident_bytes(self) -> int:
        """Bytes of CPU memory that the inputs take."""
        return 0 if self.mapped else self.inputs.numel() * self.inputs.element_size()


@dataclass(frozen=True)
class StoredSplit:
    """A split whose images a source reads and decodes on demand.

    Attributes:
        images: The images.
        targets: int64 labels [n].
        crop_size: Height and width in pixels of the crops, random-resized in training and of the centre in tests; None:
            whole images, all of the first one's size.
    """

    images: StoredImages
    targets: Tensor
    crop_size: int | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image for the model."""
        height, width = self.images.size(0) if self.crop_size is None else (self.crop_size, self.crop_size)
        return self.images.channels, height, width

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the images take: 0, beside the source's prefetch."""
        return 0


@dataclass(frozen=True)
class MapSplit:
    """A split behind a map-style Dataset, whose pairs are read on demand.

    Attributes:
        dataset: Has a length, and returns a pair (input, target) of tensors, arrays or numbers for an index.
        first: Its first pair as arrays; all others have these shapes and dtypes.
        randomness: Generators that it may draw from; None if it only indexes tensors.
        labels: Whether the loss takes targets as class indices, of any integer type or bool.
    """

    dataset: Any
    first: tuple[Array, Array]
    randomness: Randomness | None
    labels: bool = False

    @classmethod
    def from_dataset(cls, dataset: Any, *, labels: bool = False) -> MapSplit:
        """Read the first pair, without a change of random states; raises BadSample if it is not a pair."""
        if type(dataset) is TensorDataset:
            return cls(dataset, _pair(dataset, 0, labels), None, labels)
        with Randomness(dataset).preserve():
            first = _pair(dataset, 0, labels)
        # a Dataset may create its generators in the first read
        return cls(dataset, first, Randomness(dataset), labels)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.first[0].shape)

    @property
    def targets(self) -> None:
        """None: they are unknown before they are read."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the samples take: 0, beside the source's prefetch."""
        return 0

    def read(self, index: int, key: int) -> tuple[Array, Array]:
        """Read one pair with its random numbers; raises BadSample if the Dataset fails or returns other types.

        Args:
            index: Index of the sample.
            key: 128 bits for Randomness.seed.
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
    except Exception as error:  # a user's Dataset may raise anything
        raise BadSample(place, f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if isinstance(sample, str | bytes | Mapping | Tensor | np.ndarray) or not _has_two(sample):
        verdict = "is no pair of an input and a target"
        raise BadSample(place, f"it is {describe(sample)}; a Dataset gives (input, target)", verdict)
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
"""Fault and remedy for each part of a pair."""


def _array(place: str, part: str, value: Any) -> Array:
    """Convert a tensor, an array or a number to an array: Python numbers to float32, integers but uint8 to int64.

    Args:
        place: The sample, for messages.
        part: "input" or "target".
        value: The value.
    """
    array: Array | None = None
    with contextlib.suppress(Exception):  # a user's object may raise anything
        if isinstance(value, Tensor):
            tensor = value.detach().cpu()
            array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        elif not is_nested(value):
            array = np.asarray(value)
    if array is None or array.dtype.kind not in "fiub":
        verdict, remedy = UNFIT[part]
        raise BadSample(place, f"it is {describe(value)}; {remedy}", f"has {verdict}")
    if array.dtype == np.float64 and not isinstance(value, Tensor | np.ndarray):
        array = array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


def label_array(target: Array, labels: bool) -> Array:
    """Convert labels and maps of labels to int64; a uint8 target of an image's shape is an image.

    Args:
        target: The target.
        labels: Whether the loss takes targets of any shape as class indices.
    """
    is_label = target.dtype == np.uint8 and target.ndim < IMAGE_DIMS
    return target.astype(np.int64) if is_label or (labels and target.dtype.kind in "ub") else target


AnySplit = Split | StoredSplit | MapSplit


@dataclass(frozen=True)
class DataSet:
    """Training and test samples.

    Attributes:
        name: Name of the data set.
        train: Training split.
        test: Test split.
        classes: Number of labels, or None if targets are not labels.
        mean: Per channel in units of 1: the model sees (x / 255 - mean) / std; None: inputs are not normalized.
        std: Per channel in units of 1, or None.
        class_names: Names of the labels, or None.
        natural: Which client owns which training samples, if the data set says, or None.
    """

    name: str
    train: AnySplit
    test: AnySplit
    classes: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None = None
    natural: Partition | None = None

    @property
    def tokens(self) -> bool:
        """Return True if inputs and targets are tokens, of which there are `classes`."""
        return isinstance(self.train, Split) and self.train.tokens

    @property
    def is_rgb(self) -> bool:
        """Return True if the inputs are three-channel uint8 images."""
        return self.mean is not None and self.train.sample_shape[0] == 3
