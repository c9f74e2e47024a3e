"""What is cut out of an image: boxes as Philox draws, and the one resize that every source follows.

A box is (top, left, height, width, mirrored), in pixels of the stored image. It may reach beyond the image, where
there is black; it is resized to the model's size where it has another one, and mirrored after that.
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
DRAWN_AT_ONCE = 2048
"""Rows whose crops are drawn together: one call for 16 batches of 128 takes little longer than one for a batch."""
SCALE, LOG_RATIO, TRIES = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3)), 10
CENTRE = 224 / 256


@dataclass(frozen=True)
class Augmentation:
    """How a sample's box is chosen.

    none: the whole image
    crop: a random crop of the image's own size after black padding by 4 pixels, mirrored at random
    resized_crop: torchvision's RandomResizedCrop(scale 0.08 to 1, ratio 3/4 to 4/3), mirrored at random
    centre_crop: the centre square of 224 / 256 of the shorter side
    crop_size: height and width in pixels that the last two are resized to
    """

    kind: Literal["none", "crop", "resized_crop", "centre_crop"]
    crop_size: int | None = None

    @property
    def random(self) -> bool:
        """Whether boxes are drawn."""
        return self.kind in ("crop", "resized_crop")

    def output(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what is cut from an image of this size."""
        return (height, width) if self.crop_size is None else (self.crop_size, self.crop_size)


@dataclass(frozen=True)
class SampleIndex:
    """Samples and the places in the run that their draws belong to, each int64 [rows].

    ids: into the data set        clients, steps, positions: client number, global local step, place in the batch
    words: [rows, 4], what is drawn for their crops, or keys of a Dataset's random numbers        boxes: [rows, 5]; each
        where it is known beforehand
    """

    ids: Ints
    clients: Ints
    steps: Ints
    positions: Ints
    words: Ints | None = None
    boxes: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, chosen: Any) -> SampleIndex:
        """Some of the rows: a slice or an index array."""
        words, boxes = (None if drawn is None else drawn[chosen] for drawn in (self.words, self.boxes))
        keys = self.ids[chosen], self.clients[chosen], self.steps[chosen], self.positions[chosen]
        return SampleIndex(*keys, words, boxes)

    def of(self, ids: Ints) -> SampleIndex:
        """The same places with other samples, whose boxes may be others."""
        return SampleIndex(ids, self.clients, self.steps, self.positions, self.words)


def boxes(augmentation: Augmentation, seed: int, rows: SampleIndex, heights: Ints, widths: Ints) -> Ints:
    """int64 [rows, 5]: the box of every row.

    heights, widths: int64 [rows], of the stored images
    The crops and mirrorings of `crop` are those of gather_augment, and resized crops are mirrored where crops are.
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
    """[rows, 4]: the words that say where crops are and whether they are mirrored."""
    return _words(seed, rows, philox.Purpose.CROP)


def _words(seed: int, rows: SampleIndex, purpose: int) -> Ints:
    positions, clients, steps = map(torch.from_numpy, (rows.positions, rows.clients, rows.steps))
    key = seed & philox.MASK32, seed >> 32 & philox.MASK32
    drawn = philox.philox4x32((positions, clients, steps, torch.tensor(purpose)), key)
    return torch.stack(drawn, dim=-1).numpy()


def _resized_crops(seed: int, rows: SampleIndex, heights: Ints, widths: Ints) -> Ints:
    """Top, left, height, width: a tenth try that does not fit leaves torchvision's central crop."""
    found = _central(heights, widths)
    waiting = np.arange(len(rows))
    for attempt in range(TRIES):
        if not len(waiting):
            break
        words = _words(seed, rows.pick(waiting), philox.Purpose.RESIZED_CROP + (attempt << 16))
        area, ratio, top, left = (word / 2**32 for word in words.T)
        high, wide = heights[waiting], widths[waiting]
        target = high * wide * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        aspect = np.exp(LOG_RATIO[0] + ratio * (LOG_RATIO[1] - LOG_RATIO[0]))
        width, height = (np.rint(np.sqrt(x)).astype(np.int64) for x in (target * aspect, target / aspect))
        fits = (0 < width) & (width <= wide) & (0 < height) & (height <= high)
        top, left = (top * (high - height + 1)).astype(np.int64), (left * (wide - width + 1)).astype(np.int64)
        found[waiting[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        waiting = waiting[~fits]
    return found


def _central(heights: Ints, widths: Ints) -> Ints:
    narrow, wide = math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1])
    height = np.where(widths < narrow * heights, np.rint(widths / narrow).astype(np.int64), heights)
    width = np.where(widths > wide * heights, np.rint(heights * wide).astype(np.int64), widths)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def cut(image: Image, box: Ints, height: int, width: int) -> Image:
    """What a box [5] holds of an image [height, width, channels], as [`height`, `width`, channels].

    The resize is Pillow's antialiased bilinear one, as in torchvision's transforms of Pillow images: weights rounded
    to 2^-22, both passes rounded to whole grey levels. Rows are narrowed before there are fewer of them: Pillow 13
    does the cheaper pass first, and some pixels are one level off where it does them the other way round.
    """
    top, left, box_height, box_width, mirrored = map(int, box)
    there = image[max(top, 0) : max(top + box_height, 0), max(left, 0) : max(left + box_width, 0)]
    if there.shape[:2] != (box_height, box_width):
        whole = np.zeros((box_height, box_width, image.shape[2]), dtype=np.uint8)
        row, column = max(-top, 0), max(-left, 0)
        whole[row : row + there.shape[0], column : column + there.shape[1]] = there
        there = whole
    if (box_height, box_width) != (height, width):
        flat = Pillow.fromarray(np.ascontiguousarray(there[:, :, 0] if image.shape[2] == 1 else there))
        narrowed = flat.resize((width, box_height), Pillow.Resampling.BILINEAR)
        resized = narrowed.resize((width, height), Pillow.Resampling.BILINEAR)
        there = np.asarray(resized).reshape(height, width, image.shape[2])
    return there[:, ::-1] if mirrored else there
