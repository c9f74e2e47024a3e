"""The averaged model: one flat row and the plain module that it loads into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.batchnorm import batchnorm_buffers, has_batchnorm, re_estimate
from ..models.modes import Modes, set_modes
from ..models.own_tensors import places_of, tensors_of
from ..params.param_layout import ParamLayout
from ..params.precision import Numerics


class GlobalModel:
    """What clients start from and are averaged into.

    module: the plain module, on the device and in the run's dtype; its buffers belong to the averaged model
    row: [n_params]        shared: names of the parameters that are not trained and that a forward pass changes
    loaded: whether the module holds the row, its BatchNorm re-estimated
    """

    def __init__(
        self, module: nn.Module, layout: ParamLayout, numerics: Numerics, modes: Modes, changing: Iterable[str] = ()
    ) -> None:
        """Begin.

        Args:
            module: Becomes this object's.
            layout: Of its trained parameters.
            numerics: Of the run.
            modes: Of its parts in training.
            changing: Names of what a forward pass changes beside them.
        """
        self.module = module
        self.layout = layout
        self.numerics = numerics
        self.modes = modes
        self.flat_params = layout.flatten(dict(module.named_parameters()))
        set_modes(module, modes)
        self.has_batchnorm = has_batchnorm(module)
        self.loaded = False
        self._changing = tuple(changing)
        self.shared = tuple(name for name, _ in module.named_parameters() if name in self._changing)
        self._steps_since_estimate = 0

    def state_dict(self) -> dict[str, Any]:
        """What `restore` takes beside the tensors."""
        return {"loaded": self.loaded, "steps_since_estimate": self._steps_since_estimate}

    def tensors(self) -> dict[str, Tensor]:
        """The row and the module's buffers."""
        return {"row": self.flat_params} | {f"buffer {name}": value for name, value in self._buffers().items()}

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` and `tensors` gave."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.loaded, self._steps_since_estimate = numbers["loaded"], numbers["steps_since_estimate"]
        if self.loaded:
            self._load_parameters()

    @torch.no_grad()
    def replace(self, mean: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Take over the clients' mean [n_params], and buffers by name."""
        self.flat_params.copy_(mean)
        own = tensors_of(self.module)
        for name, value in buffers.items():
            own[name].copy_(value)
        self.loaded = False

    def is_finite(self) -> bool:
        """Whether the module, as last loaded, holds no NaN and no infinity."""
        values = self.module.state_dict().values()
        return all(bool(value.isfinite().all()) for value in values if isinstance(value, Tensor))

    def count_steps(self, local_steps: int) -> None:
        """Client 0 has taken this many local steps, which num_batches_tracked is going to count."""
        self._steps_since_estimate += local_steps

    @torch.no_grad()
    def load(self, batches: Iterable[Tensor]) -> None:
        """Give the module the row's parameters, and re-estimate its BatchNorms from `batches` of inputs."""
        self._load_parameters()
        if self.has_batchnorm:
            set_modes(self.module, self.modes)
            with self.left_alone(), self.numerics.autocast():
                re_estimate(self.module, batches, self._steps_since_estimate)
                estimated = {name: value.clone() for name, value in batchnorm_buffers(self.module).items()}
            # not while the batches come, when a signal may: a saved state must hold whole estimates
            for name, value in batchnorm_buffers(self.module).items():
                value.copy_(estimated[name])
            self._steps_since_estimate = 0
        self.loaded = True

    @contextlib.contextmanager
    def left_alone(self) -> Iterator[None]:
        """Undo at the end what forward passes do to the module's tensors; those of the row come from there."""
        places = [place for place in places_of(self.module) if place.name not in self.layout.names]
        before = [place.value.clone() for place in places]
        try:
            yield
        finally:
            with torch.no_grad():
                for place, old in zip(places, before, strict=True):
                    place.kept[place.key] = place.value
                    place.value.copy_(old)
                self._load_parameters()

    def _buffers(self) -> dict[str, Tensor]:
        """Return the buffers, and the parameters that a forward pass changes without training them."""
        own = tensors_of(self.module)
        return {**dict(self.module.named_buffers()), **{name: own[name] for name in self._changing}}

    def _load_parameters(self) -> None:
        values = self.layout.views(self.flat_params)
        for name, parameter in self.module.named_parameters():
            if name in values:
                parameter.copy_(values[name])
