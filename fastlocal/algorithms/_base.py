"""Base class of algorithms, those of fastlocal and those of users."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..params.correction import CorrectionTerms


@dataclass(frozen=True)
class RoundWork:
    """Local steps, rates and weights of the clients of a round.

    Attributes:
        steps: int64 [clients], local steps of each client.
        rates: Learning rate of each local step.
        shares: float64 [clients], weight of each client times the number of weights' owners: 1 for equal weights.
        cohort: Number of clients of the round.
        population: Number of all clients.
    """

    steps: Tensor
    rates: Sequence[float]
    shares: Tensor
    cohort: int
    population: int

    @property
    def rate_sums(self) -> Tensor:
        """The sum of the rates of each client's steps, float64 [clients]."""
        sums = torch.tensor([0.0, *self.rates], dtype=torch.float64).cumsum(dim=0)
        return sums[self.steps]

    def part(self, rows: Tensor) -> RoundWork:
        """Return the work of some clients, rows int64 of the round."""
        return dataclasses.replace(self, steps=self.steps[rows], shares=self.shares[rows])


@dataclass
class AlgorithmState:
    """State of an algorithm from round to round.

    Attributes:
        clients: State of the clients by name. From `init`: the start value of one client, [*shape]; in all other calls
            those of the clients at hand, [clients, *shape], to be changed in place.
        server: State of the server by name, to be changed in place or replaced.
        sums: Sums over the clients of a round, [n_params] by name. From `init`: zeros.
        work: What the clients at hand do in the round, on the CPU; None in `gradient`.
    """

    clients: dict[str, Tensor] = field(default_factory=dict)
    server: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    work: RoundWork | None = None

    def part(self, clients: slice) -> AlgorithmState:
        """Return the state of some of the clients at hand."""
        return dataclasses.replace(self, clients={name: rows[clients] for name, rows in self.clients.items()})

    @property
    def tensors(self) -> list[Tensor]:
        """The state of clients and server."""
        return [*self.clients.values(), *self.server.values()]


class Algorithm:
    """Federated averaging, and the base of all other algorithms. Override what differs.

    `fastlocal.train(..., algorithm=MyAlgorithm())` takes an object of a subclass. All methods get the flat parameters
    of several clients at once, [clients, n_params], and must not mix clients.

    Attributes:
        defaults: {field of AlgorithmConfig: default} of the settings that it takes.
        terms: Terms that the fused update of the clients computes.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    terms: CorrectionTerms = CorrectionTerms()

    def demand(self, config: RunConfig) -> RunConfig:
        """Return the settings with those that the algorithm needs; raise UsageError if one contradicts it."""
        return config

    def init(self, start: Tensor) -> AlgorithmState:
        """Return the state before the first round.

        Args:
            start: [n_params], the start weights.
        """
        return AlgorithmState()

    def gradient(self, grads: Tensor, rows: Tensor, start: Tensor, state: AlgorithmState) -> Tensor:
        """Return the gradients of a local step, changed after clipping, before weight decay and momentum.

        Args:
            grads: [clients, n_params]; may be overwritten.
            rows: [clients, n_params], the clients' parameters.
            start: [n_params], their start in this round.
            state: The state, without sums and work.
        """
        return grads

    def prox(self, work: RoundWork) -> Tensor:
        """Return float64 [clients], the pull to the start of the round; for terms.prox."""
        raise LookupError("an algorithm with terms.prox has its own prox")

    def drift(self, start: Tensor, state: AlgorithmState, out: Tensor) -> None:
        """Write what is added to the gradients in all steps of the round; for terms.drift.

        Args:
            start: [n_params], start of the round.
            state: The state.
            out: [clients, n_params].
        """
        raise LookupError("an algorithm with terms.drift has its own drift")

    def weights(self, weights: Tensor, work: RoundWork) -> Tensor | None:
        """Return how much each client's change counts in the mean, float64 [clients]; None for `weights`.

        Args:
            weights: float64 [clients] with sum 1.
            work: What the clients do.
        """
        return None

    def finish(self, rows: Tensor, start: Tensor, state: AlgorithmState) -> Mapping[str, Tensor] | None:
        """Update the clients' state after their local steps, and return what the server sums.

        Args:
            rows: [clients, n_params], the clients' parameters.
            start: [n_params], their start in this round.
            state: The state.

        Returns:
            {name of state.sums: [clients, n_params]}, or None.
        """
        return None

    def server(self, row: Tensor, update: Tensor, state: AlgorithmState) -> Tensor:
        """Return the new global model [n_params]; a server optimizer then steps from `row` towards it.

        Args:
            row: [n_params], the start of the round.
            update: [n_params], the weighted mean of the clients' changes, of the dtype of `row` or wider.
            state: The state of the server and the sums; its work has all clients of the round.
        """
        return row + update

    def changes(self, method: str) -> bool:
        """Return True if a subclass, or the object itself, has a method of its own."""
        return method in vars(self) or getattr(type(self), method) is not getattr(Algorithm, method)


def refuse_state(config: RunConfig) -> None:
    """Raise UsageError if a client may take part twice in a round, although the algorithm keeps its state."""
    if config.client.cohort_sampling in ("replacement", "weighted"):
        sampling = f"--cohort-sampling {config.client.cohort_sampling}"
        name = config.algorithm.algorithm
        raise UsageError(
            f"--algorithm {name}: with {sampling} a client may take part twice in a round, and its state would be two; "
            "use uniform"
        )
