"""A run under torch.profiler for a few rounds: a trace, a table of where the time goes, memory snapshots."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .base import Logger, RoundReport, RunSummary
from .ceilings import copy_bandwidth, matmul_rate
from .trace_report import Work, report, text

MAX_SECONDS = 120.0
"""Of one round: some 20,000 events a second would fill the memory."""
SNAPSHOT_ENTRIES = 200_000


@dataclass(frozen=True)
class Subject:
    """What is profiled. low: dtype of matrix products where it is not the parameters', as under autocast

    row_bytes: one client's parameters        flops: of one sample's forward and backward pass
    """

    device: torch.device
    dtype: torch.dtype
    low: torch.dtype | None
    row_bytes: int
    flops: int
    momentum: bool
    eval_every: int


class ProfileLogger(Logger):
    """Lets the first round pass, profiles the next ones and their evaluations, and leaves the run alone after that.

    Writes trace_rankN.json.gz, profile_rankN.txt and on a GPU memory_rankN.pickle into the run directory.
    rounds: how many are profiled        message: takes one line for a person
    """

    def __init__(self, directory: Path, subject: Subject, rounds: int, message: Callable[[str], None]) -> None:
        self._directory, self._subject, self._wanted, self._message = directory, subject, rounds, message
        self._rank = torch.distributed.get_rank() if _distributed() else 0
        self._profiler: profile | None = None
        self._done = False
        self._clients = 0
        self._reports: list[RoundReport] = []

    def start(self, summary: RunSummary) -> None:
        subject = self._subject
        self._clients = summary.clients
        self._copy = copy_bandwidth(subject.device)
        self._matmul = matmul_rate(subject.device, subject.low or subject.dtype)
        self._began = time.perf_counter()

    def round(self, report: RoundReport) -> None:
        if self._done:
            return
        now = time.perf_counter()
        if self._profiler is not None:
            self._reports.append(report)
            if len(self._reports) == self._wanted:
                self._finish(now)
        elif now - self._began > MAX_SECONDS:
            self._done = True
            self._message(
                f"not profiled: a round takes {now - self._began:.0f} s, and the trace of one would fill the memory; "
                "lower --step1 or --clients"
            )
        else:
            self._begin()

    def close(self) -> None:
        if not self._done and self._reports:
            self._finish(time.perf_counter())
        elif not self._done:
            self._stop()
            self._message("not profiled: the run ended within its first two rounds")

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._subject.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        self._profiler = profile(activities=activities, experimental_config=everywhere)
        self._profiler.start()
        self._began = time.perf_counter()

    def _stop(self) -> profile | None:
        self._done = True
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            if self._subject.device.type == "cuda":
                torch.cuda.synchronize(self._subject.device)
            profiler.stop()
        return profiler

    def _finish(self, now: float) -> None:
        subject = self._subject
        profiler = self._stop()
        assert profiler is not None
        if subject.device.type == "cuda":
            with self._written("memory", ".pickle") as path:
                torch.cuda.memory._dump_snapshot(str(path))
            torch.cuda.memory._record_memory_history(enabled=None)
        with self._written("trace", ".json.gz") as path:
            profiler.export_chrome_trace(str(path))
            with gzip.open(path, "rt", encoding="utf-8") as file:
                events = json.load(file)["traceEvents"]
        work = Work(
            first_round=self._reports[0].comm_round,
            rounds=len(self._reports),
            clients=self._clients,
            local_steps=sum(one.local_steps for one in self._reports),
            samples=sum(one.samples for one in self._reports),
            seconds=now - self._began,
            row_bytes=subject.row_bytes,
            flops=subject.flops,
            momentum=subject.momentum,
            eval_every=subject.eval_every,
            copy=self._copy,
            matmul=self._matmul,
            precision=str(subject.low or subject.dtype).removeprefix("torch."),
        )
        lines = f"{text(report(events, work), work)}\n{_peak(subject.device)}\n"
        with self._written("profile", ".txt") as path:
            path.write_text(lines, encoding="utf-8")
        self._message(f"profiled rounds {work.first_round} to {work.first_round + work.rounds - 1}: see {self.table}")

    @property
    def table(self) -> Path:
        """Where the table is."""
        return self._directory / f"profile_rank{self._rank}.txt"

    @contextlib.contextmanager
    def _written(self, what: str, ending: str) -> Iterator[Path]:
        """A temporary name for a file that is there whole or not at all."""
        name = f"{what}_rank{self._rank}{ending}"
        path = self._directory / f".{name}.fastlocal.tmp{ending}"
        try:
            yield path
            os.replace(path, self._directory / name)
        finally:
            path.unlink(missing_ok=True)


def flops_of(step: Callable[[], Tensor]) -> int:
    """Multiplications and additions of the convolutions and matrix products in `step` and in its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which a run without a profile need not

    with FlopCounterMode(display=False) as counter:
        step().backward()
    return int(counter.get_total_flops())


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        size, what = torch.cuda.max_memory_allocated(device), f"allocated on {device}"
    else:
        size, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "resident"
    return f"peak memory so far: {size / 2**20:,.0f} MiB {what}"
