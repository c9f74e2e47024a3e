"""The algorithm of a run in its rounds: what it adds to the steps of a chunk, its state, its part of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from ..aggregation.averager import Aggregator
from ..algorithms import Algorithm, AlgorithmState, RoundWork
from ..params.client_stack import ClientRows, ClientStack
from ..params.correction import Correction, CorrectionTerms
from ..schedule.rounds import RoundSchedule
from .algorithm_checks import check_tensors, checked_row, checked_sums, checked_weights, put_back
from .fragments import PARAMETERS
from .planner import Planner

PREFIX = "algorithm "
"""Prefix of the state of clients in the ClientStore and of that of the server in resume.pt."""


@dataclass(frozen=True)
class RoundWeights:
    """Weights of the clients of a round.

    Attributes:
        clients: float64 [clients] with sum 1, or None for equal weights.
        changes: float64 [clients], how much their changes count in the mean of the parameters; None if `clients` is.
    """

    clients: Tensor | None
    changes: Tensor | None

    @property
    def total(self) -> float | None:
        """The sum of `changes`, if that is not 1 by definition."""
        return None if self.changes is self.clients or self.changes is None else float(self.changes.sum())


class AlgorithmRounds:
    """Calls an algorithm in the rounds of one process.

    Attributes:
        algorithm: The algorithm.
        terms: What it adds to the steps of the clients.
        state: Its state; that of the clients is their start values.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: AlgorithmState,
        device: torch.device,
        make_averager: Callable[[Tensor], Aggregator],
        columns: Sequence[slice],
    ) -> None:
        """Prepare the sums; every rank must do so.

        Args:
            algorithm: The algorithm.
            state: Its state before the first round, which is copied.
            device: Device of the parameters.
            make_averager: Makes the averager of a row [n_params].
            columns: Parts of the parameters that rounds average in turns.
        """
        self.columns = columns
        self.algorithm = algorithm
        self.terms = correction_terms(algorithm)
        self.state, self._device = _copy(state), device
        self._averagers = {name: make_averager(torch.zeros_like(row)) for name, row in state.sums.items()}
        self._acts_on_clients = self.terms.any or bool(state.clients) or algorithm.changes("finish")
        self._memory: dict[str, Tensor] = {}
        self._chunk: AlgorithmState | None = None
        self._work: RoundWork | None = None
        self._averages = 0

    @property
    def keeps_state(self) -> bool:
        """Return True if each client has state of its own."""
        return bool(self.state.clients)

    @property
    def client_start(self) -> dict[str, Tensor]:
        """Start values of one client, by their names in the ClientStore."""
        return {PREFIX + name: value for name, value in self.state.clients.items()}

    @property
    def steps_on_server(self) -> bool:
        """Return True if the algorithm's server does more than to take the mean."""
        return self.algorithm.changes("server")

    def begin(self, planner: Planner, schedule: RoundSchedule) -> RoundWeights:
        """Begin a round, and return the weights of its clients.

        Args:
            planner: Knows the clients of the round and what they do.
            schedule: The round.
        """
        self._averages = schedule.comm_round - schedule.averaged
        inputs = planner.inputs(schedule)
        self._work, weights, clients = inputs.work, inputs.weights, inputs.work.cohort
        if not self.algorithm.changes("weights") or not clients:
            return RoundWeights(weights, weights)
        weights = torch.full((clients,), 1 / clients, dtype=torch.float64) if weights is None else weights
        changes = self.algorithm.weights(weights.clone(), self._work)
        return RoundWeights(weights, weights if changes is None else checked_weights(changes, clients))

    def correct(self, stack: ClientStack, rows: ClientRows, center: Tensor, chunk: int) -> ClientStack:
        """Return the stack of a chunk with what the algorithm adds to its steps.

        Args:
            stack: The chunk, whose buffers also hold the algorithm's state of the clients.
            rows: Its places in the cohort.
            center: [n_params], start of the round.
            chunk: Most clients of a chunk.
        """
        if not self._acts_on_clients:
            return stack
        assert self._work is not None, "a round has begun"
        buffers = {name: rows for name, rows in stack.state.items() if not name.startswith(PREFIX)}
        own = {name: stack.state[PREFIX + name] for name in self.state.clients}
        places = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
        state = self._chunk = dataclasses.replace(self.state, clients=own, work=self._work.part(places))
        count = len(stack.params)
        if len(self.columns) > 1 and self._averages:
            averaged = self.columns[(self._averages - 1) % len(self.columns)]
            stack.params.copy_(own[PARAMETERS])
            stack.params[:, averaged] = center[averaged]
        assert state.work is not None, "set above"
        drift = prox = None
        if self.terms.drift:
            drift = self._rows("drift", center, chunk)[:count]
            self.algorithm.drift(center, state, drift)
        if self.terms.prox:
            prox = self._rows("prox", center[0], chunk)[:count]
            prox.copy_(to_device(self.algorithm.prox(state.work), center.device))
        correction = make_correction(self.terms, center, drift, prox, state)
        return dataclasses.replace(stack, state=buffers, correction=correction)

    def _rows(self, name: str, like: Tensor, count: int) -> Tensor:
        """Return memory for `count` tensors, the same in every round, as a captured step needs."""
        if name not in self._memory:
            self._memory[name] = like.new_empty(count, *like.shape)
        return self._memory[name]

    @torch.no_grad()
    def finish(self, params: Tensor, center: Tensor) -> None:
        """Update the clients' state of the chunk of the last `correct`, and add to the sums.

        Args:
            params: [clients, n_params], the clients after their local steps.
            center: [n_params], start of the round.
        """
        if not self._acts_on_clients:
            return
        assert self._chunk is not None, "corrected before"
        if len(self.columns) > 1:
            self._chunk.clients[PARAMETERS].copy_(params)
        if not self.algorithm.changes("finish"):
            return
        own = dict(self._chunk.clients)
        parts = checked_sums(self.algorithm.finish(params, center, self._chunk), params, self._averagers)
        put_back(self._chunk.clients, own)
        for name, part in parts.items():
            self._averagers[name].accumulate(part.to(params.dtype).contiguous())

    @torch.no_grad()
    def server(self, start: Tensor, mean: Tensor) -> Tensor:
        """Return what the algorithm's server makes of the mean of a round, [n_params].

        Args:
            start: [n_params], start of the round.
            mean: [n_params], the mean of the clients, of the dtype of `start` or wider.
        """
        for name, averager in self._averagers.items():
            averager.start(torch.zeros_like(start), 1.0)
            self.state.sums[name] = averager.finish().to(start.dtype, copy=True)
        state = dataclasses.replace(self.state, clients={}, work=self._work)
        # a copy, which the method may overwrite: a server optimizer steps from the start itself
        row = checked_row(self.algorithm.server(start.clone(), mean - start, state), start)
        check_tensors("server of the state", state.server)
        self.state.server = {name: value.detach() for name, value in state.server.items()}
        return row

    def tensors(self) -> dict[str, Tensor]:
        """Return the server's state for resume.pt."""
        return {PREFIX + name: value for name, value in self.state.server.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state of `tensors`."""
        saved = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
        self.state.server = {
            name.removeprefix(PREFIX): value.to(self._device, copy=True) for name, value in saved.items()
        }

    def partial_sums(self) -> dict[str, Tensor]:
        """Return the sums of the round so far, as live references; see Aggregator.partial_sums."""
        return {
            f"{PREFIX}{name} {part}": value
            for name, averager in self._averagers.items()
            for part, value in averager.partial_sums().items()
        }


def correction_terms(algorithm: Algorithm) -> CorrectionTerms:
    """Return what an algorithm adds to the steps of the clients."""
    gradient = algorithm.gradient if algorithm.changes("gradient") else None
    return dataclasses.replace(algorithm.terms, gradient=gradient)


def make_correction(
    terms: CorrectionTerms, center: Tensor, drift: Tensor | None, prox: Tensor | None, state: AlgorithmState
) -> Correction | None:
    """Return the correction of a chunk, or None if there is none.

    Args:
        terms: What it consists of.
        center: [n_params].
        drift: [clients, n_params], or None.
        prox: [clients], or None.
        state: The algorithm's state of the clients.
    """
    if not terms.fused and terms.gradient is None:
        return None
    own = None if terms.gradient is None else dataclasses.replace(state, work=None, sums={})
    return Correction(center, prox, drift, late=terms.late, gradient=terms.gradient, state=own)


def _copy(state: AlgorithmState) -> AlgorithmState:
    def own(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in values.items()}

    return AlgorithmState(own(state.clients), own(state.server), own(state.sums))
