"""Time the convolutions and matrix products of a local step alone: no step can be faster.

    python -m bench.peers.limits [--workloads W3]

The calls of one client's step are recorded, and made again in a process for each core, with one thread, all at once.
Rows go to peers_limits.csv: milliseconds per client-step, beside those of fastlocal in peers_rounds.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import Row, StealMeter, cores, device_folder, machine_columns, merge_rows, read_rows
from bench.peers.sides.nets import torch_module
from bench.peers.systems import OWN
from bench.peers.workloads import WORKLOADS, Workload

ATEN = torch.ops.aten
PRODUCTS = (ATEN.convolution.default, ATEN.convolution_backward.default, ATEN.addmm.default, ATEN.mm.default)
TURNS = 7
TABLE = "peers_limits.csv"


class Recorder(TorchDispatchMode):
    """Keeps the products that are computed under it, as functions without arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function in PRODUCTS:
            self.calls.append(lambda: function(*arguments, **(options or {})))
        return function(*arguments, **(options or {}))


def products(workload: Workload) -> list[Callable[[], Any]]:
    """Return the products of one local step of one client."""
    torch.manual_seed(0)
    module = torch_module(workload.net)
    inputs = torch.randn(workload.batch, *workload.shape)
    targets = torch.randint(0, workload.classes, (workload.batch,))
    with Recorder() as recorder:
        F.cross_entropy(module(inputs), targets).backward()
    return recorder.calls


def repeat(workload: Workload, seconds: float, barrier: Barrier, results: Any) -> None:
    """In a process of its own: time the products, in step with the other processes."""
    torch.set_num_threads(1)
    calls = products(workload)

    def time_calls(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            for call in calls:
                call()
        return (time.perf_counter() - start) / number

    with torch.no_grad():
        number = max(1, round(seconds / max(time_calls(3), 1e-6)))
        for _ in range(TURNS):
            barrier.wait()
            results.put(time_calls(number))


def limit(workload: Workload, seconds: float) -> float:
    """Return the seconds of a client-step's products, on all cores: the median over turns and processes."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(cores()), context.Queue()
    processes = [context.Process(target=repeat, args=(workload, seconds, barrier, results)) for _ in range(cores())]
    for process in processes:
        process.start()
    times = [results.get(timeout=120) for _ in range(TURNS * len(processes))]
    for process in processes:
        process.join()
    return statistics.median(times) / len(processes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the products of the workloads."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.limits", description=__doc__.splitlines()[0])
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn (default: 0.5)")
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder with peers_rounds.csv")
    options = parser.parse_args(arguments)
    own = {row["workload"]: row for row in read_rows(options.out / "peers_rounds.csv") if row["system"] == OWN}
    for workload in WORKLOADS:
        if workload.name in options.workloads:
            steal = StealMeter()
            products_ms = f"{1e3 * limit(workload, options.seconds):.4g}"
            row: Row = {"workload": workload.name, "products_ms": products_ms, "own_ms": "", "share": ""}
            measured = own.get(workload.name, {}).get("own_s", "")
            if measured:
                round_s = statistics.median(float(value) for value in measured.split())
                row["own_ms"] = f"{1e3 * round_s / workload.client_steps:.4g}"
                row["share"] = f"{float(products_ms) / float(row['own_ms']):.2f}"
            row |= {"steal": steal.percent()} | machine_columns()
            merge_rows(options.out / TABLE, [row], ["workload"])
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
