"""Base class of server optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlocal import kernels

from ...config.training_settings import ServerConfig


class ServerOptimizer(ABC):
    """Steps from the start of a round towards the mean of its clients.

    Attributes:
        defaults: {field of ServerConfig: default} of the settings that it takes.
        buffers: Names of its buffers of the size of the model.
        settings: Its settings.
        state: Its buffers [n_params], and the number of its steps.
    """

    defaults: ClassVar[Mapping[str, Any]]
    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: ServerConfig, row: Tensor) -> None:
        self.settings = settings
        self.state = {name: torch.zeros_like(row) for name in self.buffers}
        self.state["steps"] = torch.zeros((), dtype=torch.int64)
        self._server_step = kernels.get("server_step", device=row.device)

    def step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        """Return the new global model [n_params]; it may be `start`, which is then overwritten.

        Args:
            start: [n_params], start of the clients.
            mean: [n_params], their mean, of the dtype of `start` or wider.
            client_rate: Rate of the clients in the first step of the round.
        """
        self.state["steps"] += 1
        return self._step(start, mean, client_rate)

    @abstractmethod
    def _step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        """Take the step, which `step` has counted; see there."""
