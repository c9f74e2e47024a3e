"""The current GPU: its description, timing by device events, and its copy bandwidth."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.common import Row, commit, triton_version

NO_GPU = "There is no CUDA device here: nothing was measured."
FLUSH_BYTES = 2**28
"""Bytes written between two runs: more than the L2 cache of any GPU."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a run.

    Attributes:
        median_ms: Median.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
        graph: True if the runs were replays of a CUDA graph.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    graph: bool


def describe() -> Row:
    """Return name, capability, L2 and, if nvidia-smi tells, clocks and power limit of the GPU; versions; the commit."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "l2_bytes": str(properties.L2_cache_size),
        **dict(zip(("sm_mhz", "memory_mhz", "power_limit_w"), _nvidia_smi(), strict=True)),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": commit(),
    }


def _nvidia_smi() -> list[str]:
    unknown = ["", "", ""]
    if not shutil.which("nvidia-smi"):
        return unknown
    query = ["--query-gpu=clocks.max.sm,clocks.max.memory,power.limit", "--format=csv,noheader,nounits"]
    index = f"--id={torch.cuda.current_device()}"
    result = subprocess.run(["nvidia-smi", index, *query], capture_output=True, text=True)
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return values if result.returncode == 0 and len(values) == 3 else unknown


def time_runs(run: Callable[[], object], *, budget_ms: float = 150.0, max_runs: int = 200) -> Timing:
    """Time `run` by device events, each run with a cold L2 cache.

    A run is captured as a CUDA graph if possible, so that launches leave no gaps.

    Args:
        run: Launches the kernels.
        budget_ms: Approximate milliseconds of all runs together.
        max_runs: Runs at most.
    """
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        graph = None
    launch = run if graph is None else graph.replay

    def elapsed_ms() -> float:
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    first = statistics.median(elapsed_ms() for _ in range(3))
    times = [elapsed_ms() for _ in range(max(10, min(max_runs, int(budget_ms / max(first, 1e-3)))))]
    cuts = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), cuts[0], cuts[3], graph is not None)


def copy_bandwidth() -> float:
    """Measure a device-to-device copy of 1 GiB of random values; return bytes read and written per second."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    timing = time_runs(lambda: target.copy_(source))
    return 2 * source.nbytes / (timing.median_ms / 1e3)
