"""Sizes around a tile, weights, the mean written back to every row; and the buffers of ResNet-20 and ResNet-56."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of

ROWS = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.bfloat16: "bf16 sum"}


def _case(
    name: str,
    clients: int,
    n_params: int,
    *,
    dtype: torch.dtype = torch.float32,
    total: torch.dtype = torch.float64,
    weighted: bool = False,
    broadcast: bool = False,
    pad: int = 0,
    large: bool = False,
) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=n_params)
        return {
            "params": draw.padded(draw.normal(clients, n_params, dtype=dtype), extra=pad),
            "total": draw.normal(n_params, dtype=total),
            "weight": draw.uniform(clients, high=1 / max(clients, 1)) if weighted else 1 / max(clients, 1),
            "broadcast": broadcast,
        }

    rows = ((clients, n_params), dtype)
    running = ((n_params,), total)
    return Case(
        name=f"{name} {clients}x{n_params} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance=ROWS[dtype],
        bytes_moved=bytes_of([running, running, rows, *([rows] if broadcast else [])]),
        flops=2 * clients * n_params,
        changed=("total", *(["params"] if broadcast else [])),
        large=large,
    )


CASES = (
    *(_case("mean", 3, n_params) for n_params in (1, 127, 128, 129, 1009)),
    *(_case("mean handed back", 5, n_params, broadcast=True) for n_params in (1, 127, 128, 129)),
    _case("more clients than a tile", 37, 129, broadcast=True),
    _case("wide tiles", 2, 2**16 + 1, broadcast=True),
    _case("one client", 1, 129, broadcast=True),
    _case("no clients", 0, 129),
    _case("no parameters", 3, 0, broadcast=True),
    _case("weighted", 17, 257, weighted=True),
    _case("weighted and handed back", 17, 257, weighted=True, broadcast=True),
    _case("total in float32", 17, 257, total=torch.float32, broadcast=True),
    _case("rows apart", 17, 257, pad=7, broadcast=True),
    _case("rows apart by 16", 17, 257, pad=15, broadcast=True),
    _case("mean", 17, 257, dtype=torch.float64, broadcast=True),
    _case("mean", 17, 257, dtype=torch.bfloat16, broadcast=True),
    _case("ResNet-56 rows apart, handed back", 32, 855_770, pad=6, broadcast=True, large=True),
    _case("ResNet-20", 32, 269_722, large=True),
    _case("ResNet-56", 32, 855_770, large=True),
    _case("ResNet-56 handed back", 32, 855_770, broadcast=True, large=True),
    _case("ResNet-56 rows apart", 32, 855_770, pad=6, large=True),
    _case("ResNet-56 weighted", 32, 855_770, weighted=True, large=True),
    _case("ResNet-56", 32, 855_770, dtype=torch.float64, large=True),
    _case("small model", 1024, 3_001, large=True),
)
