"""Cross-entropy of all clients in one kernel, with label noise, gradient and correct predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fastlocal import kernels

from ..params.losses import cross_entropy, token_cross_entropy
from .base import LocalProblem
from .round_plan import SHARED, RowValues

MAX_CLASSES = 8192
"""Maximum number of classes for the kernel, which holds a sample's logits in registers."""


class FusedLoss:
    """The loss of a problem whose steps get clean labels."""

    def __init__(self, problem: LocalProblem) -> None:
        device = problem.source.device
        self._noise, self._numerics = problem.noise, problem.numerics
        self._loss = kernels.get("label_noise_loss", device=device)
        self._noisy_targets = kernels.get("noisy_targets", device=device)

    @staticmethod
    def can_fuse(problem: LocalProblem) -> bool:
        """Return True if the loss of a problem is cross-entropy of labels or tokens alone."""
        plain = problem.loss in (cross_entropy, token_cross_entropy) and bool(problem.topk) and problem.ignored is None
        return plain and not problem.tensor_names

    def __call__(
        self, outputs: Tensor, labels: Tensor, client_ids: Tensor, number: Tensor, values: RowValues = SHARED
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Return losses [clients], correct predictions [clients] or None, and (outputs, their gradient) or None.

        Args:
            outputs: [clients, batch, classes], of tokens [clients, batch, length, vocabulary].
            labels: int64 [clients, batch] or [clients, batch, length], without noise.
            client_ids: int64 [clients].
            number: int64 [] or [clients], global number of the step.
            values: Hyperparameters that differ between the clients.
        """
        outputs, labels = outputs.flatten(1, -2), labels.flatten(1)
        classes, noise = outputs.shape[-1], self._noise
        targets = labels
        p: float | Tensor = 0.0
        seed: int | Tensor = 0
        if noise is not None:
            p = noise.p if values.noise_p is None else values.noise_p
            seed = noise.seed if values.seed is None else values.seed
        if noise is not None and (noise.classes != classes or classes > MAX_CLASSES):
            draws = {"p": p, "classes": noise.classes, "seed": seed, "clients": client_ids, "step": number}
            targets, p, seed = self._noisy_targets(labels, **draws), 0.0, 0
        if classes > MAX_CLASSES:
            return vmap(cross_entropy)(self._numerics.to_param_dtype(outputs), targets), None, None
        losses, hits, grad = self._loss(outputs, targets, client_ids, number, p=p, seed=seed, with_grad=True)
        return losses, hits if targets is labels else None, (outputs, grad)


class Root(torch.autograd.Function):
    """A scalar at which a backward pass begins with the gradient of the outputs.

    torch.autograd.grad with a gradient of its own imports sympy: 0.8 s at every start.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None
