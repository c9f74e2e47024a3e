"""Tiles [channels, positions] of stacked activations for the Triton kernels of norm_act.

A unit is the set of elements of one mean: a group of channels of one sample, or for BatchNorm a channel of one client
over its batch. The positions of a unit are its pixels, for BatchNorm those of all samples. A tile holds whole groups,
each padded to a power of two of channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect


@triton.jit
def channels(
    first_group, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, TILE_GROUPS: tl.constexpr, PADDED: tl.constexpr
):
    """Return group, channel, and whether the channel exists, for each row of a tile."""
    row = tl.arange(0, TILE_GROUPS * PADDED)
    group = first_group + row // PADDED
    if PER_GROUP == PADDED:
        channel = first_group * PER_GROUP + row
        inside = channel < GROUPS * PER_GROUP
    else:
        channel = group * PER_GROUP + row % PADDED
        inside = (group < GROUPS) & (row % PADDED < PER_GROUP)
    return group, channel, inside


@triton.jit
def offsets(
    client,
    sample,
    channel,
    position,
    stride_client,
    stride_batch,
    stride_channel,
    stride_pixel,
    PIXELS: tl.constexpr,
    OVER_BATCH: tl.constexpr,
):
    """Return the offsets of a tile's elements, [channels, positions]; client, sample and channel are int64."""
    if OVER_BATCH:
        along = (position // PIXELS).to(tl.int64) * stride_batch + (position % PIXELS).to(tl.int64) * stride_pixel
    else:
        along = sample * stride_batch + position.to(tl.int64) * stride_pixel
    return client * stride_client + (channel * stride_channel)[:, None] + along[None, :]


@triton.jit
def group_sum(value, TILE_GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """Sum [channels] over each channel's group, as [channels]."""
    if PADDED == 1:
        total = value
    else:
        sums = tl.sum(tl.reshape(value, (TILE_GROUPS, PADDED)), axis=1)
        total = tl.reshape(tl.broadcast_to(sums[:, None], (TILE_GROUPS, PADDED)), (TILE_GROUPS * PADDED,))
    return total


@triton.jit
def moments(x, inside, count, TILE_GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """Return each row's group mean over its `count` elements, and the sum of squared deviations."""
    mean = group_sum(tl.sum(x, axis=1), TILE_GROUPS, PADDED) / count
    deviation = tl.where(inside, x - mean[:, None], 0.0)
    return mean, group_sum(tl.sum(deviation * deviation, axis=1), TILE_GROUPS, PADDED)


@triton.jit
def per_channel(pointer, client, stride_client, channel, inside, default: tl.constexpr):
    """Load an affine parameter [clients, channels] as fp32 [channels]; `default` without one."""
    if pointer is None:
        value = tl.full(channel.shape, default, tl.float32)
    else:
        value = tl.load(pointer + client * stride_client + channel, mask=inside, other=0.0).to(tl.float32)
    return value


@dataclass(frozen=True)
class Plan:
    """Tiling of stacked activations.

    Attributes:
        groups: Number of groups; for BatchNorm every channel is one.
        per_group: Channels per group.
        samples: Samples with separate statistics.
        pixels: Pixels of a sample.
        positions: Positions of a unit.
        over_batch: Whether a unit covers the batch.
        resident: Whether a unit fits into one program.
        tile_groups: Groups of a tile.
        tile_positions: Positions of a tile.
    """

    groups: int
    per_group: int
    samples: int
    pixels: int
    positions: int
    over_batch: bool
    resident: bool
    tile_groups: int
    tile_positions: int

    @property
    def padded(self) -> int:
        return triton.next_power_of_2(self.per_group)

    @property
    def splits(self) -> int:
        return triton.cdiv(self.positions, self.tile_positions)

    @property
    def group_tiles(self) -> int:
        return triton.cdiv(self.groups, self.tile_groups)

    @property
    def constants(self) -> dict[str, int | bool]:
        """Constants of the kernels, and the number of warps per tile."""
        elements = self.tile_groups * self.padded * self.tile_positions
        return {
            "GROUPS": self.groups,
            "PER_GROUP": self.per_group,
            "PIXELS": self.pixels,
            "OVER_BATCH": self.over_batch,
            "TILE_GROUPS": self.tile_groups,
            "PADDED": self.padded,
            "TILE_POSITIONS": self.tile_positions,
            "num_warps": max(1, min(16, elements // ELEMENTS_PER_WARP)),
        }


ELEMENTS_PER_WARP = 1024
SPLIT_CHANNELS = 64
"""Contiguous channels of a channels-last tile if a unit is too large for one program."""

FP32_ELEMENTS = 8192
"""Limit for parts of a unit with 4-byte elements: twice as many need 16 warps, whose threads spill 128 registers."""


def plan(x: Tensor, groups: int, *, elements: int) -> Plan:
    """Plan the tiles of x [clients, batch, channels, pixels].

    If channels are contiguous, a tile takes as many as possible; else one unit, if it is not too small.

    Args:
        x: The activations.
        groups: As in `norm_act`.
        elements: Maximum elements per program.
    """
    batch, count, pixels = x.shape[1:]
    per_group = count // groups if groups else 1
    positions = pixels if groups else batch * pixels
    assert per_group * positions < 2**31 - 2**15, "a unit's elements are counted in int32, whole tiles of them"
    padded, whole = triton.next_power_of_2(per_group), triton.next_power_of_2(positions)
    max_groups = triton.next_power_of_2(count // per_group)
    last = x.stride(2) == 1 and count > 1
    fits = (elements if last else min(elements, 4096)) // (padded * whole)
    resident = padded * whole <= elements and (not last or padded * fits >= min(8, count))
    if resident:
        tile_groups, tile_positions = max(1, min(max_groups, fits)), whole
    else:
        limit = elements if x.element_size() < 4 else min(elements, FP32_ELEMENTS)
        tile_groups = max(1, min(max_groups, SPLIT_CHANNELS // padded)) if last else 1
        tile_positions = max(1, min(whole, limit // (tile_groups * padded)))
    return Plan(
        groups=count // per_group,
        per_group=per_group,
        samples=batch if groups else 1,
        pixels=pixels,
        positions=positions,
        over_batch=not groups,
        resident=resident,
        tile_groups=tile_groups,
        tile_positions=tile_positions,
    )


def flat(x: Tensor) -> Tensor:
    """View [clients, batch, channels, *spatial] as [clients, batch, channels, pixels].

    Raises RuntimeError if the spatial axes cannot be merged.
    """
    return x.view(*x.shape[:3], -1) if x.numel() else x.new_empty((*x.shape[:3], 0))


def strides(name: str, x: Tensor | None) -> dict[str, int]:
    """Return a kernel's keyword arguments NAME_stride_AXIS for `flat(x)`; zeros without a tensor."""
    steps = (0, 0, 0, 0) if x is None else x.stride()
    return {
        f"{name}_stride_{axis}": step for axis, step in zip(("client", "batch", "channel", "pixel"), steps, strict=True)
    }


def collapses(x: Tensor) -> bool:
    """Return True if `flat` can view x."""
    axes = [axis for axis in range(3, x.dim()) if x.shape[axis] != 1]
    return all(x.stride(i) == x.shape[j] * x.stride(j) for i, j in zip(axes[:-1], axes[1:], strict=True))


def check_tensors(x: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError for float64 inputs, and for others {name: tensor} of another dtype or device."""
    if x.dtype == torch.float64:
        raise ValueError("the Triton kernels of norm_act compute in fp32; use the reference for float64")
    for name, tensor in {"x": x, **others}.items():
        if tensor is not None:
            expect(name, tensor, tensor.shape, x.device, dense=False)
