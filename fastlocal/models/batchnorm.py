"""Re-estimation of BatchNorm's running statistics for the global model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, _BatchNorm

from .own_tensors import places_of


def is_re_estimated(part: nn.Module) -> bool:
    """Return True if a part is one of torch's own BatchNorms with running statistics, in training mode.

    Buffers of other norms are treated like any other buffer.
    """
    if not isinstance(part, _BatchNorm) or not part.track_running_stats or not part.training:
        return False
    return type(part).forward in (kind.forward for kind in (BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm))


def has_batchnorm(module: nn.Module) -> bool:
    """Return True if a module in its training modes has a BatchNorm whose statistics are re-estimated."""
    return any(map(is_re_estimated, module.modules()))


def batchnorm_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the re-estimated running statistics by name; `module` must be in its training modes."""
    places = (place for place in places_of(module) if place.tensors is place.part._buffers)
    return {place.name: place.value for place in places if is_re_estimated(place.part)}


@torch.no_grad()
def re_estimate(module: nn.Module, batches: Iterable[Tensor], local_steps: int, *, gradients: bool = False) -> None:
    """Set running statistics to their mean over `batches`, by BatchNorm momentum 1 / (i + 1) for batch i.

    Args:
        module: The module in its training modes; parts in evaluation mode keep their statistics.
        batches: Inputs [batch, ...].
        local_steps: Steps of client 0 since the last call, added to num_batches_tracked besides the batches.
        gradients: Whether the module takes derivatives in forward.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and is_re_estimated(part)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += local_steps
    try:
        for index, inputs in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)
            with torch.set_grad_enabled(gradients):
                module(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
