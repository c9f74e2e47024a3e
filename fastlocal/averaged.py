"""The averaged model: one flat row and the plain module that it loads into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import has_batchnorm, re_estimate
from .layout import ParamLayout
from .precision import Numerics


class AveragedModel:
    """What clients start from and are averaged into.

    module: the plain module, on the device and in the run's dtype; its buffers belong to the averaged model
    row: [n_params]        loaded: whether the module holds the row, its BatchNorm re-estimated
    """

    def __init__(self, module: nn.Module, layout: ParamLayout, numerics: Numerics) -> None:
        self.module = module
        self.layout = layout
        self.numerics = numerics
        self.row = layout.flatten(dict(module.named_parameters()))
        self.has_batchnorm = has_batchnorm(module)
        self.loaded = False
        self._steps_since_estimate = 0

    def numbers(self) -> dict[str, Any]:
        """What `restore` takes beside the tensors."""
        return {"loaded": self.loaded, "steps_since_estimate": self._steps_since_estimate}

    def tensors(self) -> dict[str, Tensor]:
        """The row and the module's buffers."""
        return {"row": self.row} | {f"buffer {name}": value for name, value in self.module.named_buffers()}

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what `numbers` and `tensors` gave."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.loaded, self._steps_since_estimate = numbers["loaded"], numbers["steps_since_estimate"]
        if self.loaded:
            self._load_parameters()

    @torch.no_grad()
    def replace(self, mean: Tensor) -> None:
        """Take over the clients' mean [n_params]."""
        self.row.copy_(mean)
        self.loaded = False

    def is_finite(self) -> bool:
        """Whether the module, as last loaded, holds no NaN and no infinity."""
        return all(bool(value.isfinite().all()) for value in self.module.state_dict().values())

    def count_steps(self, local_steps: int) -> None:
        """Client 0 has taken this many local steps, which num_batches_tracked is going to count."""
        self._steps_since_estimate += local_steps

    @torch.no_grad()
    def load(self, batches: Iterable[Tensor]) -> None:
        """Give the module the row's parameters, and re-estimate its BatchNorms from `batches` of inputs."""
        self._load_parameters()
        if self.has_batchnorm:
            before = {name: value.clone() for name, value in self.module.named_buffers()}
            try:
                with self.numerics.autocast():
                    re_estimate(self.module, batches, self._steps_since_estimate)
            except BaseException:  # a signal while the batches come: a saved state must hold whole estimates
                for name, value in self.module.named_buffers():
                    value.copy_(before[name])
                raise
            self._steps_since_estimate = 0
        self.loaded = True

    def _load_parameters(self) -> None:
        values = self.layout.views(self.row)
        for name, parameter in self.module.named_parameters():
            if name in values:
                parameter.copy_(values[name])
