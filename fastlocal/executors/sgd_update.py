"""SGD with gradient clipping on the flat parameters of several clients."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastlocal import kernels

from ..params.client_stack import ClientStack
from ..telemetry.trace import span
from .base import LocalProblem
from .clipping import Clipping, change_gradients
from .inductor import Compiler
from .round_plan import SHARED, RowValues

LARGE = 2**15
"""Minimum parameter size for which a per-client fused SGD is faster. Smaller ones, up to this size together, are
gathered in rows."""


class Update:
    """SGD steps of a problem, in place on rows of parameters."""

    def __init__(self, problem: LocalProblem) -> None:
        source = problem.source
        self._problem = problem
        self._sgd = kernels.get("client_sgd", device=source.device)
        self._clipping = Clipping(problem)
        self._constants: dict[str, Any] = {
            "mu": problem.momentum,
            "weight_decay": problem.weight_decay,
            "nesterov": problem.nesterov,
        }
        self._decay_mask = problem.layout.decay_mask.to(source.device, source.dtype)
        places = problem.layout.places
        columns = [(part, slice(places[part][0].start, places[part][-1].stop)) for part in _parts(problem.layout.sizes)]
        self._parts = [(part, place, self._decay_mask[place]) for part, place in columns]

    @functools.cached_property
    def _decays(self) -> tuple[bool, ...]:
        return self._problem.layout.decays

    def compile(self, compiler: Compiler) -> None:
        """Compile the step of rows."""
        self.step = compiler.compile(self.step)  # type: ignore[method-assign]

    def __call__(
        self,
        stack: ClientStack,
        grads: Tensor,
        learning_rates: Tensor,
        values: RowValues = SHARED,
        active: Tensor | None = None,
    ) -> None:
        """Clip the gradients and take one SGD step for every client.

        Args:
            stack: The clients, changed in place.
            grads: [clients, n_params]; may be overwritten.
            learning_rates: [clients].
            values: Hyperparameters that differ between the clients.
            active: bool [clients], clients that take the step, or None for all.
        """
        with span("client_sgd"):
            scale = self._clipping.rows(grads)
            correction = stack.correction
            if correction is not None and correction.gradient is not None:
                grads, scale = change_gradients(correction, grads, stack.params, scale), None
            self.step(
                stack.params,
                stack.momentum,
                grads,
                learning_rates,
                scale,
                values.momentum,
                values.weight_decay,
                active,
                {} if correction is None else correction.fused,
            )

    def by_parameter(
        self,
        stack: ClientStack,
        grads: Sequence[Tensor],
        learning_rates: Tensor,
        values: RowValues = SHARED,
    ) -> None:
        """Clip the gradients and take one SGD step on a CPU, from a gradient [clients, *shape] for each parameter.

        Gathering the gradients in rows would take two more passes over memory. They are not overwritten, because two
        parameters may share a gradient.
        """
        problem, params, momentum = self._problem, stack.params, stack.momentum
        clients = len(params)
        mu = [problem.momentum] * clients if values.momentum is None else values.momentum.tolist()
        decays = [problem.weight_decay] * clients if values.weight_decay is None else values.weight_decay.tolist()
        factors = self._factors(values.momentum, values.weight_decay)
        with span("client_sgd"):
            scale = self._clipping.by_parameter(grads)
            for part, place, mask in self._parts:
                weights = params[:, place]
                momenta = None if momentum is None else momentum[:, place]
                correction = None if stack.correction is None else stack.correction.columns(place)
                if weights.shape[1] < LARGE or correction is not None or part.stop - part.start > 1:
                    rows = torch.cat([grad.reshape(clients, -1) for grad in grads[part]], 1)
                    terms = {} if correction is None else correction.fused
                    self._sgd(weights, momenta, rows, learning_rates, mask, **factors, **terms, grad_scale=scale)
                    continue
                grad = grads[part.start]
                for client, rate in enumerate(learning_rates.tolist()):
                    row = grad[client].reshape(-1).contiguous()
                    row = row if scale is None else row * scale[client]
                    own = [] if momenta is None else [momenta[client]]
                    decay = decays[client] * self._decays[part.start]
                    _fused_sgd(weights[client], own, row, rate, decay, mu[client], nesterov=problem.nesterov)

    def step(
        self,
        params: Tensor,
        momentum: Tensor | None,
        grads: Tensor,
        learning_rates: Tensor,
        scale: Tensor | None,
        mu: Tensor | None = None,
        weight_decay: Tensor | None = None,
        active: Tensor | None = None,
        correction: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Take one SGD step; torch.compile supports this part.

        Args:
            params: [clients, n_params].
            momentum: [clients, n_params], or None.
            grads: [clients, n_params].
            learning_rates: [clients].
            scale: [clients], factors of the gradients, or None.
            mu: [clients], momentum factors that differ, or None.
            weight_decay: [clients], factors of the weight decay that differ, or None.
            active: bool [clients], clients that take the step, or None for all.
            correction: Arguments of client_sgd with the terms of the run's algorithm.
        """
        factors = {**self._factors(mu, weight_decay), **correction}
        self._sgd(params, momentum, grads, learning_rates, self._decay_mask, **factors, grad_scale=scale, active=active)

    def _factors(self, mu: Tensor | None, weight_decay: Tensor | None) -> dict[str, Any]:
        """Return the factors of client_sgd: numbers, or a tensor [clients] for one that differs."""
        factors = dict(self._constants)
        if mu is not None:
            factors["mu"] = mu
        if weight_decay is not None:
            factors["weight_decay"] = weight_decay
        return factors


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield the parameters that take a step together."""
    begin, total = 0, 0
    for place, size in enumerate(sizes):
        if place > begin and total + size > LARGE:
            yield slice(begin, place)
            begin, total = place, 0
        total += size
    yield slice(begin, len(sizes))


def _fused_sgd(
    params: Tensor, momenta: list[Tensor], grads: Tensor, rate: float, decay: float, mu: float, *, nesterov: bool
) -> None:
    """Apply torch.optim.SGD(fused=True) to one parameter of one client; all tensors are contiguous."""
    torch._fused_sgd_(
        [params],
        [grads],
        momenta,
        weight_decay=decay,
        momentum=mu,
        lr=rate,
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
        is_first_step=False,
    )
