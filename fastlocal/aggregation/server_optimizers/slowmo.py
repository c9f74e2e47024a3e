"""SlowMo (Wang, Tantia, Ballas, Rabbat 2020): momentum on differences in units of the clients' rate.

    u <- server_momentum * u + (x - mean) / rate        x <- x - server_lr * rate * u

The rate is that of the clients in the round's first step, so that a change of it leaves u in scale. In a round of rate
0, no client moves, and x - mean counts as 0.
"""

from __future__ import annotations

from torch import Tensor

from ._base import ServerOptimizer


class Optimizer(ServerOptimizer):
    """Slow momentum; the buffer holds -u."""

    defaults = {"server_lr": 1.0, "server_momentum": 0.5}
    buffers = ("momentum",)

    def _step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        settings = self.settings
        assert settings.server_lr is not None, "resolved"
        self._server_step(
            start,
            mean,
            self.state["momentum"],
            None,
            rate=settings.server_lr * client_rate,
            decay=settings.server_momentum,
            gain=1 / client_rate if client_rate else 0.0,
        )
        return start
