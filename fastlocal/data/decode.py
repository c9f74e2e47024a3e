"""Decode stored images into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.types import BadSample, Split, StoredSplit

REMEDY = "replace or remove it (train leaves it out with --source torch --on-bad-sample skip)"


@contextlib.contextmanager
def bad_sample_as_usage_error() -> Iterator[None]:
    """Turn a BadSample into a UsageError."""
    try:
        yield
    except BadSample as bad:
        raise UsageError(f"{bad}; {REMEDY}") from None


def read_tensor(split: StoredSplit, index: int) -> Tensor:
    """Decode one image, uint8 [channels, height, width]; raises UsageError if that fails."""
    with bad_sample_as_usage_error():
        return torch.from_numpy(split.images.read(index)).permute(2, 0, 1)


def decode_all(split: StoredSplit) -> Split:
    """Decode all images of a split into one array; raises UsageError if their sizes differ."""
    if split.crop_size is not None:
        raise UsageError("--source resident: random-resized crops are cut from the stored images; use --source auto")
    inputs = torch.empty(len(split), *split.sample_shape, dtype=torch.uint8)
    for index in range(len(split)):
        image = read_tensor(split, index)
        if image.shape != inputs.shape[1:]:
            (_, height, width), (_, first_height, first_width) = image.shape, inputs.shape[1:]
            raise UsageError(
                f"image {index} is {width}x{height} pixels (width x height), the first {first_width}x{first_height}; "
                "all must have one size; prepare them with --image-size"
            )
        inputs[index] = image
    return Split(inputs, split.targets)
