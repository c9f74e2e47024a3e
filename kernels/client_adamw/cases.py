"""Sizes around a block, every option, strided rows, first and late steps; and ResNet-20 and ResNet-56."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs, bytes_of

ROWS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}


def _case(
    name: str,
    clients: int,
    n_params: int,
    *,
    dtype: torch.dtype = torch.float32,
    beta1: float = 0.9,
    weight_decay: float = 0.1,
    clip: bool = False,
    frozen: bool = False,
    shadow: bool = False,
    pad: int = 0,
    pad_grads: int = 0,
    decays: torch.dtype | None = None,
    prox: bool = False,
    groups: int | None = None,
    drift: bool = False,
    large: bool = False,
) -> Case:
    """Return a case; `pad` and `pad_grads` add unused elements to the rows."""
    rows, rate_dtype = (clients, n_params), torch.promote_types(dtype, torch.float32)

    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=n_params)

        def normal(extra: int = pad) -> torch.Tensor:
            return draw.padded(draw.normal(*rows, dtype=dtype), extra=extra)

        inputs: Inputs = {
            "params": normal(),
            "momentum": normal(),
            "square": normal().abs_(),
            "steps": draw.integers(clients, below=400).div(4),  # a mean of counts is no whole number
            "grads": normal(pad_grads),
            "learning_rate": draw.uniform(clients, high=0.1, dtype=rate_dtype),
            "decay_mask": draw.integers(n_params, below=2).to(dtype),
            "beta1": beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": weight_decay,
        }
        if not draw.meta:
            inputs["steps"][:1] = 0
            inputs["learning_rate"][1:2] = 0
        inputs["steps"] = inputs["steps"].double()
        if decays is not None:
            inputs["weight_decay"] = draw.integers(clients, below=2).to(decays) * weight_decay
        if clip:
            inputs["grad_scale"] = draw.uniform(clients, low=0.2)
        if frozen:
            inputs["active"] = torch.arange(clients, device=device) % 3 != 1
        if shadow:
            inputs["shadow"] = draw.normal(*rows, dtype=torch.bfloat16)
        if prox:
            shape = (n_params,) if groups is None else (groups, n_params)
            inputs |= {"center": draw.normal(*shape, dtype=dtype), "prox": draw.uniform(clients, dtype=rate_dtype)}
            inputs["group"] = None if groups is None else draw.integers(clients, below=groups, dtype=torch.int32)
        if drift:
            inputs["drift"] = normal()
        return inputs

    # parameters and both means are read and written, gradients read
    buffers = [(rows, dtype)] * 7 + [((n_params,), dtype), ((clients,), rate_dtype)] + [((clients,), torch.float64)] * 2
    buffers += [(rows, torch.bfloat16)] if shadow else []
    buffers += [] if decays is None else [((clients,), decays)]
    buffers += [((groups or 1, n_params), dtype), ((clients,), rate_dtype)] if prox else []
    buffers += [(rows, dtype)] if drift else []
    return Case(
        name=f"{name} {clients}x{n_params} {ROWS[dtype]}",
        make_inputs=make_inputs,
        tolerance="bf16" if shadow else ROWS[dtype],
        bytes_moved=bytes_of(buffers),
        flops=16 * clients * n_params,
        changed=("params", "momentum", "square", "steps", *(["shadow"] if shadow else [])),
        scratch=("grads",),
        large=large,
    )


CASES = (
    *(_case("step", 3, n_params) for n_params in (1, 127, 128, 129, 1009)),
    _case("several blocks of", 2, 4231),
    _case("one client of", 1, 129),
    _case("no clients of", 0, 129),
    _case("no parameters of", 3, 0),
    _case("no decay", 3, 129, weight_decay=0.0),
    _case("no mean of gradients", 3, 129, beta1=0.0),
    _case("clipped", 3, 521, clip=True),
    _case("frozen clients", 5, 521, frozen=True, shadow=True),
    _case("rows apart", 3, 129, pad=7, pad_grads=7),
    _case("gradients apart", 3, 640, pad_grads=3),
    _case("step", 3, 521, dtype=torch.float64, clip=True),
    _case("step", 3, 521, dtype=torch.bfloat16),
    _case("decay for each client", 5, 129, decays=torch.float64),
    _case("decay for each client", 3, 521, dtype=torch.bfloat16, decays=torch.float32),
    _case("prox", 3, 521, prox=True),
    _case("prox of groups", 5, 129, prox=True, groups=2, pad=3),
    _case("drift", 3, 521, drift=True, dtype=torch.float64),
    _case(
        "everything",
        4,
        1009,
        clip=True,
        frozen=True,
        shadow=True,
        pad=15,
        decays=torch.float32,
        prox=True,
        groups=3,
        drift=True,
    ),
    _case("ResNet-20", 32, 269_722, large=True),
    _case("ResNet-56", 32, 855_770, large=True),
    _case("ResNet-56 decay for each client", 32, 855_770, decays=torch.float64, large=True),
    _case("ResNet-56 clipped, frozen clients", 32, 855_770, clip=True, frozen=True, shadow=True, large=True),
    _case("ResNet-56 gradients apart", 32, 855_770, pad_grads=6, large=True),
    _case("ResNet-56", 32, 855_770, dtype=torch.float64, large=True),
    _case("ResNet-56 prox and drift of groups", 32, 855_770, prox=True, groups=4, drift=True, large=True),
    _case("small model", 1024, 3_001, large=True),
    _case("tiny model", 4096, 201, large=True),
    _case("smallest model", 4096, 33, large=True),
)
