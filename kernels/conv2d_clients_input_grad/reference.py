"""The gradient of the stacked convolution's images as that of one grouped convolution of torch."""

from __future__ import annotations

from torch import Tensor

from ..conv2d_clients.geometry import Geometry
from ..conv2d_clients.reference import conv2d_clients_backward


def conv2d_clients_input_grad(grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry) -> Tensor:
    """Gradient of `conv2d_clients` with respect to x, from that of its output.

        dx[c, b, i] = sum over o of transposed cross-correlation(grad[c, b, o], weight[c, o, i])

    grad: [clients, batch, out, out_h, out_w]        weight: [clients, out, in / groups, kh, kw]
    x: [clients, batch, in, h, w], of which shape, dtype and memory layout alone are used; dx has the same
    Raises ValueError where the shapes do not fit each other.
    """
    dx, _ = conv2d_clients_backward(grad, x, weight, geometry=geometry, need_weight=False)
    assert dx is not None
    return dx
