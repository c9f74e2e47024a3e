"""Running statistics of BatchNorm, estimated for the averaged model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batchnorm(module: nn.Module) -> bool:
    """Whether any part of `module` is a BatchNorm that keeps running statistics."""
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in module.modules())


@torch.no_grad()
def re_estimate(module: nn.Module, batches: Iterable[Tensor], local_steps: int) -> None:
    """Set the running statistics of `module` to their mean over `batches`.

    batches: inputs [batch, ...], run in training mode with BatchNorm momentum 1 / (i + 1)
    local_steps: steps of client 0 since the last call, which num_batches_tracked counts beside the batches
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += local_steps
    was_training = module.training
    module.train()
    try:
        for index, inputs in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)
            module(inputs)
    finally:
        module.train(was_training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
