"""FedProx (Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020): clients are pulled to the start of the round.

    g <- clip(g) + wd * x_i + prox_mu * (x_i - x)

the gradient of the loss plus prox_mu / 2 * |x_i - x|^2. Implementations differ in two points. pfl-research, fluke and
FedJAX add the term to the loss, so that clipping sees it: here it comes after clipping. FedNova's authors add it after
momentum, which is --correction-at step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.schema import RunConfig
from ..params.correction import CorrectionTerms
from ._base import Algorithm, RoundWork


class Method(Algorithm):
    """The proximal term."""

    defaults = {"prox_mu": 0.01, "correction_at": "gradient"}

    def __init__(self, config: RunConfig) -> None:
        """Take the settings of a run."""
        settings = config.algorithm
        assert settings.prox_mu is not None, "resolved"
        self._mu = settings.prox_mu
        self.terms = CorrectionTerms(prox=True, late=settings.correction_at == "step")

    def prox(self, work: RoundWork) -> Tensor:
        """See Algorithm.prox."""
        return torch.full(work.steps.shape, self._mu, dtype=torch.float64)
