"""Sizes around a block, every option, strided rows; and the buffers of ResNet-20 and ResNet-56."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of

ROWS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}


def sgd_inputs(
    device: torch.device,
    *,
    clients: int,
    n_params: int,
    dtype: torch.dtype,
    mu: float,
    weight_decay: float,
    nesterov: bool,
    clip: bool,
    frozen: bool,
    shadow: bool,
    pad: int,
    pad_grads: int,
) -> Inputs:
    """Return arguments of client_sgd; `pad` and `pad_grads` add unused elements to the rows."""
    draw = Draws(device, seed=n_params)
    params, grads = (draw.normal(clients, n_params, dtype=dtype) for _ in range(2))
    inputs: Inputs = {
        "params": draw.padded(params, extra=pad),
        "momentum": draw.padded(draw.normal(clients, n_params, dtype=dtype), extra=pad) if mu else None,
        "grads": draw.padded(grads, extra=pad_grads),
        "learning_rate": draw.uniform(clients, low=0.1, dtype=torch.promote_types(dtype, torch.float32)),
        "decay_mask": draw.integers(n_params, below=2).to(dtype),
        "mu": mu,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
    }
    if clip:
        inputs["grad_scale"] = draw.uniform(clients, low=0.2)
    if frozen:
        inputs["active"] = torch.arange(clients, device=device) % 3 != 1
    if shadow:
        inputs["shadow"] = draw.normal(clients, n_params, dtype=torch.bfloat16)
    return inputs


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
    shadow: bool = False,
    pad: int = 0,
    pad_grads: int = 0,
    factors: torch.dtype | None = None,
    prox: bool = False,
    groups: int | None = None,
    drift: bool = False,
    late: bool = False,
    large: bool = False,
) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
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
            shadow=shadow,
            pad=pad,
            pad_grads=pad_grads,
        )
        if factors is not None:
            draw = Draws(device, seed=clients)
            inputs["mu"] = draw.uniform(clients, low=0.5, dtype=factors)
            inputs["weight_decay"] = draw.integers(clients, below=2).to(factors) * weight_decay
        draw = Draws(device, seed=n_params + 1)
        if prox:
            shape = (n_params,) if groups is None else (groups, n_params)
            inputs |= {"center": draw.normal(*shape, dtype=dtype), "prox": draw.uniform(clients, dtype=rate_dtype)}
            inputs["group"] = None if groups is None else draw.integers(clients, below=groups, dtype=torch.int32)
        if drift:
            inputs["drift"] = draw.padded(draw.normal(clients, n_params, dtype=dtype), extra=pad)
        if prox or drift:
            inputs["late"] = late
        return inputs

    rate_dtype = torch.promote_types(dtype, torch.float32)
    rows = (clients, n_params)
    # parameters and momenta are read and written, gradients read
    buffers = [(rows, dtype)] * (5 if mu else 3) + [((n_params,), dtype)]
    buffers += [(rows, torch.bfloat16)] if shadow else []
    buffers += [] if factors is None else [((clients,), factors)] * 2
    buffers += [((groups or 1, n_params), dtype), ((clients,), rate_dtype)] if prox else []
    buffers += [(rows, dtype)] if drift else []
    return Case(
        name=f"{name} {clients}x{n_params} {ROWS[dtype]}",
        make_inputs=make_inputs,
        tolerance="bf16" if shadow else ROWS[dtype],
        bytes_moved=bytes_of(buffers),
        flops=8 * clients * n_params,
        changed=("params", *(["momentum"] if mu else []), *(["shadow"] if shadow else [])),
        scratch=("grads",),
        large=large,
    )


CASES = (
    *(_case("momentum", 3, n_params) for n_params in (1, 127, 128, 129, 1009)),
    _case("several blocks of", 2, 4231),
    _case("one client of", 1, 129),
    _case("no clients of", 0, 129),
    _case("no parameters of", 3, 0),
    _case("no momentum", 3, 129, mu=0.0),
    _case("no decay", 3, 129, weight_decay=0.0),
    _case("neither", 2, 127, mu=0.0, weight_decay=0.0),
    _case("nesterov", 3, 521, nesterov=True),
    _case("clipped", 3, 521, clip=True),
    _case("frozen clients", 5, 521, frozen=True, shadow=True),
    _case("shadow", 3, 521, shadow=True),
    _case("rows apart", 3, 129, pad=7, pad_grads=7),
    _case("gradients apart", 3, 640, pad_grads=3),
    _case("everything", 4, 1009, nesterov=True, clip=True, frozen=True, shadow=True, pad=15),
    _case("momentum", 3, 521, dtype=torch.float64, nesterov=True),
    _case("momentum", 3, 521, dtype=torch.bfloat16),
    _case("factors for each client", 5, 129, factors=torch.float64),
    _case("factors for each client", 3, 521, dtype=torch.float64, nesterov=True, factors=torch.float64),
    _case("factors for each client", 3, 521, dtype=torch.bfloat16, factors=torch.float32),
    _case(
        "everything for each client",
        4,
        1009,
        nesterov=True,
        clip=True,
        frozen=True,
        shadow=True,
        pad=15,
        factors=torch.float32,
        prox=True,
        groups=3,
        drift=True,
    ),
    _case("prox", 3, 521, prox=True),
    _case("prox of groups", 5, 129, prox=True, groups=2, late=True, pad=3),
    _case("drift", 3, 521, drift=True, dtype=torch.bfloat16),
    _case("late drift", 3, 521, drift=True, late=True, mu=0.0, dtype=torch.float64),
    _case("late prox and drift", 4, 1009, nesterov=True, clip=True, prox=True, drift=True, late=True),
    _case("ResNet-20", 32, 269_722, large=True),
    _case("ResNet-56", 32, 855_770, large=True),
    _case("ResNet-56 nesterov", 32, 855_770, nesterov=True, large=True),
    _case("ResNet-56 no momentum", 32, 855_770, mu=0.0, large=True),
    _case("ResNet-56 everything", 32, 855_770, nesterov=True, clip=True, frozen=True, shadow=True, large=True),
    _case("ResNet-56 gradients apart", 32, 855_770, pad_grads=6, large=True),
    _case("ResNet-56", 32, 855_770, dtype=torch.float64, large=True),
    _case("small model", 1024, 3_001, large=True),
    _case("tiny model", 4096, 201, large=True),
    _case("smallest model", 4096, 33, large=True),
    _case("ResNet-56 factors for each client", 32, 855_770, factors=torch.float64, large=True),
    _case("ResNet-56 nesterov, factors for each client", 32, 855_770, nesterov=True, factors=torch.float64, large=True),
    _case("small model, factors for each client", 1024, 3_001, factors=torch.float64, large=True),
    _case("ResNet-56 prox", 32, 855_770, prox=True, large=True),
    _case("ResNet-56 drift", 32, 855_770, drift=True, large=True),
    _case("ResNet-56 prox and drift of groups", 32, 855_770, prox=True, groups=4, drift=True, large=True),
    _case("ResNet-56 late prox and drift", 32, 855_770, prox=True, drift=True, late=True, large=True),
)
