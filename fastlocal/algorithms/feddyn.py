"""FedDyn (Acar, Zhao, Matas, Mattina, Whatmough, Saligrama 2021): a regulariser that follows the clients' own changes.

    g   <- clip(g) + wd * x_i + a_i (x_i - x + h_i)
    h_i <- h_i + x_i - x
    h   <- h + (1 / population) * sum over the cohort of (x_i - x)
    x   <- mean of the cohort's x_i + h

with a_i = feddyn_alpha / (population * p_i), which is feddyn_alpha for equal weights, all h starting at 0, and an
unweighted mean. This is the authors' code, in which h is the mean of h_i over all clients; fluke takes it over the
clients of the round, with the other sign and another factor. It takes no server optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..params.correction import CorrectionTerms
from ._base import Algorithm, AlgorithmState, RoundWork

CHANGES = "changes"


class Method(Algorithm):
    """Dynamic regularisation."""

    defaults = {"feddyn_alpha": 0.01, "correction_at": "gradient"}

    def __init__(self, config: RunConfig) -> None:
        """Take the settings of a run."""
        settings = config.algorithm
        assert settings.feddyn_alpha is not None, "resolved"
        self._alpha = settings.feddyn_alpha
        self.terms = CorrectionTerms(prox=True, drift=True, late=settings.correction_at == "step")

    def demand(self, config: RunConfig) -> RunConfig:
        """See Algorithm.demand."""
        if config.server.server_optimizer != "none":
            flag = f"--server-optimizer {config.server.server_optimizer}"
            raise UsageError(f"{flag}: --algorithm feddyn has a server step of its own; leave it out")
        return config

    def init(self, start: Tensor) -> AlgorithmState:
        """See Algorithm.init."""
        zero = torch.zeros_like(start)
        return AlgorithmState(clients={CHANGES: zero}, server={CHANGES: zero.clone()})

    def prox(self, work: RoundWork) -> Tensor:
        """See Algorithm.prox; a client of weight 0 is not pulled."""
        return torch.where(work.shares > 0, self._alpha / work.shares, 0.0)

    def drift(self, start: Tensor, state: AlgorithmState, out: Tensor) -> None:
        """See Algorithm.drift."""
        assert state.work is not None, "not in a step"
        torch.mul(
            state.clients[CHANGES], to_device(self.prox(state.work), out.device).to(out.dtype).unsqueeze(-1), out=out
        )

    def weights(self, weights: Tensor, work: RoundWork) -> Tensor:
        """See Algorithm.weights."""
        return torch.full_like(weights, 1 / len(weights))

    def finish(self, rows: Tensor, start: Tensor, state: AlgorithmState) -> None:
        """See Algorithm.finish."""
        state.clients[CHANGES] += rows - start

    def server(self, row: Tensor, update: Tensor, state: AlgorithmState) -> Tensor:
        """See Algorithm.server."""
        assert state.work is not None, "not in a step"
        state.server[CHANGES] += update * (state.work.cohort / state.work.population)
        return row + update + state.server[CHANGES]
