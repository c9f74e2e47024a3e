"""Crops of images: boxes drawn by Philox, and the resize that every source implements.

A box is (top, left, height, width, mirrored), in pixels of the stored image. Outside the image it is black. The cut is
resized to the model's size if that differs, and then mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pillow

from fastlocal.kernels import philox

from .types import Image

Ints = np.ndarray[Any, np.dtype[np.int64]]

PADDING = 4
ROWS_PER_DRAW = 2048
"""Rows per draw of crops: one call for 16 batches of 128 takes little longer than one for a batch."""
SCALE, LOG_RATIO, TRIES = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3)), 10
CENTRE = 224 / 256


@dataclass(frozen=True)
class Augmentation:
    """Choice of a sample's box.

    Attributes:
        kind: "none" for the whole image; "crop" for a random crop of the image's size after black padding by 4 pixels,
            mirrored at random; "resized_crop" for torchvision's RandomResizedCrop(scale 0.08 to 1, ratio 3/4 to 4/3),
            mirrored at random; "centre_crop" for the centre square of 224 / 256 of the shorter side.
        crop_size: Height and width in pixels after the resize of the last two, else None.
    """

    kind: Literal["none", "crop", "resized_crop", "centre_crop"]
    crop_size: int | None = None

    @property
    def is_random(self) -> bool:
        """Return True if boxes are random."""
        return self.kind in ("crop", "resized_crop")

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the cut from an image of this size."""
        return (height, width) if self.crop_size is None else (self.crop_size, self.crop_size)


@dataclass(frozen=True)
class SampleIndex:
    """Samples with the places in the run that their random draws belong to.

    Attributes:
        ids: int64 [rows], indices into the data set.
        clients: int64 [rows].
        steps: int64 [rows], global local steps.
        positions: int64 [rows], places in the batch.
        words: [rows, 4], random words of the crops, or keys of a Dataset's random numbers; None if not drawn yet.
        boxes: [rows, 5], or None if not known yet.
    """

    ids: Ints
    clients: Ints
    steps: Ints
    positions: Ints
    words: Ints | None = None
    boxes: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, index: Any) -> SampleIndex:
        """Select rows by a slice or an index array."""
        words, boxes = (None if values is None else values[index] for values in (self.words, self.boxes))
        keys = self.ids[index], self.clients[index], self.steps[index], self.positions[index]
        return SampleIndex(*keys, words, boxes)

    def with_ids(self, ids: Ints) -> SampleIndex:
        """Return the same places with other samples; their boxes are unknown."""
        return SampleIndex(ids, self.clients, self.steps, self.positions, self.words)


def boxes(augmentation: Augmentation, seed: int, rows: SampleIndex, heights: Ints, widths: Ints) -> Ints:
    """Return the box of every row, int64 [rows, 5].

    The boxes of "crop" equal those of gather_augment. Resized crops are mirrored in the same rows as crops.

    Args:
        augmentation: Choice of the boxes.
        seed: Seed of the run.
        rows: The samples.
        heights: int64 [rows], of the stored images.
        widths: int64 [rows], of the stored images.
    """
    if augmentation.kind == "none":
        zero = np.zeros_like(heights)
        return np.stack([zero, zero, heights, widths, zero], axis=1)
    if augmentation.kind == "centre_crop":
        side = np.maximum((CENTRE * np.minimum(heights, widths)).astype(np.int64), 1)
        return np.stack([(heights - side) // 2, (widths - side) // 2, side, side, np.zeros_like(side)], axis=1)
    words = crop_words(seed, rows) if rows.words is None else rows.words
    mirrored = words[:, 2] < 2**31
    if augmentation.kind == "crop":
        top, left = (((word * (2 * PADDING + 1)) >> 32) - PADDING for word in words.T[:2])
        return np.stack([top, left, heights, widths, mirrored], axis=1)
    return np.concatenate([_resized_crops(seed, rows, heights, widths), mirrored[:, None]], axis=1)


def crop_words(seed: int, rows: SampleIndex) -> Ints:
    """Return [rows, 4] random words: the places of crops, and whether they are mirrored."""
    return _words(seed, rows, philox.Purpose.CROP)


def _words(seed: int, rows: SampleIndex, purpose: int) -> Ints:
    positions, clients, steps = map(torch.from_numpy, (rows.positions, rows.clients, rows.steps))
    key = seed & philox.MASK32, seed >> 32 & philox.MASK32
    words = philox.philox4x32((positions, clients, steps, torch.tensor(purpose)), key)
    return torch.stack(words, dim=-1).numpy()


def _resized_crops(seed: int, rows: SampleIndex, heights: Ints, widths: Ints) -> Ints:
    """Return top, left, height, width; after TRIES tries that do not fit, torchvision's central crop."""
    found = _central(heights, widths)
    pending = np.arange(len(rows))
    for attempt in range(TRIES):
        if not len(pending):
            break
        words = _words(seed, rows.pick(pending), philox.Purpose.RESIZED_CROP + (attempt << 16))
        area, ratio, top, left = (word / 2**32 for word in words.T)
        high, wide = heights[pending], widths[pending]
        target = high * wide * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        aspect = np.exp(LOG_RATIO[0] + ratio * (LOG_RATIO[1] - LOG_RATIO[0]))
        width, height = (np.rint(np.sqrt(x)).astype(np.int64) for x in (target * aspect, target / aspect))
        fits = (0 < width) & (width <= wide) & (0 < height) & (height <= high)
        top, left = (top * (high - height + 1)).astype(np.int64), (left * (wide - width + 1)).astype(np.int64)
        found[pending[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        pending = pending[~fits]
    return found


def _central(heights: Ints, widths: Ints) -> Ints:
    narrow, wide = math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1])
    height = np.where(widths < narrow * heights, np.rint(widths / narrow).astype(np.int64), heights)
    width = np.where(widths > wide * heights, np.rint(heights * wide).astype(np.int64), widths)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def cut(image: Image, box: Ints, height: int, width: int) -> Image:
    """Cut a box [5] out of an image [height, width, channels], and resize it to [`height`, `width`, channels].

    The resize is Pillow's antialiased bilinear one, as in torchvision's transforms of Pillow images: weights rounded
    to 2^-22, both passes rounded to whole grey levels. The horizontal pass comes first here: Pillow 13 begins with the
    cheaper pass, and in the other order some pixels differ by one level.
    """
    top, left, box_height, box_width, mirrored = map(int, box)
    region = image[max(top, 0) : max(top + box_height, 0), max(left, 0) : max(left + box_width, 0)]
    if region.shape[:2] != (box_height, box_width):
        padded = np.zeros((box_height, box_width, image.shape[2]), dtype=np.uint8)
        row, column = max(-top, 0), max(-left, 0)
        padded[row : row + region.shape[0], column : column + region.shape[1]] = region
        region = padded
    if (box_height, box_width) != (height, width):
        flat = Pillow.fromarray(np.ascontiguousarray(region[:, :, 0] if image.shape[2] == 1 else region))
        horizontal = flat.resize((width, box_height), Pillow.Resampling.BILINEAR)
        resized = horizontal.resize((width, height), Pillow.Resampling.BILINEAR)
        region = np.asarray(resized).reshape(height, width, image.shape[2])
    return region[:, ::-1] if mirrored else region
