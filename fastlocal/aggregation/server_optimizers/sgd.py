"""A part of the way to the mean: x <- x + server_lr * (mean - x)."""

from __future__ import annotations

from torch import Tensor

from ._base import ServerOptimizer


class Optimizer(ServerOptimizer):
    """SGD on the negative difference."""

    defaults = {"server_lr": 1.0}

    def _step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        self._server_step(start, mean, None, None, rate=self.settings.server_lr)
        return start
