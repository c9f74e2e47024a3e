"""The end of a local step: gradients of some clients, clipped where that is asked for, into their parameters."""

from __future__ import annotations

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
"""Values of a parameter from which one pass over them, client by client, takes less time than several over all."""


class Update:
    """SGD on rows of parameters, in place, as a problem says."""

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
        self._decays = [problem.weight_decay * decays for decays in problem.layout.decays]

    def __call__(self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor) -> None:
        """params, momentum, grads: [clients, n_params], grads may be overwritten        learning_rates: [clients]"""
        with span("client_sgd"):
            scale = None if self._problem.clip_norm is None else self._scale(self._norm(grads))
            self.step(params, momentum, grads, learning_rates, scale)

    def by_parameter(
        self, params: Tensor, momentum: Tensor | None, grads: Sequence[Tensor], learning_rates: Tensor
    ) -> None:
        """The same on a CPU from the gradients of every parameter, [clients, *shape].

        No row of them is put together, which would take two more passes over memory, and none is written to, as two
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
                some = params[:, place]
                momenta = None if momentum is None else momentum[:, place]
                if some.shape[1] < LARGE:
                    rows, mask = grad.reshape(len(params), -1).clone(), self._decay_mask[place]
                    self._sgd(some, momenta, rows, learning_rates, mask, **self._constants, grad_scale=scale)
                    continue
                for client, rate in enumerate(rates):
                    row = grad[client].reshape(-1).contiguous()
                    row = row if scale is None else row * scale[client]
                    own = [] if momenta is None else [momenta[client]]
                    _sgd_in_one_pass(some[client], own, row, rate, decay, problem)

    def step(
        self, params: Tensor, momentum: Tensor | None, grads: Tensor, learning_rates: Tensor, scale: Tensor | None
    ) -> None:
        """The same with gradients scaled by `scale` [clients], as torch.compile takes it."""
        self._sgd(params, momentum, grads, learning_rates, self._decay_mask, **self._constants, grad_scale=scale)

    def _scale(self, norms: Tensor) -> Tensor:
        assert self._problem.clip_norm is not None
        return (self._problem.clip_norm / (norms + EPSILON)).clamp_(max=1.0)


def _sgd_in_one_pass(
    params: Tensor, momenta: list[Tensor], grads: Tensor, rate: float, decay: float, problem: LocalProblem
) -> None:
    """torch.optim.SGD(fused=True) of one parameter of one client; all contiguous."""
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
