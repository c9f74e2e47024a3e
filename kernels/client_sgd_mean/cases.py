"""Sizes around a tile, every option; and the buffers of ResNet-20 and ResNet-56."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of
from ..client_sgd.cases import sgd_inputs

ROWS = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.bfloat16: "bf16 sum"}


def _case(
    name: str,
    clients: int,
    n_params: int,
    *,
    dtype: torch.dtype = torch.float32,
    mu: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    clip: bool = False,
    frozen: bool = False,
    weighted: bool = False,
    pad: int = 0,
    pad_grads: int = 0,
    large: bool = False,
) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=clients)
        inputs = sgd_inputs(
            device,
            clients=clients,
            n_params=n_params,
            dtype=dtype,
            mu=mu,
            weight_decay=weight_decay,
            nesterov=nesterov,
            clip=clip,
            frozen=frozen,
            shadow=False,
            pad=pad,
            pad_grads=pad_grads,
        )
        inputs["total"] = draw.normal(n_params, dtype=torch.float64)
        inputs["weight"] = draw.uniform(clients, high=1 / max(clients, 1)) if weighted else 1 / max(clients, 1)
        return inputs

    rows = ((clients, n_params), dtype)
    return Case(
        name=f"{name} {clients}x{n_params} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance=ROWS[dtype],
        bytes_moved=bytes_of([rows] * (5 if mu else 3) + [((n_params,), dtype)] + [((n_params,), torch.float64)] * 2),
        flops=10 * clients * n_params,
        changed=("params", "total", *(["momentum"] if mu else [])),
        scratch=("grads",),
        large=large,
    )


CASES = (
    *(_case("momentum", 3, n_params) for n_params in (1, 127, 128, 129, 1009)),
    _case("more clients than a tile", 37, 129),
    _case("wide tiles", 2, 2**16 + 1),
    _case("one client", 1, 129),
    _case("no clients", 0, 129),
    _case("no parameters", 3, 0),
    _case("no momentum, no decay", 3, 129, mu=0.0, weight_decay=0.0),
    _case("rows and gradients apart", 3, 129, pad=7, pad_grads=3),
    _case("rows apart by 16", 3, 129, pad=15),
    _case("everything", 19, 257, nesterov=True, clip=True, frozen=True, weighted=True),
    _case("nesterov", 5, 257, dtype=torch.float64, nesterov=True, weighted=True),
    _case("momentum", 5, 257, dtype=torch.bfloat16),
    _case("ResNet-56 rows apart", 32, 855_770, pad=6, pad_grads=6, large=True),
    _case("ResNet-20", 32, 269_722, large=True),
    _case("ResNet-56", 32, 855_770, large=True),
    _case("ResNet-56 rows apart, gradients not", 32, 855_770, pad=6, large=True),
    _case("ResNet-56 no momentum", 32, 855_770, mu=0.0, large=True),
    _case("ResNet-56 everything", 32, 855_770, nesterov=True, clip=True, frozen=True, weighted=True, large=True),
    _case("ResNet-56", 32, 855_770, dtype=torch.float64, large=True),
    _case("small model", 1024, 3_001, large=True),
)
