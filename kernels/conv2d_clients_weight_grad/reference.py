"""Gradient of the stacked convolution's filters, by one grouped torch convolution."""

from __future__ import annotations

from torch import Tensor

from ..conv2d_clients.geometry import Geometry
from ..conv2d_clients.reference import conv2d_clients_backward


def conv2d_clients_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry) -> Tensor:
    """Return the gradient of `conv2d_clients` with respect to weight, contiguous.

        dweight[c, o, i] = sum over b of cross-correlation(x[c, b, i], grad[c, b, o])

    Args:
        grad: [clients, batch, out, out_h, out_w], gradient of the output.
        x: [clients, batch, in, h, w].
        weight: [clients, out, in / groups, kh, kw]; only its shape and dtype matter.
        geometry: Movement of the filters.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    _, dweight = conv2d_clients_backward(grad, x, weight, geometry=geometry, need_x=False)
    assert dweight is not None
    return dweight
