"""Layers of the forward pass, with the gradient of their results."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of
from ..conv2d_clients.cases import HALF, LARGE, ROWS, SMALL, Layer
from ..conv2d_clients.geometry import Geometry


def _case(layer: Layer, *, added: bool = False) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        inputs: Inputs = {
            "grad": layer.images(draw, layer.y_shape),
            "x": layer.images(draw, layer.x_shape),
            "weight": layer.filters(draw),
            "geometry": layer.geometry,
        }
        return inputs | {"added": layer.images(draw, layer.x_shape)} if added else inputs

    return Case(
        name=f"{layer.name}{' added' if added else ''}",
        make_inputs=make_inputs,
        tolerance=ROWS[layer.dtype],
        bytes_moved=layer.bytes_moved + added * bytes_of([(layer.x_shape, layer.dtype)]),
        flops=layer.flops,
        large=layer.large,
    )


SUMMED = (
    Layer(2, 2, 16, (7, 6), 24, geometry=HALF, last=True, dtype=torch.bfloat16),
    Layer(2, 1, 4, (6, 5), 6, geometry=Geometry(padding=(1, 1), groups=2), apart=True),
    Layer(32, 32, 16, (32, 32), 16, last=True, dtype=torch.bfloat16, large=True),
    Layer(32, 32, 64, (8, 8), 64, last=True, large=True),
)

CASES = (
    *(_case(layer) for layer in (*SMALL, *LARGE) if layer.channels != 3 or not layer.large),
    *(_case(layer, added=True) for layer in SUMMED),
)
