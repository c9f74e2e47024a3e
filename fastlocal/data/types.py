"""What every data set is once it is loaded: decoded, or listed and left where it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from .randomness import Randomness

Array = np.ndarray[Any, Any]
Image = np.ndarray[Any, np.dtype[np.uint8]]


class BadSample(ValueError):
    """A stored image that cannot be decoded.

    sample: its file, or its place in one        reason: why, in a few words
    """

    def __init__(self, sample: str, reason: str) -> None:
        super().__init__(sample, reason)
        self.sample, self.reason = sample, reason

    def __str__(self) -> str:
        return f"{self.sample} cannot be decoded ({self.reason})"


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
    side: height and width in pixels that crops of the images are brought to (random-resized crops in training, centre
        crops in tests); None: all images have the size of the first and reach the model whole, as resident ones do
    """

    images: StoredImages
    targets: Tensor
    side: int | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image as the model sees it."""
        height, width = self.images.size(0) if self.side is None else (self.side, self.side)
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
    randomness: the generators that it may draw from; None: it only looks up tensors
    """

    dataset: Any
    first: tuple[Array, Array]
    randomness: Randomness | None

    @classmethod
    def of(cls, dataset: Any) -> MapSplit:
        """Random states are left as they were. Raises BadSample where the first pair is none."""
        if type(dataset) is TensorDataset:
            return cls(dataset, _pair(dataset, 0), None)
        with Randomness(dataset).kept():
            first = _pair(dataset, 0)
        return cls(dataset, first, Randomness(dataset))  # a Dataset may make its generators as it is first read

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
        pair = _pair(self.dataset, index)
        for name, found, first in zip(("input", "target"), pair, self.first, strict=True):
            if (found.shape, found.dtype) != (first.shape, first.dtype):
                like = f"{name} {found.dtype} {found.shape} is unlike the first, {first.dtype} {first.shape}"
                raise BadSample(f"sample {index} of the Dataset", like)
        return pair


def _pair(dataset: Any, index: int) -> tuple[Array, Array]:
    try:
        inputs, target = dataset[index]
        return _array(inputs), _array(target)
    except Exception as error:  # whatever a user's Dataset raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadSample(f"sample {index} of the Dataset", reason) from None


def _array(value: Any) -> Array:
    """A tensor, an array or a number, as float32, or as int64 where torch has no such integers."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype == np.float64 and not isinstance(value, Tensor | np.ndarray):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{type(value).__name__} is neither a tensor nor an array nor a number")
    return array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


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
