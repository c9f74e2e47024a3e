"""Small images of odd sizes in both layouts; and batches of CIFAR-10 and ImageNet's size."""

from __future__ import annotations

import math

import torch

from ..case import Case, Draws, Inputs

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ROWS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}


def _case(
    name: str,
    clients: int,
    batch: int,
    shape: tuple[int, int, int],
    *,
    samples: int = 7,
    dtype: torch.dtype = torch.float32,
    augment: bool = True,
    channels_last: bool = False,
    padding: int = 4,
    step: int | None = 3,
    seed: int | None = 0x1234_5678_9ABC_DEF0,
    large: bool = False,
) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=batch)
        return {
            "images": draw.integers(samples, *shape, below=256, dtype=torch.uint8),
            "sample_ids": draw.integers(clients, batch, below=samples),
            "clients": draw.integers(clients, below=10_000) if augment else None,
            "step": draw.integers(clients, below=2**31) if step is None else step,
            "seed": draw.integers(clients, below=2**62) if seed is None else seed,
            "padding": padding,
            "mean": MEAN[: shape[0]],
            "std": STD[: shape[0]],
            "dtype": dtype,
            "channels_last": channels_last,
        }

    elements = clients * batch * math.prod(shape)
    return Case(
        name=f"{name} {clients}x{batch}x{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance=ROWS[dtype],
        bytes_moved=elements * (1 + dtype.itemsize) + clients * batch * 8 + (clients * 8 if seed is None else 0),
        flops=2 * elements,
        large=large,
    )


CASES = (
    _case("crops", 2, 3, (3, 8, 8)),
    _case("crops", 3, 2, (1, 1, 1)),
    _case("crops", 2, 3, (3, 7, 13)),
    _case("crops", 1, 1, (3, 32, 32), dtype=torch.bfloat16),
    _case("channels last", 2, 3, (3, 8, 8), channels_last=True),
    _case("channels last", 2, 2, (3, 7, 13), channels_last=True, dtype=torch.bfloat16),
    _case("as they are", 2, 3, (3, 8, 8), augment=False),
    _case("as they are, channels last", 2, 3, (3, 5, 6), augment=False, channels_last=True),
    _case("a step for each client", 5, 2, (1, 9, 9), step=None),
    _case("a seed for each client", 3, 2, (3, 7, 13), seed=None, channels_last=True),
    _case("a seed and a step for each client", 5, 2, (1, 9, 9), seed=None, step=None),
    _case("no clients", 0, 2, (3, 8, 8)),
    _case("empty batches", 2, 0, (3, 8, 8)),
    _case("no padding", 2, 3, (3, 8, 8), padding=0),
    _case("exact", 2, 3, (3, 6, 5), dtype=torch.float64),
    *(
        _case(
            f"CIFAR-10{' channels last' * last}",
            32,
            128,
            (3, 32, 32),
            samples=50_000,
            dtype=dtype,
            channels_last=last,
            large=True,
        )
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
    ),
    _case(
        "all of CIFAR-10", 1, 50_000, (3, 32, 32), samples=50_000, dtype=torch.bfloat16, channels_last=True, large=True
    ),
    _case("CIFAR-10 as they are", 1, 1000, (3, 32, 32), samples=50_000, augment=False, large=True),
    _case("CIFAR-10", 4, 32, (3, 32, 32), samples=50_000, dtype=torch.float64, large=True),
    _case("digits", 32, 32, (1, 8, 8), samples=1797, large=True),
    _case("ImageNet", 8, 32, (3, 224, 224), samples=512, dtype=torch.bfloat16, channels_last=True, large=True),
    *(
        _case(
            f"CIFAR-10 a seed for each client{' channels last' * last}",
            32,
            128,
            (3, 32, 32),
            samples=50_000,
            seed=None,
            dtype=dtype,
            channels_last=last,
            large=True,
        )
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
    ),
)
