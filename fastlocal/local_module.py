"""The module that local steps run: it keeps no state, and vmap differentiates it as plain torch would."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_


def local_module(module: nn.Module) -> nn.Module:
    """A copy in training mode whose BatchNorms normalise by batch statistics and keep none."""
    local = replace_all_batch_norm_modules_(copy.deepcopy(module)).train()
    for part in local.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.register_forward_hook(_Padding(part.padding_idx), with_kwargs=True)
    return local


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
