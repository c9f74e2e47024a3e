"""ResNets for 32x32 images (He et al. 2016, section 4.2), with BatchNorm + ReLU or GroupNorm + SiLU.

The three stages have 16, 32 and 64 channels; the shortcuts have no parameters (option A). Keys and order of the state
dict are those of the Local SGD code of Gu et al. (2023), which names GroupNorms bn1 and bn2 too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.common.errors import UsageError

STAGES = (16, 32, 64)


def resnet(depth: int, in_channels: int, classes: int, *, n_groups: int | None) -> ResNet:
    """Make a ResNet of `depth` = 6 n + 2 layers with n blocks per stage.

    Args:
        depth: Number of layers.
        in_channels: Channels of the images.
        classes: Number of outputs.
        n_groups: Groups of every GroupNorm (with SiLU); None for BatchNorm (with ReLU).

    Raises:
        UsageError: n_groups does not divide the 16 channels of the first stage.
    """
    if n_groups is not None and (n_groups < 1 or STAGES[0] % n_groups):
        raise UsageError(f"--n-groups {n_groups} does not divide the {STAGES[0]} channels; 1, 2, 4, 8 or 16 would do")
    return ResNet((depth - 2) // 6, in_channels, classes, n_groups)


class Block(nn.Module):
    """activation(norm(conv(activation(norm(conv(x))))) + shortcut(x)): [n, in_planes, h, w] -> [n, planes, h', w'].

    h' = ceil(h / stride). The shortcut keeps every `stride`-th pixel and pads new channels with zeros, half on each
    side.
    """

    conv1: nn.Conv2d
    bn1: nn.Module
    conv2: nn.Conv2d
    bn2: nn.Module

    def __init__(self, in_planes: int, planes: int, stride: int, n_groups: int | None) -> None:
        super().__init__()
        self.stride = stride
        self.new_planes = planes - in_planes
        self.activation = _activation(n_groups)
        parts = {
            "conv1": _conv3x3(in_planes, planes, stride),
            "bn1": _norm(planes, n_groups),
            "conv2": _conv3x3(planes, planes),
            "bn2": _norm(planes, n_groups),
        }
        # in the reference, GroupNorm blocks register both norms before the second convolution
        order = ("conv1", "bn1", "conv2", "bn2") if n_groups is None else ("conv1", "bn1", "bn2", "conv2")
        for name in order:
            self.add_module(name, parts[name])

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.activation(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_planes == 0:
            return x
        half = self.new_planes // 2
        planes = half, self.new_planes - half
        if x.stride(1) == 1:  # channels-last, as the gradient and the result are then
            return F.pad(x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride], planes).permute(0, 3, 1, 2)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *planes))


class ResNet(nn.Module):
    """Images [n, in_channels, h, w] of any size -> [n, classes]."""

    def __init__(self, blocks: int, in_channels: int, classes: int, n_groups: int | None) -> None:
        super().__init__()
        self.activation = _activation(n_groups)
        self.conv1 = _conv3x3(in_channels, STAGES[0])
        self.bn1 = _norm(STAGES[0], n_groups)
        self.layer1 = _stage(STAGES[0], STAGES[0], blocks, n_groups)
        self.layer2 = _stage(STAGES[0], STAGES[1], blocks, n_groups)
        self.layer3 = _stage(STAGES[1], STAGES[2], blocks, n_groups)
        self.linear = nn.Linear(STAGES[2], classes)
        for layer in self.modules():  # norms keep torch's start values, weight 1 and bias 0
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, (out.shape[2], out.shape[3]))
        return self.linear(out.flatten(1))


def _stage(in_planes: int, planes: int, blocks: int, n_groups: int | None) -> nn.Sequential:
    first = Block(in_planes, planes, 1 if in_planes == planes else 2, n_groups)
    return nn.Sequential(first, *(Block(planes, planes, 1, n_groups) for _ in range(blocks - 1)))


def _conv3x3(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)


def _norm(planes: int, n_groups: int | None) -> nn.Module:
    return nn.BatchNorm2d(planes) if n_groups is None else nn.GroupNorm(n_groups, planes)


def _activation(n_groups: int | None) -> Callable[[Tensor], Tensor]:
    return F.relu if n_groups is None else F.silu
