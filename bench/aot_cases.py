"""What is compiled ahead of time: every case of an op, and of the convolutions every tile in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

import torch

from fastlocal.kernels.case import Case, Inputs, cases
from fastlocal.kernels.conv2d_clients.cases import HALF, Layer

CONVOLUTIONS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")

# Channels that between them reach all widths of tiles: of the result forward, of the images' gradient, of the filters'.
CHANNELS = {
    "conv2d_clients": ((64, 16), (64, 32), (128, 128)),
    "conv2d_clients_input_grad": ((16, 64), (32, 64), (128, 128)),
    "conv2d_clients_weight_grad": ((16, 16), (16, 32), (64, 64)),
}


def compiled_cases(op: str) -> Iterator[tuple[Case, bool]]:
    """Cases of an op, each with whether all tiles that the autotuner may choose are compiled, or only the first."""
    given = cases(op)
    yield from ((case, True) for case in given if case.large)
    if op in CONVOLUTIONS:
        yield from ((case, True) for case in _tiles(op))
    yield from ((case, False) for case in given if not case.large)


def _tiles(op: str) -> Iterator[Case]:
    """Layers that reach the tiles and formats which the large cases do not."""
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
    """The same in fp32 without TF32's rounding."""

    def make_inputs(device: torch.device) -> Inputs:
        return {**case.make_inputs(device), "tf32": False}

    return replace(case, name=f"{case.name} x3", make_inputs=make_inputs)
