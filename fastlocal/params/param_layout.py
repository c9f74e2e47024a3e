"""Layout of a model's parameters in one flat row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParamLayout:
    """Names, shapes and columns of the trained parameters in a row of n_params values.

    Attributes:
        names: Names in the module, in column order.
        shapes: Shape of each parameter.
        sizes: Number of values of each parameter.
        decay_mask: [n_params] on the CPU, 1 where weight decay applies.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    decay_mask: Tensor

    @property
    def n_params(self) -> int:
        return sum(self.sizes)

    @property
    def places(self) -> tuple[slice, ...]:
        """The columns of each parameter."""
        ends = list(itertools.accumulate(self.sizes))
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def decays(self) -> tuple[bool, ...]:
        """Return True if weight decay applies, for each parameter."""
        return tuple(bool(self.decay_mask[place].any()) for place in self.places)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """Return {name: [..., *shape]} of row [..., n_params]: one split, so that its backward is one concatenation."""
        lead = row.shape[:-1]
        pieces = torch.split(row, list(self.sizes), dim=-1)
        places = zip(self.names, self.shapes, pieces, strict=True)
        return {name: piece.view((*lead, *shape)) for name, shape, piece in places}

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the row [n_params] of `values`."""
        return torch.cat([values[name].detach().reshape(-1) for name in self.names])


def param_layout(module: nn.Module, *, group_weight: bool) -> ParamLayout:
    """Return the layout of the parameters of `module` that require a gradient, in the module's order.

    Args:
        module: The model.
        group_weight: Exempt biases and parameters of normalization layers from weight decay.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    exempt = _exempt(module) if group_weight else set()
    masks = [torch.full((value.numel(),), 0.0 if id(value) in exempt else 1.0) for value in trained.values()]
    return ParamLayout(
        names=tuple(trained),
        shapes=tuple(value.shape for value in trained.values()),
        sizes=tuple(math.prod(value.shape) for value in trained.values()),
        decay_mask=torch.cat(masks) if masks else torch.empty(0),
    )


def _exempt(module: nn.Module) -> set[int]:
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return {
        id(value)
        for part in module.modules()
        for name, value in part.named_parameters(recurse=False)
        if isinstance(part, norms) or name == "bias" or name.endswith("_bias")
    }
