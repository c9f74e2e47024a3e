"""Sizes and memory layouts of a stacked convolution, common to all strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Movement of the filters, as in torch.nn.functional.conv2d; pairs are (height, width), in pixels."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def from_sequences(
        cls, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Geometry:
        """Convert sequences of two numbers."""
        return cls(_pair(stride), _pair(padding), _pair(dilation), groups)

    def output_size(self, image: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the output for an image and a kernel of (height, width)."""
        height, width = (
            (image[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        )
        return height, width

    def check(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
        """Return the shape [clients, batch, out, out_h, out_w] of the output.

        Args:
            x: [clients, batch, in, h, w].
            weight: [clients, out, in / groups, kh, kw].

        Raises:
            ValueError: The shapes do not fit each other.
        """
        shapes = f"images {list(x.shape)} and filters {list(weight.shape)} of {self.groups} groups"
        if x.dim() != 5 or weight.dim() != 5:
            raise ValueError(f"a stacked convolution takes five axes each: {shapes}")
        clients, batch, channels, height, width = x.shape
        if clients != weight.shape[0]:
            raise ValueError(f"not the same number of clients: {shapes}")
        if not channels or channels != weight.shape[2] * self.groups or weight.shape[1] % self.groups:
            raise ValueError(f"channels do not fit: {shapes}")
        out_height, out_width = self.output_size((height, width), (weight.shape[3], weight.shape[4]))
        if out_height < 1 or out_width < 1:
            raise ValueError(f"filters larger than the padded images: {shapes}")
        return clients, batch, weight.shape[1], out_height, out_width


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def channels_last(x: Tensor) -> bool:
    """Return True if the channels of x [clients, batch, channels, h, w] are contiguous and its pixels are not."""
    return x.stride(2) == 1 and x.stride(4) != 1


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return dense uninitialized memory [clients, batch, channels, h, w], channels-last if `like` is."""
    return empty_last(shape, like, dtype) if channels_last(like) else like.new_empty(tuple(shape), dtype=dtype)


def empty_last(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return channels-last uninitialized memory [clients, batch, channels, h, w]."""
    clients, batch, channels, height, width = shape
    return like.new_empty((clients, batch, height, width, channels), dtype=dtype).permute(0, 1, 4, 2, 3)


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy filters to [clients, out, kh, kw, in / groups], as the Triton kernels read them, in one launch."""
    moved = weight.permute(0, 1, 3, 4, 2)
    return torch.empty(moved.shape, dtype=dtype, device=weight.device).copy_(moved)
