"""The global model: one flat row of parameters and the plain module that it loads into."""

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
    """Start of the clients in a round, and their average after it.

    Attributes:
        module: The plain module, on the device and in the run's dtype; its buffers belong to the global model.
        flat_params: [n_params].
        shared: Names of untrained parameters that a forward pass changes.
        loaded: Whether the module holds `flat_params`, with re-estimated BatchNorm.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ParamLayout,
        numerics: Numerics,
        modes: Modes,
        changing: Iterable[str] = (),
        gradients: bool = False,
    ) -> None:
        """Take over a module.

        Args:
            module: The model; it belongs to this object from now on.
            layout: Layout of its trained parameters.
            numerics: Number formats of the run.
            modes: Training modes of its parts.
            changing: Names of other tensors that a forward pass changes.
            gradients: Whether its forward pass takes derivatives.
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
        self._gradients = gradients
        self.shared = tuple(name for name, _ in module.named_parameters() if name in self._changing)
        self._steps_since_estimate = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `restore` beside the tensors."""
        return {"loaded": self.loaded, "steps_since_estimate": self._steps_since_estimate}

    def tensors(self) -> dict[str, Tensor]:
        """Return the flat parameters and the module's buffers."""
        return {"row": self.flat_params} | {f"buffer {name}": value for name, value in self._buffers().items()}

    @torch.no_grad()
    def restore(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore the state of `state_dict` and `tensors`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.loaded, self._steps_since_estimate = metadata["loaded"], metadata["steps_since_estimate"]
        if self.loaded:
            self._load_parameters()

    @torch.no_grad()
    def replace(self, mean: Tensor, buffers: Mapping[str, Tensor], columns: slice = slice(None)) -> None:
        """Set `columns` of the parameters to their mean over the clients, and buffers by name."""
        self.flat_params[columns].copy_(mean)
        if buffers:
            own = tensors_of(self.module)
            for name, value in buffers.items():
                own[name].copy_(value)
        self.loaded = False

    def is_finite(self) -> bool:
        """Return True if the module, as last loaded, has no NaN and no infinity."""
        values = self.module.state_dict().values()
        return all(bool(value.isfinite().all()) for value in values if isinstance(value, Tensor))

    def count_steps(self, local_steps: int) -> None:
        """Count local steps of client 0 for the next update of num_batches_tracked."""
        self._steps_since_estimate += local_steps

    @torch.no_grad()
    def load(self, batches: Iterable[Tensor]) -> None:
        """Load the flat parameters into the module, and re-estimate its BatchNorms from `batches` of inputs."""
        self._load_parameters()
        if self.has_batchnorm:
            set_modes(self.module, self.modes)
            with self.preserve_tensors(), self.numerics.autocast():
                re_estimate(self.module, batches, self._steps_since_estimate, gradients=self._gradients)
                estimated = {name: value.clone() for name, value in batchnorm_buffers(self.module).items()}
            # copied at the end: a signal between batches must not leave half an estimate in a saved state
            for name, value in batchnorm_buffers(self.module).items():
                value.copy_(estimated[name])
            self._steps_since_estimate = 0
        self.loaded = True

    @contextlib.contextmanager
    def preserve_tensors(self) -> Iterator[None]:
        """Undo changes of the module's tensors by forward passes at the end of the block."""
        places = [place for place in places_of(self.module) if place.name not in self.layout.names]
        before = [place.value.clone() for place in places]
        try:
            yield
        finally:
            with torch.no_grad():
                for place, old in zip(places, before, strict=True):
                    place.tensors[place.key] = place.value
                    place.value.copy_(old)
                self._load_parameters()

    def _buffers(self) -> dict[str, Tensor]:
        """Return the buffers, and the untrained parameters that a forward pass changes."""
        own = tensors_of(self.module)
        return {**dict(self.module.named_buffers()), **{name: own[name] for name in self._changing}}

    def _load_parameters(self) -> None:
        values = self.layout.views(self.flat_params)
        for name, parameter in self.module.named_parameters():
            if name in values:
                parameter.copy_(values[name])
