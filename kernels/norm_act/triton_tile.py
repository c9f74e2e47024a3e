"""How the Triton kernels of norm_act cut stacked activations into tiles [channels, positions].

A unit is what one mean is taken over: a group of channels of one sample, or for BatchNorm a channel of one client over
its whole batch. The positions of a unit are its pixels, for BatchNorm those of all samples. A tile holds whole groups,
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
    """Of each row of a tile: its group, its channel, and whether there is such a channel."""
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
    """Of a tile's elements from the start of the tensor, [channels, positions]; client, sample, channel are int64."""
    if OVER_BATCH:
        along = (position // PIXELS).to(tl.int64) * stride_batch + (position % PIXELS).to(tl.int64) * stride_pixel
    else:
        along = sample * stride_batch + position.to(tl.int64) * stride_pixel
    return client * stride_client + (channel * stride_channel)[:, None] + along[None, :]


@triton.jit
def group_sum(value, TILE_GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """[channels] -> [channels]: the sum over each one's group."""
    if PADDED == 1:
        total = value
    else:
        summed = tl.sum(tl.reshape(value, (TILE_GROUPS, PADDED)), axis=1)
        total = tl.reshape(tl.broadcast_to(summed[:, None], (TILE_GROUPS, PADDED)), (TILE_GROUPS * PADDED,))
    return total


@triton.jit
def moments(x, inside, count, TILE_GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """Mean of each row's group over its `count` elements, and the sum of the squares of what differs from it."""
    mean = group_sum(tl.sum(x, axis=1), TILE_GROUPS, PADDED) / count
    apart = tl.where(inside, x - mean[:, None], 0.0)
    return mean, group_sum(tl.sum(apart * apart, axis=1), TILE_GROUPS, PADDED)


@triton.jit
def per_channel(pointer, client, stride_client, channel, inside, default: tl.constexpr):
    """fp32 [channels] of an affine parameter [clients, channels], `default` where there is none."""
    if pointer is None:
        value = tl.full(channel.shape, default, tl.float32)
    else:
        value = tl.load(pointer + client * stride_client + channel, mask=inside, other=0.0).to(tl.float32)
    return value


@dataclass(frozen=True)
class Plan:
    """groups, per_group: of channels, for BatchNorm every channel its own        samples: whose statistics differ
    positions: of a unit, `pixels` of each sample        resident: whether a unit fits into one program
    tile_groups, padded, tile_positions: sizes of a tile        splits, group_tiles: how many of them along each axis
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
        """The kernels' constants, and how many warps take a tile."""
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
"""Neighbours in channels-last memory that a tile takes where a unit is too large for one program."""

FP32_ELEMENTS = 8192
"""Of 4 bytes in a part of a unit: twice as many take 16 warps, whose threads have 128 registers each and spill."""


def plan(x: Tensor, groups: int, *, elements: int) -> Plan:
    """How to cut x [clients, batch, channels, pixels].

    groups: as in `norm_act`        elements: that a program may hold
    Where channels are neighbours in memory a tile takes as many as it can, else one unit if it is not too small.
    """
    batch, count, pixels = x.shape[1:]
    per_group = count // groups if groups else 1
    positions = pixels if groups else batch * pixels
    assert per_group * positions < 2**31 - 2**15, "a unit's elements are counted in int32, whole tiles of them"
    padded, whole = triton.next_power_of_2(per_group), triton.next_power_of_2(positions)
    most = triton.next_power_of_2(count // per_group)
    last = x.stride(2) == 1 and count > 1
    fits = (elements if last else min(elements, 4096)) // (padded * whole)
    resident = padded * whole <= elements and (not last or padded * fits >= min(8, count))
    if resident:
        tile_groups, tile_positions = max(1, min(most, fits)), whole
    else:
        held = elements if x.element_size() < 4 else min(elements, FP32_ELEMENTS)
        tile_groups = max(1, min(most, SPLIT_CHANNELS // padded)) if last else 1
        tile_positions = max(1, min(whole, held // (tile_groups * padded)))
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
    """[clients, batch, channels, *spatial] -> [clients, batch, channels, pixels] over the same memory.

    Raises RuntimeError where the spatial axes do not lie as one in memory.
    """
    return x.view(*x.shape[:3], -1) if x.numel() else x.new_empty((*x.shape[:3], 0))


def strides(name: str, x: Tensor | None) -> dict[str, int]:
    """Keyword arguments NAME_stride_AXIS of a kernel for `flat(x)`; zeros where there is no tensor."""
    steps = (0, 0, 0, 0) if x is None else x.stride()
    return {
        f"{name}_stride_{axis}": step for axis, step in zip(("client", "batch", "channel", "pixel"), steps, strict=True)
    }


def collapses(x: Tensor) -> bool:
    """Whether `flat` can take x."""
    axes = [axis for axis in range(3, x.dim()) if x.shape[axis] != 1]
    return all(x.stride(i) == x.shape[j] * x.stride(j) for i, j in zip(axes[:-1], axes[1:], strict=True))


def check_tensors(x: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError for float64 inputs, as the kernels compute in fp32, and for tensors of another kind or device.

    others: {name: tensor}, of right shapes
    """
    if x.dtype == torch.float64:
        raise ValueError("the Triton kernels of norm_act compute in fp32; use the reference for float64")
    for name, tensor in {"x": x, **others}.items():
        if tensor is not None:
            expect(name, tensor, tensor.shape, x.device, dense=False)
