"""The end of a local step: gradients of some clients, clipped where that is asked for, into their parameters."""

from __future__ import annotations

from torch import Tensor

from fastlocal import kernels

from ..telemetry.trace import span
from .base import LocalProblem

EPSILON = 1e-6
"""Added to norms, as torch.nn.utils.clip_grad_norm_ does."""


class Update:
    """SGD on rows of parameters, in place, as a problem says."""

    def __init__(self, problem: LocalProblem) -> None:
        source = problem.source
        self._problem = problem
        self._sgd = kernels.get("client_sgd", device=source.device)
        self._norm = kernels.get("client_norm", device=source.device)
        self._decay_mask = problem.layout.decay_mask.to(source.device, source.dtype)

    def __call__(self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor) -> None:
        """params, momentum, grads: [clients, n_params], grads may be overwritten        learning_rates: [clients]"""
        with span("client_sgd"):
            self.step(params, momentum, grads, learning_rates)

    def step(self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor) -> None:
        """The same without a name for profilers, as torch.compile takes it."""
        problem = self._problem
        scale = None
        if problem.clip_norm is not None:
            scale = (problem.clip_norm / (self._norm(grads) + EPSILON)).clamp_(max=1.0)
        self._sgd(
            params,
            momentum,
            grads,
            learning_rates,
            self._decay_mask,
            mu=problem.momentum,
            weight_decay=problem.weight_decay,
            nesterov=problem.nesterov,
            grad_scale=scale,
        )
