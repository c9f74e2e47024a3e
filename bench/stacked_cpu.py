"""Ways to compute stacked layers on a CPU: convolutions of ResNet-20 and `cnn`, linear layers of `mlp`.

    python -m bench.stacked_cpu            prints and writes bench/results/stacked_cpu.csv

Every way is checked against the loop over clients before it is timed. Ways take turns; each row is the median of one
forward and backward pass with its 20th and 80th percentiles, and its speed over that of the loop.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlocal.kernels.conv2d_clients.operator import conv2d_stacked

TABLE = Path(__file__).parent / "results" / "stacked_cpu.csv"
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """x and weight are stacked, the bias is [clients, out]."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    ways: dict[str, Way]


def linear_ways() -> dict[str, Way]:
    """[clients, batch, in] x [clients, out, in] -> [clients, batch, out]"""
    return {
        "loop": lambda x, weight, bias: torch.stack([F.linear(*one) for one in zip(x, weight, bias, strict=True)]),
        "baddbmm": lambda x, weight, bias: torch.baddbmm(bias.unsqueeze(1), x, weight.mT),
        "bmm + add": lambda x, weight, bias: torch.bmm(x, weight.mT) + bias.unsqueeze(1),
        "einsum": lambda x, weight, bias: torch.einsum("cbi,coi->cbo", x, weight) + bias.unsqueeze(1),
        "vmap of linear": torch.vmap(F.linear),
    }


def conv2d_ways(stride: int, padding: int) -> dict[str, Way]:
    """[clients, batch, in, h, w] x [clients, out, in, kh, kw]"""
    window = ([stride, stride], [padding, padding], [1, 1], 1)

    def stacked(strategy: str) -> Way:
        return lambda x, weight, bias: conv2d_stacked(x, weight, bias, *window, strategy)

    def vmapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.vmap(lambda *one: F.conv2d(*one, stride, padding))(x, weight, bias)

    return {strategy: stacked(strategy) for strategy in ("loop", "grouped", "im2col")} | {"vmap of conv2d": vmapped}


def layers(clients: int, batch: int) -> list[Layer]:
    """Those of the three models."""
    found = [
        Layer(f"linear {i}->{o}", (clients, batch, i), (clients, o, i), linear_ways())
        for i, o in ((64, 128), (784, 128), (3072, 128), (128, 10))
    ]
    shapes = (
        (3, 16, 32, 1),
        (16, 16, 32, 1),
        (16, 32, 32, 2),
        (32, 32, 16, 1),
        (64, 64, 8, 1),
        (1, 16, 8, 1),
        (16, 32, 4, 1),
    )
    for channels, out, size, stride in shapes:
        name = f"conv2d 3x3 {channels}->{out} on {size}x{size}" + (" stride 2" if stride == 2 else "")
        x, weight = (clients, batch, channels, size, size), (clients, out, channels, 3, 3)
        found.append(Layer(name, x, weight, conv2d_ways(stride, 1)))
    return found


def measure(layer: Layer, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, after the check that all give the loop's gradients."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(layer.x, generator=draw).requires_grad_()
    weight = (0.1 * torch.randn(layer.weight, generator=draw)).requires_grad_()
    bias = torch.randn(layer.weight[:2], generator=draw).requires_grad_()
    cotangent = torch.randn_like(layer.ways["loop"](x, weight, bias))

    def step(way: Way) -> tuple[Tensor, ...]:
        return torch.autograd.grad(way(x, weight, bias), (x, weight, bias), cotangent)

    exact = step(layer.ways["loop"])
    for way in layer.ways.values():
        torch.testing.assert_close(step(way), exact, rtol=1e-3, atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in layer.ways}
    for _ in range(repeats):
        for name, way in layer.ways.items():
            start = time.perf_counter()
            step(way)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def rows(clients: int, batch: int, repeats: int) -> list[dict[str, str]]:
    """Lines of the table for these sizes."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = []
    for layer in layers(clients, batch):
        times = measure(layer, repeats)
        loop = statistics.median(times["loop"])
        for name, took in times.items():
            parts = statistics.quantiles(took, n=5)
            row = {
                "commit": commit.stdout.strip(),
                "torch": torch.__version__,
                "device": processor(),
                "threads": str(torch.get_num_threads()),
                "layer": layer.name,
                "clients": str(clients),
                "batch": str(batch),
                "way": name,
                "median_ms": f"{statistics.median(took):.3f}",
                "p20_ms": f"{parts[0]:.3f}",
                "p80_ms": f"{parts[3]:.3f}",
                "over_loop": f"{loop / statistics.median(took):.2f}",
            }
            found.append(row)
            print(
                f"{layer.name:<40} {clients:>3} x {batch:<3} {name:<16} {row['median_ms']:>9} ms  {row['over_loop']:>5}"
            )
    return found


def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical cores"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stacked_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    table = [row for sizes in ((8, 32), (32, 8)) for row in rows(*sizes, asked.repeats)]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
