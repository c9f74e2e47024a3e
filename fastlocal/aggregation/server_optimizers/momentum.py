"""FedAvgM: momentum on the differences (Hsu, Qi, Brown 2019, without Nesterov's step).

m <- server_momentum * m + (mean - x)        x <- x + server_lr * m
"""

from __future__ import annotations

from torch import Tensor

from ._base import ServerOptimizer


class Optimizer(ServerOptimizer):
    """Heavy-ball momentum."""

    defaults = {"server_lr": 1.0, "server_momentum": 0.9}
    buffers = ("momentum",)
    nesterov = False

    def _step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        settings = self.settings
        self._server_step(
            start,
            mean,
            self.state["momentum"],
            None,
            rate=settings.server_lr,
            decay=settings.server_momentum,
            nesterov=self.nesterov,
        )
        return start
