"""Batches and classes of odd sizes, with and without noise; and batches of CIFAR-10 and ImageNet's size."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs

ROWS = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.float16: "fp16", torch.bfloat16: "bf16"}


def _case(
    name: str,
    clients: int,
    batch: int,
    classes: int,
    *,
    p: float | None,
    dtype: torch.dtype = torch.float32,
    step: int | None = 3,
    scale: float = 3.0,
    pad: int = 0,
    large: bool = False,
) -> Case:
    """Make a case; p None: a probability and a seed for each client."""

    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=classes)
        logits = draw.normal(clients, batch, classes, dtype=dtype, scale=scale)
        return {
            "logits": draw.padded(logits, extra=pad) if pad else logits,
            "targets": draw.integers(clients, batch, below=classes),
            "clients": draw.integers(clients, below=10_000) if p != 0 else None,
            "step": draw.integers(clients, below=2**31) if step is None else step,
            "p": draw.integers(clients, below=3).double() / 2 if p is None else p,
            "seed": draw.integers(clients, below=2**62) if p is None else 0x1234_5678_9ABC_DEF0,
        }

    elements = clients * batch * classes
    return Case(
        name=f"{name} {clients}x{batch}x{classes} p={'each' if p is None else p} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance=ROWS[dtype],
        # logits are read and their gradients written, targets read, and the clients' probabilities and seeds
        bytes_moved=2 * elements * dtype.itemsize + clients * batch * 8 + (clients * 16 if p is None else 0),
        flops=6 * elements,
        differentiated=("logits",),
        large=large,
    )


CASES = (
    *(_case("loss", 3, 5, classes, p=p) for classes in (2, 10, 127, 128, 129) for p in (0.0, 0.3)),
    *(_case("loss", 2, batch, 10, p=0.2) for batch in (1, 127, 128, 129)),
    _case("always another class", 3, 33, 10, p=1.0),
    _case("one class", 2, 3, 1, p=0.0),
    _case("one client", 1, 7, 10, p=0.2),
    _case("no clients", 0, 7, 10, p=0.2),
    _case("a step for each client", 5, 9, 10, p=0.5, step=None),
    _case("large logits", 2, 9, 10, p=0.2, scale=300.0),
    _case("rows apart", 2, 9, 10, p=0.2, pad=3),
    _case("loss", 2, 9, 10, p=0.2, dtype=torch.float64),
    _case("loss", 2, 9, 10, p=0.2, dtype=torch.bfloat16),
    _case("loss", 2, 9, 10, p=0.2, dtype=torch.float16),
    _case("for each client", 5, 9, 10, p=None, step=None),
    _case("for each client", 5, 9, 129, p=None, dtype=torch.bfloat16),
    _case("CIFAR-10", 32, 128, 10, p=0.2, large=True),
    _case("CIFAR-10", 32, 128, 10, p=0.0, large=True),
    _case("CIFAR-10", 32, 128, 10, p=0.2, dtype=torch.bfloat16, large=True),
    _case("CIFAR-10", 32, 128, 10, p=0.2, dtype=torch.float64, large=True),
    _case("CIFAR-100", 512, 128, 100, p=0.2, large=True),
    _case("ImageNet", 8, 128, 1000, p=0.0, dtype=torch.bfloat16, large=True),
    _case("many classes", 8, 32, 8192, p=0.0, large=True),
    _case("CIFAR-10", 32, 128, 10, p=None, large=True),
    _case("CIFAR-10", 32, 128, 10, p=None, dtype=torch.bfloat16, large=True),
    _case("CIFAR-100", 512, 128, 100, p=None, large=True),
)
