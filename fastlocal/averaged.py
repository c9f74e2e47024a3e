"""The averaged model: one flat row and the plain module that it loads into."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .batchnorm import has_batchnorm, re_estimate
from .layout import ParamLayout
from .precision import Numerics


class AveragedModel:
    """What clients start from and are averaged into.

    module: the plain module, on the device and in the run's dtype; its buffers belong to the averaged model
    row: [n_params]
    """

    def __init__(self, module: nn.Module, layout: ParamLayout, numerics: Numerics) -> None:
        self.module = module
        self.layout = layout
        self.numerics = numerics
        self.row = layout.flatten(dict(module.named_parameters()))
        self.has_batchnorm = has_batchnorm(module)
        self._steps_since_estimate = 0

    @torch.no_grad()
    def replace(self, mean: Tensor) -> None:
        """Take over the clients' mean [n_params]."""
        self.row.copy_(mean)

    def is_finite(self) -> bool:
        """Whether the module, as last loaded, holds no NaN and no infinity."""
        return all(bool(value.isfinite().all()) for value in self.module.state_dict().values())

    def count_steps(self, local_steps: int) -> None:
        """Client 0 has taken this many local steps, which num_batches_tracked is going to count."""
        self._steps_since_estimate += local_steps

    @torch.no_grad()
    def load(self, batches: Iterable[Tensor]) -> nn.Module:
        """The module with the row's parameters, its BatchNorms re-estimated from `batches` of inputs."""
        values = self.layout.views(self.row)
        for name, parameter in self.module.named_parameters():
            if name in values:
                parameter.copy_(values[name])
        if self.has_batchnorm:
            with self.numerics.autocast():
                re_estimate(self.module, batches, self._steps_since_estimate)
            self._steps_since_estimate = 0
        return self.module
