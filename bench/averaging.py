"""Averaging: milliseconds that averaging over ranks takes, beside a plain all-reduce and PyTorch's own averager.

    python -m bench.averaging                                   gloo, 2 and 4 single-threaded processes on this machine
    python -m bench.averaging --models resnet20 --ranks 2 --turns 40

All methods run in the same processes, in turns; a turn starts with a barrier and takes as long as its slowest rank. The
mean of each method is first compared with the exact mean in float64. A row holds the median turn with its 20th and 80th
percentiles, and the median of its ratios to `cat + all_reduce + copy` within a turn (above 1: faster). Rows replace
older ones of the same model, ranks and method in averaging.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from bench.common import RESULTS, Row, cores, machine_columns, median_ratio, merge_rows, spread
from fastlocal.aggregation.averager import make_averager
from fastlocal.models import build

MODELS = ("resnet20", "resnet56", "torchvision.resnet50")
KEYS = ("model", "ranks", "variant", "bucket_mb")
PLAIN, PERIODIC = "cat + all_reduce + copy", "PeriodicModelAverager"
OWN: dict[str, dict[str, Any]] = {
    "fastlocal": {},
    "fastlocal bf16": {"wire_format": "bf16"},
    "fastlocal fp16": {"wire_format": "fp16"},
    "fastlocal fixed": {"reduce_order": "fixed"},
}
"""fastlocal's methods, and their arguments of make_averager."""
CHANGE = 1e-3
"""Standard deviation of a parameter's change in a round."""
ROUNDING = {"fastlocal bf16": 2.0**-6, "fastlocal fp16": 2.0**-9}
"""Error of a mean relative to the greatest change, besides the rounding of float32."""


@dataclass(frozen=True)
class Method:
    """A way to average.

    Attributes:
        reset: Restores the parameters after local training; not timed.
        run: Averages; timed.
        mean: Returns the result, [n_params].
    """

    reset: Callable[[], object]
    run: Callable[[], object]
    mean: Callable[[], Tensor]


def flat_params(module: nn.Module) -> Tensor:
    """Return the parameters of a module, [n_params]."""
    return torch.cat([value.detach().reshape(-1) for value in module.parameters()])


@torch.no_grad()
def load(module: nn.Module, row: Tensor) -> None:
    """Copy a row into the parameters of a module."""
    sizes = [value.numel() for value in module.parameters()]
    for value, part in zip(module.parameters(), row.split(sizes), strict=True):
        value.copy_(part.view_as(value))


def client_row(row: Tensor, client: int) -> Tensor:
    """Return the row of a client after imitated local training."""
    return row + CHANGE * torch.randn(len(row), generator=torch.Generator().manual_seed(client + 1))


def plain_method(module: nn.Module, client: Tensor) -> Method:
    """Flatten into a buffer, sum over ranks, divide, copy back."""
    buffer = torch.empty_like(client)

    @torch.no_grad()
    def run() -> None:
        torch.cat([value.reshape(-1) for value in module.parameters()], out=buffer)
        dist.all_reduce(buffer)
        buffer.div_(dist.get_world_size())
        load(module, buffer)

    return Method(lambda: load(module, client), run, lambda: buffer)


def periodic_method(module: nn.Module, client: Tensor) -> Method:
    """PyTorch's averager, which leaves out parameters without a gradient."""
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    with warnings.catch_warnings():  # it advises against a period of 1
        warnings.simplefilter("ignore")
        averager = PeriodicModelAverager(period=1)
    return Method(
        lambda: load(module, client),
        lambda: averager.average_parameters(module.parameters()),
        lambda: flat_params(module),
    )


def own_method(row: Tensor, client: Tensor, bucket_mb: float, **settings: Any) -> Method:
    """From a client's row in its chunk's buffer to the start of the next round, as fastlocal.training.loop does."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    averager = make_averager(row, ranks, nodes=[0] * ranks, rank=rank, bucket_mb=bucket_mb, **settings)
    params, start = client.unsqueeze(0).clone(), row.clone()

    def reset() -> None:
        start.copy_(row)
        params.copy_(client)

    def run() -> None:
        averager.accumulate(params, last=True)
        averager.start(start, ranks)
        start.copy_(averager.finish())
        params.copy_(start.expand_as(params))

    return Method(reset, run, lambda: start)


def fault_of(name: str, method: Method, exact: Tensor) -> str:
    """Average once; return a message if the mean is wrong, else an empty string."""
    method.reset()
    method.run()
    error = (method.mean().double() - exact).abs()
    allowed = 2.0**-21 * exact.abs() + (ROUNDING.get(name, 0.0) + 2.0**-20) * 6 * CHANGE
    return "" if bool((error <= allowed).all()) else f"its mean is {error.max():.2g} away from the exact one"


def run_rank(rank: int, ranks: int, options: argparse.Namespace, model: str, folder: str) -> None:
    """Main function of a rank; rank 0 writes fault and seconds of each method to FOLDER/methods.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", ranks), rank=rank, world_size=ranks)
    module, other = (build(model, in_channels=3, classes=10, image_size=(32, 32)) for _ in range(2))
    row = flat_params(module)
    client = client_row(row, rank)
    exact = torch.stack([client_row(row, number).double() for number in range(ranks)]).mean(dim=0)
    methods = {PLAIN: plain_method(module, client)}
    methods |= {name: own_method(row, client, options.bucket_mb, **settings) for name, settings in OWN.items()}
    methods[PERIODIC] = periodic_method(other, client)
    faults = {}
    for name, method in methods.items():
        gathered: list[str | None] = [None] * ranks
        dist.all_gather_object(gathered, fault_of(name, method, exact))
        faults[name] = next(filter(None, gathered), "")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    slowest, end = torch.zeros(()), time.monotonic() + options.seconds
    for turn in range(options.turns + 1):
        over = torch.tensor(float(turn > 3 and time.monotonic() > end))
        dist.all_reduce(over)
        if over:
            break
        for name, method in list(methods.items())[:: 1 if turn % 2 else -1]:
            if faults[name]:
                continue
            method.reset()
            dist.barrier()
            start = time.perf_counter()
            method.run()
            slowest.fill_(time.perf_counter() - start)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            if turn:  # the first one warms up
                seconds[name].append(slowest.item())
    if rank == 0:
        Path(folder, "methods.json").write_text(json.dumps({name: (faults[name], seconds[name]) for name in methods}))
    dist.barrier()
    dist.destroy_process_group()


def measure(model: str, ranks: int, options: argparse.Namespace) -> list[Row]:
    """Return the rows of a model."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, args=(ranks, options, model, folder), nprocs=ranks)
        methods = json.loads(Path(folder, "methods.json").read_text())
    rows = []
    for name, (fault, seconds) in methods.items():
        row = {"model": model, "ranks": str(ranks), "variant": name, "bucket_mb": f"{options.bucket_mb:g}"}
        row |= dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "ratio"), "") | {"of": PLAIN, "turns": str(len(seconds))}
        if seconds:
            columns = zip(("median_ms", "p20_ms", "p80_ms"), spread(seconds), strict=True)
            row |= {key: f"{value * 1e3:.2f}" for key, value in columns}
        if seconds and methods[PLAIN][1]:
            row["ratio"] = f"{median_ratio(methods[PLAIN][1], seconds):.2f}"
        rows.append(row | {"note": fault})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models; return 1 if a mean is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.averaging", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20.0, help="after which the turns of a model end")
    parser.add_argument("--bucket-mb", type=float, default=25.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu", help="folder for averaging.csv")
    options = parser.parse_args(arguments)
    machine, failed = machine_columns() | {"device": f"gloo, {cores()} cores"}, False
    for ranks in options.ranks:
        for model in options.models:
            rows = measure(model, ranks, options)
            failed = failed or any(row["note"] for row in rows)
            merge_rows(options.out / "averaging.csv", [row | machine for row in rows], KEYS)
            print(f"{model}, {ranks} ranks\n\n| method | ms | p20 | p80 | ratio | note |\n|---|--:|--:|--:|--:|---|")
            for row in rows:
                shown = (row[name] for name in ("variant", "median_ms", "p20_ms", "p80_ms", "ratio", "note"))
                print(f"| {' | '.join(shown)} |", flush=True)
            print()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
