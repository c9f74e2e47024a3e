"""A stacked linear layer on a GPU: one batched product of torch, a loop over clients, or the Triton convolution.

    python -m bench.linear --out DIR [--seconds N]

Rows join kernels.csv under the op "linear". A linear layer is a convolution of images of one pixel, the batch being the
samples.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.baselines import Run
from bench.device import NO_GPU, copy_bandwidth, describe
from bench.kernels import row, say, timed
from bench.tables import Row, write
from fastlocal import kernels
from fastlocal.kernels.case import Case, Draws, Inputs, bytes_of
from fastlocal.kernels.conv2d_clients.geometry import Geometry

SIZES = tuple(
    (clients, 32, features, out)
    for features, out in ((64, 10), (3072, 256), (256, 256), (512, 512))
    for clients in (32, 512, 8, 128)
)
"""Clients, batch, features and outputs: ResNet's classifier, and the layers of multilayer perceptrons."""


def linear_case(clients: int, batch: int, features: int, out: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Inputs x [clients, batch, features], weight [clients, out, features] and bias [clients, out]."""
    shapes = (clients, batch, features), (clients, out, features), (clients, out)

    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        return {
            "x": draw.normal(*shapes[0], dtype=dtype),
            "weight": draw.normal(*shapes[1], dtype=dtype, scale=features**-0.5),
            "bias": draw.normal(*shapes[2], dtype=dtype),
        }

    return Case(
        name=f"{clients}x{batch} {features}->{out} {str(dtype).removeprefix('torch.')}",
        make_inputs=make_inputs,
        tolerance="bf16",
        bytes_moved=bytes_of([(shape, dtype) for shape in (*shapes, (clients, batch, out))]),
        flops=2 * clients * batch * features * out,
        large=True,
    )


def batched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[clients, batch, out], by torch.baddbmm."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def looped(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [F.linear(*one) for one in zip(x, weight, bias, strict=True)]


def as_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[clients, batch, out], by conv2d_clients in Triton on images of one pixel."""
    convolution = kernels.get("conv2d_clients", "triton", x.device)
    y: Tensor = convolution(x[..., None, None], weight[..., None, None], bias, geometry=Geometry())
    return y[..., 0, 0]


WAYS: dict[str, Callable[..., object]] = {"triton": as_convolution, "torch.baddbmm": batched, "loop": looped}


def prepare(case: Case, way: Callable[..., object], device: str = "cuda") -> Run:
    inputs = case.make_inputs(torch.device(device))
    return lambda: way(**inputs)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.linear", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder for kernels.csv")
    made.add_argument("--seconds", type=float, default=60.0, help="after which no further case is timed")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + asked.seconds
    copy = copy_bandwidth()
    about = describe() | {"copy_gb_per_s": f"{copy / 1e9:.1f}"}
    rows: list[Row] = []
    for size in SIZES:
        case = linear_case(*size)
        for variant, way in WAYS.items():
            if time.monotonic() > end:
                line = row("linear", case, variant, None, copy, "not timed: no time was left")
            else:
                line = timed("linear", case, variant, lambda case=case, way=way: prepare(case, way), copy)  # type: ignore[misc]
            rows.append(line | about)
            write(asked.out / "kernels.csv", rows)
            say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
