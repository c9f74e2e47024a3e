"""Gradient of the stacked convolution's images, by one grouped torch convolution."""

from __future__ import annotations

from torch import Tensor

from ..conv2d_clients.geometry import Geometry
from ..conv2d_clients.reference import conv2d_clients_backward


def conv2d_clients_input_grad(
    grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry, added: Tensor | None = None
) -> Tensor:
    """Return the gradient of `conv2d_clients` with respect to x, and add another gradient of x.

        dx[c, b, i] = added[c, b, i] + sum over o of transposed cross-correlation(grad[c, b, o], weight[c, o, i])

    Args:
        grad: [clients, batch, out, out_h, out_w], gradient of the output.
        x: [clients, batch, in, h, w]; only its shape, dtype and memory layout matter, and dx has the same.
        weight: [clients, out, in / groups, kh, kw].
        geometry: Movement of the filters.
        added: As x, or None for zeros.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    dx, _ = conv2d_clients_backward(grad, x, weight, geometry=geometry, need_weight=False)
    assert dx is not None
    return dx if added is None else dx.add_(added)
