"""SCAFFOLD (Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020), option II: control variates against client drift.

    g   <- clip(g) + wd * x_i + c - c_i
    c_i <- c_i - c + (x - x_i) / (sum of the rates of the K_i steps)
    c   <- c + (1 / population) * sum over the cohort of the changes of c_i
    x   <- x + server_lr * sum p_i (x_i - x)

All control variates start at 0. server_lr is that of --server-optimizer sgd; without one it is 1. Implementations
differ: NIID-Bench and Flower's baseline take -rate * (c - c_i) as a step of its own, after momentum, which is
--correction-at step; fluke, pfl-research and FedLab add it to the gradient, as here. pfl-research and fluke clip after
the correction, here before it. pfl-research stores -c_i, and Flower's baseline starts c_i at the weights. With client
momentum m, (x - x_i) over the sum of the rates is up to 1 / (1 - m) times the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..params.correction import CorrectionTerms
from ._base import Algorithm, AlgorithmState

CONTROL = "control"


class Method(Algorithm):
    """Control variates of clients and server."""

    defaults = {"correction_at": "gradient"}

    def __init__(self, config: RunConfig) -> None:
        """Take the settings of a run."""
        self.terms = CorrectionTerms(drift=True, late=config.algorithm.correction_at == "step")

    def demand(self, config: RunConfig) -> RunConfig:
        """See Algorithm.demand."""
        if config.sgd.client_optimizer != "sgd":
            raise UsageError(
                f"--algorithm scaffold: is for --client-optimizer sgd, not for {config.sgd.client_optimizer}, whose "
                "change over its rates is no gradient"
            )
        return config

    def init(self, start: Tensor) -> AlgorithmState:
        """See Algorithm.init."""
        zero = torch.zeros_like(start)
        return AlgorithmState(clients={CONTROL: zero}, server={CONTROL: zero.clone()}, sums={CONTROL: zero})

    def drift(self, start: Tensor, state: AlgorithmState, out: Tensor) -> None:
        """See Algorithm.drift."""
        torch.sub(state.server[CONTROL], state.clients[CONTROL], out=out)

    def finish(self, rows: Tensor, start: Tensor, state: AlgorithmState) -> Mapping[str, Tensor]:
        """See Algorithm.finish; clients whose rates were all 0 keep their control variates."""
        assert state.work is not None, "not in a step"
        sums = to_device(state.work.rate_sums, rows.device).to(rows.dtype).unsqueeze(-1)
        change = torch.where(sums > 0, (start - rows) / sums - state.server[CONTROL], 0)
        state.clients[CONTROL] += change
        return {CONTROL: change}

    def server(self, row: Tensor, update: Tensor, state: AlgorithmState) -> Tensor:
        """See Algorithm.server."""
        assert state.work is not None, "not in a step"
        state.server[CONTROL] += state.sums[CONTROL] / state.work.population
        return row + update
