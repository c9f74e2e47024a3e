"""Sizes around a block, several parts of a row, strided rows; and the gradients of ResNet-56."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of

ROWS = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.bfloat16: "bf16"}


def _case(
    name: str, clients: int, n_params: int, *, dtype: torch.dtype = torch.float32, pad: int = 0, large: bool = False
) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=n_params)
        return {"rows": draw.padded(draw.normal(clients, n_params, dtype=dtype), extra=pad)}

    return Case(
        name=f"{name} {clients}x{n_params} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance=ROWS[dtype],
        bytes_moved=bytes_of([((clients, n_params), dtype)]),
        flops=2 * clients * n_params,
        large=large,
    )


CASES = (
    *(_case("rows", 3, n_params) for n_params in (1, 127, 128, 129, 1009)),
    _case("several blocks", 2, 6007),
    _case("two parts", 2, 9001),
    _case("one client", 1, 129),
    _case("no clients", 0, 129),
    _case("no parameters", 3, 0),
    _case("rows apart", 3, 521, pad=5),
    _case("rows", 3, 521, dtype=torch.float64),
    _case("rows", 3, 521, dtype=torch.bfloat16),
    _case("ResNet-56", 32, 855_770, large=True),
    _case("ResNet-56 rows apart", 32, 855_770, pad=6, large=True),
    _case("ResNet-56", 32, 855_770, dtype=torch.float64, large=True),
    _case("tiny model", 4096, 201, large=True),
)
