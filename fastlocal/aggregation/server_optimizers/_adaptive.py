"""Adaptive server optimizers (Reddi et al. 2021): steps divided by the root of a mean of squares.

    m <- beta1 * m + (1 - beta1) * d        x <- x + server_lr * m / (sqrt(v) + tau)        d = mean - x

v starts at server_accumulator, by default tau^2, and changes by the rule of each optimizer. With
server_bias_correction, m is divided by 1 - beta1^t and v by 1 - beta2^t in step t, as Adam does; the paper does not.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fastlocal.kernels.server_step.reference import Rule

from ...config.training_settings import ServerConfig
from ._base import ServerOptimizer


class AdaptiveOptimizer(ServerOptimizer):
    """Base of the adaptive optimizers.

    Attributes:
        rule: Change of v.
    """

    rule: ClassVar[Rule]
    buffers = ("mean", "square")

    def __init__(self, settings: ServerConfig, row: Tensor) -> None:
        super().__init__(settings, row)
        assert settings.server_accumulator is not None, "resolved"
        self.state["square"].fill_(settings.server_accumulator)

    def _step(self, start: Tensor, mean: Tensor, client_rate: float) -> Tensor:
        settings, steps = self.settings, int(self.state["steps"])
        assert settings.server_lr is not None and settings.server_beta1 is not None, "resolved"
        rate, extra = settings.server_lr, self._of_squares()
        if settings.server_bias_correction:
            rate /= 1 - settings.server_beta1**steps
            extra["second_scale"] = 1 / (1 - extra["second_decay"] ** steps)
        self._server_step(
            start,
            mean,
            self.state["mean"],
            self.state["square"],
            rate=rate,
            decay=settings.server_beta1,
            gain=1 - settings.server_beta1,
            rule=self.rule,
            tau=settings.server_tau,
            **extra,
        )
        return start

    def _of_squares(self) -> dict[str, Any]:
        """Return the arguments of the change of v."""
        return {"second_decay": self.settings.server_beta2}
