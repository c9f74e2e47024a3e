"""FedAdagrad: v <- v + d^2 (Reddi et al. 2021)."""

from __future__ import annotations

from typing import Any

from ._adaptive import AdaptiveOptimizer


class Optimizer(AdaptiveOptimizer):
    """Adagrad on the negative differences."""

    defaults = {"server_lr": 0.1, "server_beta1": 0.0, "server_tau": 1e-3, "server_accumulator": None}
    rule = "adagrad"

    def _of_squares(self) -> dict[str, Any]:
        return {}
