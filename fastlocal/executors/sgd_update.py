"""SGD with gradient clipping on the flat parameters of several clients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlocal import kernels

from ..telemetry.trace import span
from .base import LocalProblem

EPSILON = 1e-6
"""Added to norms, as torch.nn.utils.clip_grad_norm_ does."""
LARGE = 2**15
"""Minimum parameter size for which a per-client fused SGD is faster."""


class Update:
    """SGD steps of a problem, in place on rows of parameters."""

    def __init__(self, problem: LocalProblem) -> None:
        source = problem.source
        self._problem = problem
        self._sgd = kernels.get("client_sgd", device=source.device)
        self._norm = kernels.get("client_norm", device=source.device)
        self._constants: dict[str, Any] = {
            "mu": problem.momentum,
            "weight_decay": problem.weight_decay,
            "nesterov": problem.nesterov,
        }
        self._decay_mask = problem.layout.decay_mask.to(source.device, source.dtype)
        self._places = problem.layout.places

    @functools.cached_property
    def _decays(self) -> list[float]:
        """The weight decay of each parameter; cached, because it reads the mask on the host."""
        return [self._problem.weight_decay * decays for decays in self._problem.layout.decays]

    def __call__(self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor) -> None:
        """Clip the gradients and take one SGD step for every client.

        Args:
            params: [clients, n_params].
            momentum: [clients, n_params], or None.
            grads: [clients, n_params]; may be overwritten.
            learning_rates: [clients].
        """
        with span("client_sgd"):
            scale = None if self._problem.clip_norm is None else self._scale(self._norm(grads))
            self.step(params, momentum, grads, learning_rates, scale)

    def by_parameter(
        self, params: Tensor, momentum: Tensor | None, grads: Sequence[Tensor], learning_rates: Tensor
    ) -> None:
        """Clip the gradients and take one SGD step on a CPU, from a gradient [clients, *shape] for each parameter.

        Gathering the gradients in rows would take two more passes over memory. They are not overwritten, because two
        parameters may share a gradient.
        """
        problem = self._problem
        with span("client_sgd"):
            rates, scale = learning_rates.tolist(), None
            if problem.clip_norm is not None:
                norms = [
                    torch.linalg.vector_norm(grad.unsqueeze(-1), dim=[*range(1, 1 + grad.dim())]) for grad in grads
                ]
                scale = self._scale(torch.linalg.vector_norm(torch.stack(norms), dim=0))
            for grad, place, decay in zip(grads, self._places, self._decays, strict=True):
                values = params[:, place]
                momenta = None if momentum is None else momentum[:, place]
                if values.shape[1] < LARGE:
                    rows, mask = grad.reshape(len(params), -1).clone(), self._decay_mask[place]
                    self._sgd(values, momenta, rows, learning_rates, mask, **self._constants, grad_scale=scale)
                    continue
                for client, rate in enumerate(rates):
                    row = grad[client].reshape(-1).contiguous()
                    row = row if scale is None else row * scale[client]
                    own = [] if momenta is None else [momenta[client]]
                    _fused_sgd(values[client], own, row, rate, decay, problem)

    def step(
        self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor, scale: Tensor | None
    ) -> None:
        """Take one SGD step with gradients scaled by `scale` [clients] or None; torch.compile supports this part."""
        self._sgd(params, momentum, grads, learning_rates, self._decay_mask, **self._constants, grad_scale=scale)

    def _scale(self, norms: Tensor) -> Tensor:
        assert self._problem.clip_norm is not None
        return (self._problem.clip_norm / (norms + EPSILON)).clamp_(max=1.0)


def _fused_sgd(
    params: Tensor, momenta: list[Tensor], grads: Tensor, rate: float, decay: float, problem: LocalProblem
) -> None:
    """Apply torch.optim.SGD(fused=True) to one parameter of one client; all tensors are contiguous."""
    torch._fused_sgd_(
        [params],
        [grads],
        momenta,
        weight_decay=decay,
        momentum=problem.momentum,
        lr=rate,
        dampening=0.0,
        nesterov=problem.nesterov,
        maximize=False,
        is_first_step=False,
    )
