"""Changes of the gradients of clients before their step: --clip-norm, and the user's algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlocal import kernels

from ..common.errors import UsageError
from ..params.correction import Correction
from .base import LocalProblem

EPSILON = 1e-6
"""Added to norms, as torch.nn.utils.clip_grad_norm_ does."""


class Clipping:
    """Factors of the gradients [clients]; None if the problem clips none."""

    def __init__(self, problem: LocalProblem) -> None:
        self._most = problem.clip_norm
        self._norm = kernels.get("client_norm", device=problem.source.device)

    def rows(self, grads: Tensor) -> Tensor | None:
        """Return the factors of grads [clients, n_params]."""
        return None if self._most is None else self._factors(self._norm(grads), self._most)

    def by_parameter(self, grads: Sequence[Tensor]) -> Tensor | None:
        """Return the factors of a gradient [clients, *shape] for each parameter."""
        if self._most is None:
            return None
        norms = [torch.linalg.vector_norm(grad.unsqueeze(-1), dim=[*range(1, 1 + grad.dim())]) for grad in grads]
        return self._factors(torch.linalg.vector_norm(torch.stack(norms), dim=0), self._most)

    def _factors(self, norms: Tensor, most: float) -> Tensor:
        return (most / (norms + EPSILON)).clamp_(max=1.0)


def change_gradients(correction: Correction, grads: Tensor, params: Tensor, scale: Tensor | None) -> Tensor:
    """Return what the user's algorithm makes of gradients [clients, n_params], which may be overwritten.

    Args:
        correction: Has the user's function.
        grads: The gradients.
        params: [clients, n_params].
        scale: [clients], factors of the gradients, or None.

    Raises:
        UsageError: The function returns another shape.
    """
    assert correction.gradient is not None, "asked before"
    if scale is not None:
        grads = grads.mul_(scale.unsqueeze(-1))
    changed = correction.gradient(grads, params, correction.center, correction.state)
    if not isinstance(changed, Tensor) or changed.shape != grads.shape or not changed.is_floating_point():
        is_tensor = isinstance(changed, Tensor)
        what = f"{changed.dtype} of shape {list(changed.shape)}" if is_tensor else f"a {type(changed).__name__}"
        raise UsageError(f"algorithm: gradient returned {what}, not gradients of shape {list(grads.shape)}")
    return changed.to(grads.dtype).contiguous()
