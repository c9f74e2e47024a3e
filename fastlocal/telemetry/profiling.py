"""Profile a few rounds of a run with torch.profiler: a trace, a table of times, memory snapshots."""

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
from torch.profiler import ProfilerActivity, profile, record_function

from .base import Logger, RoundReport, RunSummary
from .ceilings import copy_bandwidth, matmul_rate
from .trace_report import ProfiledRounds, format_report, report

MAX_SECONDS = 120.0
"""Maximum length of a profiled round: at some 20,000 events a second a longer one would fill the memory."""
SNAPSHOT_ENTRIES = 200_000


@dataclass(frozen=True)
class Subject:
    """The profiled run.

    Attributes:
        device: Device of the training.
        dtype: Of the parameters.
        autocast_dtype: Of matrix products under autocast, or None.
        row_bytes: Size of one client's parameters.
        flops: Operations of one sample's forward and backward pass.
        moments: Rows that the optimizer keeps for each client.
        eval_every: Rounds between evaluations.
    """

    device: torch.device
    dtype: torch.dtype
    autocast_dtype: torch.dtype | None
    row_bytes: int
    flops: int
    moments: int
    eval_every: int


class ProfileLogger(Logger):
    """Profile the rounds after the first one, with their evaluations.

    Writes trace_rankN.pt.trace.json.gz, profile_rankN.txt and on a GPU memory_rankN.pickle into the run directory. In
    the trace each round is a `ProfilerStep#N`, and `distributedInfo` names the rank, also of a single process.

    Args:
        directory: Run directory.
        subject: The profiled run.
        rounds: Number of rounds to profile.
        message: Called with log lines.
    """

    def __init__(self, directory: Path, subject: Subject, rounds: int, message: Callable[[str], None]) -> None:
        self._directory, self._subject, self._rounds, self._message = directory, subject, rounds, message
        self._rank = torch.distributed.get_rank() if _distributed() else 0
        self._profiler: profile | None = None
        self._step: record_function | None = None
        self._done = False
        self._clients = 0
        self._reports: list[RoundReport] = []

    def start(self, summary: RunSummary) -> None:
        subject = self._subject
        self._clients = summary.clients
        self._copy = copy_bandwidth(subject.device)
        self._matmul = matmul_rate(subject.device, subject.autocast_dtype or subject.dtype)
        self._began = time.perf_counter()

    def round(self, report: RoundReport) -> None:
        if self._done:
            return
        now = time.perf_counter()
        if self._profiler is not None:
            self._reports.append(report)
            if len(self._reports) == self._rounds:
                self._finish(now)
            else:
                self._begin_step(report.comm_round + 1)
        elif now - self._began > MAX_SECONDS:
            self._done = True
            self._message(
                f"not profiled: a round takes {now - self._began:.0f} s, and the trace of one would fill the memory; "
                "lower --step1 or --clients"
            )
        else:
            self._begin()
            self._begin_step(report.comm_round + 1)

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
        if not _distributed():  # else torch adds more than this
            self._profiler.add_metadata_json("distributedInfo", json.dumps({"backend": "", "rank": 0, "world_size": 1}))
        self._began = time.perf_counter()

    def _begin_step(self, number: int) -> None:
        """Begin the annotation of a round, by the name that readers of traces look for."""
        self._end_step()
        self._step = record_function(f"ProfilerStep#{number}")
        self._step.__enter__()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _stop(self) -> profile | None:
        self._done = True
        self._end_step()
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
            with self._output_file("memory", ".pickle") as path:
                torch.cuda.memory._dump_snapshot(str(path))
            torch.cuda.memory._record_memory_history(enabled=None)
        with self._output_file("trace", ".pt.trace.json.gz") as path:
            profiler.export_chrome_trace(str(path))
            with gzip.open(path, "rt", encoding="utf-8") as file:
                events = json.load(file)["traceEvents"]
        rounds = ProfiledRounds(
            first_round=self._reports[0].comm_round,
            rounds=len(self._reports),
            clients=self._clients,
            local_steps=sum(one.local_steps for one in self._reports),
            samples=sum(one.samples for one in self._reports),
            seconds=now - self._began,
            row_bytes=subject.row_bytes,
            flops=subject.flops,
            moments=subject.moments,
            eval_every=subject.eval_every,
            copy=self._copy,
            matmul=self._matmul,
            precision=str(subject.autocast_dtype or subject.dtype).removeprefix("torch."),
        )
        lines = f"{format_report(report(events, rounds), rounds)}\n{_peak(subject.device)}\n"
        with self._output_file("profile", ".txt") as path:
            path.write_text(lines, encoding="utf-8")
        last = rounds.first_round + rounds.rounds - 1
        self._message(f"profiled rounds {rounds.first_round} to {last}: see {self.table}")

    @property
    def table(self) -> Path:
        """Path of the table."""
        return self._directory / f"profile_rank{self._rank}.txt"

    @contextlib.contextmanager
    def _output_file(self, kind: str, suffix: str) -> Iterator[Path]:
        """Yield a temporary path, and rename it to the output file if the block succeeds."""
        name = f"{kind}_rank{self._rank}{suffix}"
        path = self._directory / f".{name}.fastlocal.tmp{suffix}"
        try:
            yield path
            os.replace(path, self._directory / name)
        finally:
            path.unlink(missing_ok=True)


def flops_of(step: Callable[[], Tensor]) -> int:
    """Count the operations of the convolutions and matrix products in `step` and its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, too slow for a run without a profile

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
