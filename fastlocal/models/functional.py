"""The module of the local steps: without running statistics, and with the gradients of plain torch under vmap."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import is_re_estimated
from .modes import Modes, set_modes

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def local_module(module: nn.Module, modes: Modes) -> nn.Module:
    """Return a copy in `modes` whose BatchNorms in training mode have no running statistics."""
    local = copy.deepcopy(module)
    set_modes(local, modes)
    for part in local.modules():
        if isinstance(part, _BatchNorm) and is_re_estimated(part):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    first = next(local.parameters(), torch.empty(0))
    for part in local.modules():
        if isinstance(part, NORMS) and part.weight is None:
            # on a CPU torch computes statistics of bf16 inputs in the weight's precision, without a weight in bf16
            del part.weight
            ones = torch.ones(_weight_shape(part), dtype=first.dtype, device=first.device)
            part.register_buffer("weight", ones, persistent=False)
    return local


def has_convolution(module: nn.Module) -> bool:
    """Return True if a part is a convolution."""
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())


def _weight_shape(part: nn.Module) -> tuple[int, ...]:
    """Return the shape of a norm's weight."""
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape
    channels = part.num_channels if isinstance(part, nn.GroupNorm) else part.num_features
    assert isinstance(channels, int)
    return (channels,)
