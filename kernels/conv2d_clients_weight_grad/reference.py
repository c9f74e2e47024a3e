"""The gradient of the stacked convolution's filters as that of one grouped convolution of torch."""

from __future__ import annotations

from torch import Tensor

from ..conv2d_clients.geometry import Geometry
from ..conv2d_clients.reference import conv2d_clients_backward


def conv2d_clients_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry) -> Tensor:
    """Gradient of `conv2d_clients` with respect to weight, from that of its output.

        dweight[c, o, i] = sum over b of cross-correlation(x[c, b, i], grad[c, b, o])

    grad: [clients, batch, out, out_h, out_w]        x: [clients, batch, in, h, w]
    weight: [clients, out, in / groups, kh, kw], of which shape and dtype alone are used; dweight is contiguous
    Raises ValueError where the shapes do not fit each other.
    """
    _, dweight = conv2d_clients_backward(grad, x, weight, geometry=geometry, need_x=False)
    assert dweight is not None
    return dweight
