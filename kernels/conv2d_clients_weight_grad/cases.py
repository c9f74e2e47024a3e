"""Layers of the forward pass, with the gradient of their results."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs
from ..conv2d_clients.cases import LARGE, ROWS, SMALL, Layer


def _case(layer: Layer) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        return {
            "grad": layer.images(draw, layer.y_shape),
            "x": layer.images(draw, layer.x_shape),
            "weight": layer.filters(draw),
            "geometry": layer.geometry,
        }

    return Case(
        name=layer.name,
        make_inputs=make_inputs,
        tolerance=ROWS[layer.dtype],
        bytes_moved=layer.bytes_moved,
        flops=layer.flops,
        large=layer.large,
    )


CASES = tuple(_case(layer) for layer in (*SMALL, *LARGE))
