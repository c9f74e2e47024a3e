"""FedNova (Wang, Liu, Liang, Joshi, Poor 2020): changes divided by how far a client's steps carry its gradients.

    x <- x + (sum p_j a_j) * sum p_i (x_i - x) / a_i

a_i is the sum of the weights with which the gradients of client i entered x_i: its change if every gradient were -1. So
for SGD at one rate e, a_i is e K_i; with momentum, Nesterov, the proximal term and changing rates it follows from the
same steps on a single number. At one rate these are e times the paper's [K_i - r (1 - r^K_i) / (1 - r)] / (1 - r) for
heavy-ball momentum r, and e times a <- a (1 - e prox_mu) + 1 for the proximal term. Momentum is reset in every round.
The authors add the proximal term after momentum: --correction-at step. Implementations differ: fluke sums x_i instead
of changes, and FedLab ignores the clients' numbers of samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..params.correction import CorrectionTerms
from ._base import Algorithm, RoundWork


class Method(Algorithm):
    """Normalised averaging."""

    defaults = {"prox_mu": 0.0, "correction_at": "gradient"}

    def __init__(self, config: RunConfig) -> None:
        """Take the settings of a run."""
        settings = config.algorithm
        assert settings.prox_mu is not None, "resolved"
        self._mu, late = settings.prox_mu, settings.correction_at == "step"
        self._momentum, self._nesterov = config.sgd.momentum, config.sgd.nesterov
        self.terms = CorrectionTerms(prox=self._mu > 0, late=late)

    def demand(self, config: RunConfig) -> RunConfig:
        """See Algorithm.demand."""
        if config.sgd.client_optimizer != "sgd":
            raise UsageError(
                f"--algorithm fednova: is for --client-optimizer sgd; steps of {config.sgd.client_optimizer} are not "
                "linear in the gradients"
            )
        if config.client.client_state not in (None, "reset"):
            flag = f"--client-state {config.client.client_state}"
            raise UsageError(f"{flag}: with --algorithm fednova momentum starts anew in every round; use reset")
        return config.with_values(client_state="reset")

    def prox(self, work: RoundWork) -> Tensor:
        """See Algorithm.prox."""
        return torch.full(work.steps.shape, self._mu, dtype=torch.float64)

    def weights(self, weights: Tensor, work: RoundWork) -> Tensor:
        """See Algorithm.weights; a client that did not move keeps its weight."""
        reached = unit_change(
            work.rates, momentum=self._momentum, nesterov=self._nesterov, prox=self._mu, late=self.terms.late
        )
        own = reached[work.steps]
        mean = (weights * own).sum()
        return torch.where(own > 0, weights * mean / own, weights)


def unit_change(rates: Sequence[float], *, momentum: float, nesterov: bool, prox: float, late: bool) -> Tensor:
    """Return how far steps with gradient -1 lead, after each number of them: float64 [steps + 1].

    Args:
        rates: Rate of each step.
        momentum: Momentum factor.
        nesterov: Whether momentum is Nesterov's.
        prox: Pull to the start.
        late: Whether the pull acts after momentum.
    """
    change, velocity, reached = 0.0, 0.0, [0.0]
    for rate in rates:
        pull = prox * change
        gradient = 1.0 if late else 1.0 - pull
        velocity = momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        change += rate * (step - pull if late else step)
        reached.append(change)
    return torch.tensor(reached, dtype=torch.float64)
