"""FedYogi: v <- v - (1 - beta2) * d^2 * sign(v - d^2) (Reddi et al. 2021)."""

from __future__ import annotations

from ._adaptive import AdaptiveOptimizer


class Optimizer(AdaptiveOptimizer):
    """Yogi on the negative differences."""

    defaults = {
        "server_lr": 0.01,
        "server_beta1": 0.9,
        "server_beta2": 0.99,
        "server_tau": 1e-3,
        "server_accumulator": None,
        "server_bias_correction": False,
    }
    rule = "yogi"
