"""Running statistics of BatchNorm, estimated for the averaged model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, _BatchNorm


def re_estimated(part: nn.Module) -> bool:
    """Whether a part is one of torch's own BatchNorms that keeps running statistics, in training mode.

    What other norms keep are buffers like any others.
    """
    if not isinstance(part, _BatchNorm) or not part.track_running_stats or not part.training:
        return False
    return type(part).forward in (kind.forward for kind in (BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm))


def has_batchnorm(module: nn.Module) -> bool:
    """Whether `module`, in its training modes, has a BatchNorm whose running statistics are re-estimated."""
    return any(map(re_estimated, module.modules()))


def batchnorm_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics that are re-estimated, by name; `module` is in its training modes."""
    return {
        f"{path}.{key}".lstrip("."): value
        for path, part in module.named_modules()
        if re_estimated(part)
        for key, value in part._buffers.items()
        if value is not None
    }


@torch.no_grad()
def re_estimate(module: nn.Module, batches: Iterable[Tensor], local_steps: int) -> None:
    """Set the running statistics of `module`, in its training modes, to their mean over `batches`.

    Args:
        module: Its parts that are in evaluation mode keep their statistics.
        batches: Inputs [batch, ...], with BatchNorm momentum 1 / (i + 1).
        local_steps: Steps of client 0 since the last call, which num_batches_tracked counts beside the batches.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and re_estimated(part)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += local_steps
    try:
        for index, inputs in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)
            module(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
