"""AdamW with gradient clipping on the flat parameters of several clients."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.kernels.client_sgd.reference import correction_of

from ..params.client_stack import ClientStack
from ..params.correction import Correction
from ..telemetry.trace import span
from .base import LocalProblem
from .clipping import Clipping, change_gradients
from .inductor import Compiler
from .round_plan import SHARED, RowValues
from .sgd_update import Update

FEW, LARGE = 8, 2048
"""On a CPU, torch's fused AdamW takes the steps of at most FEW clients, and those of at least LARGE parameters: its
calls take 4 µs a client, and client_adamw's passes over memory 4 ns a parameter (one core, float32)."""

Part = tuple[slice, float, Tensor]
"""Columns of the rows, factor of their weight decay, and gradients [clients, columns]."""


class AdamWUpdate:
    """AdamW steps of a problem, in place on rows of parameters; each client counts its own."""

    def __init__(self, problem: LocalProblem) -> None:
        assert problem.adamw is not None
        source, layout, settings = problem.source, problem.layout, problem.adamw
        self._problem, self._settings = problem, settings
        self._adamw = kernels.get("client_adamw", device=source.device)
        self._clipping = Clipping(problem)
        self._constants = dataclasses.asdict(settings)
        self._decay_mask = layout.decay_mask.to(source.device, source.dtype)
        self._eager = source.device.type == "cpu"
        self._parts = [
            (slice(places[0].start, places[-1].stop), decays)
            for decays, places in _runs(zip(layout.decays, layout.places, strict=True))
        ]

    def compile(self, compiler: Compiler) -> None:
        """Compile the step of rows."""
        self.step = compiler.compile(self.step)  # type: ignore[method-assign]
        self._eager = False

    def __call__(
        self,
        stack: ClientStack,
        grads: Tensor,
        learning_rates: Tensor,
        values: RowValues = SHARED,
        active: Tensor | None = None,
    ) -> None:
        """Clip the gradients and take one AdamW step for every client.

        Args:
            stack: The clients, changed in place.
            grads: [clients, n_params]; may be overwritten.
            learning_rates: [clients].
            values: Hyperparameters that differ between the clients.
            active: bool [clients], clients that take the step, or None for all.
        """
        with span("client_sgd"):
            scale, correction = self._clipping.rows(grads), stack.correction
            if correction is not None and correction.gradient is not None:
                grads, scale = change_gradients(correction, grads, stack.params, scale), None
            if self._eager and active is None and _fuses(grads) and _are_whole(stack):
                if scale is not None:
                    grads.mul_(scale.unsqueeze(-1))
                if correction is not None:
                    grads = _corrected(grads, stack.params, correction)
                assert stack.steps is not None
                stack.steps.add_(1)
                parts = [(columns, decays, grads[:, columns]) for columns, decays in self._parts]
                self._fused(stack, parts, learning_rates, values)
            else:
                self.step(
                    *(stack.params, stack.momentum, stack.square, stack.steps, grads, learning_rates, scale),
                    *(values.weight_decay, active, {} if correction is None else _terms(correction)),
                )

    def by_parameter(
        self,
        stack: ClientStack,
        grads: Sequence[Tensor],
        learning_rates: Tensor,
        values: RowValues = SHARED,
    ) -> None:
        """Clip the gradients and take one AdamW step on a CPU, from a gradient [clients, *shape] for each parameter.

        Gathering the gradients in rows would take two more passes over memory. They are not overwritten, because two
        parameters may share a gradient.
        """
        layout, clients = self._problem.layout, len(stack.params)
        assert stack.momentum is not None and stack.square is not None and stack.steps is not None
        with span("client_sgd"):
            scale, before, parts = self._clipping.by_parameter(grads), stack.steps.clone(), []
            whole = _are_whole(stack)
            stack.steps.add_(1)
            for grad, place, decays in zip(grads, layout.places, layout.decays, strict=True):
                rows = grad.reshape(clients, -1)
                if scale is not None:
                    rows = rows * scale.unsqueeze(-1)
                if stack.correction is not None:
                    rows = _corrected(rows, stack.params[:, place], stack.correction.columns(place))
                if whole and _fuses(rows):
                    parts.append((place, decays, rows))
                    continue
                self._adamw(
                    *(buffer[:, place] for buffer in (stack.params, stack.momentum, stack.square)),
                    before.clone(),
                    rows,
                    learning_rates,
                    self._decay_mask[place],
                    **self._constants,
                    weight_decay=self._problem.weight_decay if values.weight_decay is None else values.weight_decay,
                )
            if parts:
                self._fused(stack, parts, learning_rates, values)

    def step(
        self,
        params: Tensor,
        momentum: Tensor | None,
        square: Tensor | None,
        steps: Tensor | None,
        grads: Tensor,
        learning_rates: Tensor,
        scale: Tensor | None,
        weight_decay: Tensor | None = None,
        active: Tensor | None = None,
        correction: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Take one AdamW step; torch.compile supports this part.

        Args:
            params: [clients, n_params].
            momentum: [clients, n_params], the means of gradients.
            square: [clients, n_params], the means of their squares.
            steps: float64 [clients], numbers of steps.
            grads: [clients, n_params].
            learning_rates: [clients].
            scale: [clients], factors of the gradients, or None.
            weight_decay: [clients], factors of the weight decay that differ, or None.
            active: bool [clients], clients that take the step, or None for all.
            correction: Arguments of client_adamw with the terms of the run's algorithm.
        """
        self._adamw(
            params,
            momentum,
            square,
            steps,
            grads,
            learning_rates,
            self._decay_mask,
            **self._constants,
            weight_decay=self._problem.weight_decay if weight_decay is None else weight_decay,
            grad_scale=scale,
            active=active,
            **correction,
        )

    def _fused(self, stack: ClientStack, parts: Sequence[Part], learning_rates: Tensor, values: RowValues) -> None:
        """Take a step, already counted, of some columns: one call for the clients of the same rate and decay."""
        assert stack.momentum is not None and stack.square is not None and stack.steps is not None
        settings, rates, counts = self._settings, learning_rates.tolist(), stack.steps.unbind()
        decays = [self._problem.weight_decay] * len(rates)
        if values.weight_decay is not None:
            decays = values.weight_decay.tolist()
        groups: dict[tuple[float, float], list[int]] = {}
        for client, key in enumerate(zip(rates, decays, strict=True)):
            groups.setdefault(key, []).append(client)
        for columns, decays_here, grads in parts:
            rows = [buffer[:, columns].unbind() for buffer in (stack.params, stack.momentum, stack.square)]
            gradients = grads.contiguous().unbind() if grads.stride(-1) != 1 else grads.unbind()
            for (rate, decay), clients in groups.items():
                params, momenta, squares = ([each[client] for client in clients] for each in rows)
                torch._fused_adamw_(
                    params,
                    [gradients[client] for client in clients],
                    momenta,
                    squares,
                    [],
                    [counts[client] for client in clients],
                    lr=rate,
                    beta1=settings.beta1,
                    beta2=settings.beta2,
                    weight_decay=decay * decays_here,
                    eps=settings.eps,
                    amsgrad=False,
                    maximize=False,
                )


def make_update(problem: LocalProblem) -> Update | AdamWUpdate:
    """Return the steps of the problem's optimizer."""
    return Update(problem) if problem.adamw is None else AdamWUpdate(problem)


def _terms(correction: Correction) -> dict[str, Any]:
    """Return the arguments of client_adamw: its terms always act before the means."""
    return {name: value for name, value in correction.fused.items() if name != "late"}


def _corrected(grads: Tensor, params: Tensor, correction: Correction) -> Tensor:
    """Return gradients [clients, columns] with the terms of the run's algorithm."""
    terms = correction_of(params, **_terms(correction))
    return grads if terms is None else terms.add_(grads)


def _runs(places: Iterable[tuple[float, slice]]) -> list[tuple[float, list[slice]]]:
    """Group consecutive places with one factor of the weight decay."""
    runs = itertools.groupby(places, key=lambda one: one[0])
    return [(decays, [place for _, place in run]) for decays, run in runs]


def _fuses(rows: Tensor) -> bool:
    """Return True if torch's fused AdamW is faster for rows [clients, columns]."""
    return len(rows) <= FEW or rows.shape[1] >= LARGE


def _are_whole(stack: ClientStack) -> bool:
    """Return True if the numbers of steps are whole: torch's fused AdamW rounds others, averages, to float32."""
    assert stack.steps is not None
    return torch.equal(stack.steps, stack.steps.round())
