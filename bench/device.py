"""The GPU at hand: what it is, how to time it, and how fast it copies."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

NO_GPU = "There is no CUDA device here: nothing was measured."
FLUSH_BYTES = 2**28
"""Written between two runs, more than the L2 of any GPU."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run: median, 20th and 80th percentile; and whether runs were replays of a CUDA graph."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    graph: bool


def describe() -> dict[str, str]:
    """Name, capability, L2 and, where nvidia-smi tells, clocks and power limit of the current GPU; versions; commit."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "l2_bytes": str(properties.L2_cache_size),
        **dict(zip(("sm_mhz", "memory_mhz", "power_limit_w"), _nvidia_smi(), strict=True)),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": _commit(),
    }


def triton_version() -> str:
    """Empty where there is no Triton."""
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _nvidia_smi() -> list[str]:
    unknown = ["", "", ""]
    if not shutil.which("nvidia-smi"):
        return unknown
    query = ["--query-gpu=clocks.max.sm,clocks.max.memory,power.limit", "--format=csv,noheader,nounits"]
    index = f"--id={torch.cuda.current_device()}"
    done = subprocess.run(["nvidia-smi", index, *query], capture_output=True, text=True)
    words = [word.strip() for word in done.stdout.strip().split(",")]
    return words if done.returncode == 0 and len(words) == 3 else unknown


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip()


def time_runs(run: Callable[[], object], *, budget_ms: float = 150.0, most: int = 200) -> Timing:
    """Time `run` by device events, each run with a cold L2.

    A run is captured as a CUDA graph, so that launches leave no gaps, unless it cannot be.
    budget_ms: about how long all runs together may take        most: runs
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
    once = run if graph is None else graph.replay

    def timed() -> float:
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        once()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    first = statistics.median(timed() for _ in range(3))
    times = [timed() for _ in range(max(10, min(most, int(budget_ms / max(first, 1e-3)))))]
    cuts = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), cuts[0], cuts[3], graph is not None)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device-to-device copy of 1 GiB of random values."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    timing = time_runs(lambda: target.copy_(source))
    return 2 * source.nbytes / (timing.median_ms / 1e3)
