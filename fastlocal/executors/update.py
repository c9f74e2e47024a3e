"""The end of a local step: gradients of some clients, clipped where that is asked for, into their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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


def decays(problem: LocalProblem) -> list[float]:
    """The weight decay of every tensor of the layout."""
    masks = problem.layout.views(problem.layout.decay_mask)
    return [problem.weight_decay * float(mask.flatten()[0]) if mask.numel() else 0.0 for mask in masks.values()]


class ListUpdate:
    """The same for one client on a CPU, tensor by tensor in one pass over memory each, where `Update` takes several.

    which: places in the layout of the tensors that it is given
    """

    def __init__(self, problem: LocalProblem, which: Sequence[int]) -> None:
        self._problem = problem
        self._which = which
        rates = decays(problem)
        self._groups = {
            decay: [place for place, index in enumerate(which) if rates[index] == decay]
            for decay in sorted({rates[index] for index in which})
        }

    def of(self, params: Sequence[Tensor], momenta: Sequence[Tensor]) -> Callable[[list[Tensor], float], None]:
        """(gradients, learning rate) -> None, for a client whose parameters and momenta are these, all of them."""
        problem = self._problem
        groups = []
        for decay, places in self._groups.items():
            own = [self._which[place] for place in places]
            groups.append((decay, places, [params[i] for i in own], [momenta[i] for i in own] if momenta else []))

        def update(grads: list[Tensor], rate: float) -> None:
            if problem.clip_norm is not None:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
                # one tensor may be the gradient of two parameters
                grads = list(torch._foreach_mul(grads, (problem.clip_norm / (norm + EPSILON)).clamp_(max=1.0)))
            for decay, places, changed, kept in groups:
                torch._fused_sgd_(
                    changed,
                    [grads[place] for place in places],
                    kept,
                    weight_decay=decay,
                    momentum=problem.momentum,
                    lr=rate,
                    dampening=0.0,
                    nesterov=problem.nesterov,
                    maximize=False,
                    is_first_step=False,
                )

        return update
