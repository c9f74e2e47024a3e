"""The forward pass and the loss of all clients at once, under vmap."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.func import vmap

from fastlocal.kernels.functional import settled

from ..params.losses import count_correct
from .base import LocalProblem
from .forward import Forward
from .fused_loss import FusedLoss
from .round_plan import RowValues
from .tuning.conv_strategy import Stacking, Strategies

Params = Tensor | dict[str, Tensor]
"""Rows [clients, n_params], or the parameters by name, [clients, *shape]."""


class StackedForward:
    """The forward pass of the clients of a problem.

    Args:
        problem: The local step.
        conv_strategy: Strategies of the convolutions.
        fuse_norms: Of Stacking.
        fused_loss: Whether one operation computes loss, gradient and correct predictions, if the loss is cross-entropy.
        draws_noise: Whether it draws the label noise too, so that steps then get clean labels. On a CPU numpy draws it,
            which no replay could repeat.

    Attributes:
        draws_noise: As above; False without such a loss.
    """

    def __init__(
        self,
        problem: LocalProblem,
        conv_strategy: Strategies,
        *,
        fuse_norms: bool | None,
        fused_loss: bool,
        draws_noise: bool,
    ) -> None:
        self._problem = problem
        self._stacking = Stacking(problem.module, conv_strategy, fuse=fuse_norms)
        self._client_forward = Forward(problem, self._stacking.module)
        fuse = fused_loss and FusedLoss.can_fuse(problem)
        self.draws_noise = fuse and draws_noise
        own = problem if draws_noise else dataclasses.replace(problem, noise=None)
        self._loss = FusedLoss(own) if fuse else None

    def check_constants(self) -> None:
        """Raise UsageError if a step changed state of the module that clients share."""
        self._client_forward.constants.check()

    def run(
        self,
        params: Params,
        state: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        labels: Tensor,
        client_ids: Tensor,
        number: Tensor,
        values: RowValues,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """Return losses [clients], counts of correct predictions or None, changed buffers, and where gradients begin.

        They begin at the losses (None), or at the outputs with a gradient that the kernel of the loss computed.

        Args:
            params: Parameters of the clients.
            state: Buffers of the clients by name.
            inputs: [clients, batch, ...].
            targets: Targets of the loss, possibly noisy.
            labels: Targets of the correct predictions, without noise.
            client_ids: int64 [clients].
            number: int64 [] or [clients], global number of the step.
            values: Hyperparameters that differ between the clients.
        """
        topk, root = self._problem.topk, None
        draws = client_ids, number, values.seed
        draw_dims = 0, 0 if number.dim() else None, None if values.seed is None else 0
        with self._stacking.mode():
            stacked = vmap(self._forward_one, (0, 0, 0, 0, *draw_dims), randomness="different")
            outputs, state, *loss = stacked(params, state, inputs, targets, *draws)
        if self._loss is None:
            (losses,) = loss
        else:
            losses, hits, root = self._loss(outputs, targets, client_ids, number, values)
            if topk == (1,) and hits is not None and targets is labels:
                return losses, hits.unsqueeze(-1), state, root
        correct = count_correct(outputs, labels, topk, self._problem.ignored) if topk else None
        return losses, correct, state, root

    def _forward_one(
        self,
        params: Params,
        state: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        client: Tensor,
        number: Tensor,
        seed: Tensor | None,
    ) -> tuple[Any, ...]:
        """Return outputs and changed buffers of one client, and its loss unless one kernel computes those of all."""
        named = self._problem.layout.views(params) if isinstance(params, Tensor) else params
        # buffers are copies, so that a failed step can be repeated
        values = {**named, **{name: value.clone() for name, value in state.items()}}
        if self._loss is not None:
            loss: list[Tensor] = []
            outputs = self._client_forward.outputs(values, inputs, client, number, seed)
        else:
            *loss, outputs = self._client_forward(values, inputs, targets, client, number, seed)
        return settled((outputs, {name: values[name] for name in state}, *loss))
