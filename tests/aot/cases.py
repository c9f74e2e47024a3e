"""Cases to compile ahead of time: all cases of an op, and for convolutions every tile in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

import torch

from fastlocal.kernels.case import Case, Inputs, cases
from fastlocal.kernels.conv2d_clients.cases import HALF, Layer

CONVOLUTIONS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")

CHANNELS = {
    "conv2d_clients": ((64, 16), (64, 32), (128, 128)),
    "conv2d_clients_input_grad": ((16, 64), (32, 64), (128, 128)),
    "conv2d_clients_weight_grad": ((16, 16), (16, 32), (64, 64)),
}
"""Input and output channels that together reach every tile width of the op's result."""


def cases_to_compile(op: str) -> Iterator[tuple[Case, bool]]:
    """Yield the cases of an op; the flag is True if all tiles of the autotuner are compiled, not only the first."""
    op_cases = cases(op)
    yield from ((case, True) for case in op_cases if case.large)
    if op in CONVOLUTIONS:
        yield from ((case, True) for case in _tile_cases(op))
    yield from ((case, False) for case in op_cases if not case.large)


def _tile_cases(op: str) -> Iterator[Case]:
    """Yield layers for the tiles and formats that the large cases do not reach."""
    make: Callable[[Layer], Case] = import_module(f"fastlocal.kernels.{op}.cases")._case
    narrow, middle, wide = (Layer(4, 8, channels, (28, 28), out, last=True) for channels, out in CHANNELS[op])
    yield make(middle)
    yield make(replace(wide, dtype=torch.float16))
    for layer in (narrow, middle, wide):
        yield _in_three_products(make(layer))
        yield _in_three_products(make(replace(layer, last=False)))
    if op == "conv2d_clients_input_grad":
        yield make(narrow)
        for layer in (narrow, wide):
            yield make(replace(layer, dtype=torch.bfloat16))
        for layer in (narrow, middle, wide):
            for dtype in (torch.float32, torch.bfloat16):
                yield make(replace(layer, last=False, geometry=HALF, dtype=dtype))


def _in_three_products(case: Case) -> Case:
    """Return the case with fp32 products as three TF32 products."""

    def make_inputs(device: torch.device) -> Inputs:
        return {**case.make_inputs(device), "tf32": False}

    return replace(case, name=f"{case.name} x3", make_inputs=make_inputs)
