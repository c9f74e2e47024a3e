"""The module that local steps run: it keeps no state, and vmap differentiates it as plain torch would."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def local_module(module: nn.Module) -> nn.Module:
    """A copy in training mode whose BatchNorms normalise by batch statistics and keep none."""
    local = replace_all_batch_norm_modules_(copy.deepcopy(module)).train()
    first = next(local.parameters(), torch.empty(0))
    for part in local.modules():
        if isinstance(part, NORMS) and part.weight is None:
            # on a CPU torch keeps the statistics of bf16 inputs in the weight's precision, and without one in bf16
            del part.weight
            ones = torch.ones(_scales(part), dtype=first.dtype, device=first.device)
            part.register_buffer("weight", ones, persistent=False)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.register_forward_hook(_Padding(part.padding_idx), with_kwargs=True)
    return local


def _scales(part: nn.Module) -> tuple[int, ...]:
    """Shape of the weight that a norm would have."""
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape
    channels = part.num_channels if isinstance(part, nn.GroupNorm) else part.num_features
    assert isinstance(channels, int)
    return (channels,)


class _Padding:
    """Stops the gradient of an embedding at its padding index.

    vmap's rule for the embedding itself looks for that index in the weights of all clients laid end to end, and so
    finds the first client's alone (torch 2.15).
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        ids: Tensor = inputs[0] if inputs else named["input"]
        return torch.where((ids == self.index).unsqueeze(-1), output.detach(), output)
