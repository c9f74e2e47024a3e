"""What the training benches measure: a model, clients, batch and local steps, as a run that anybody could start."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.device import triton_version
from fastlocal.config.recipes import default
from fastlocal.config.schema import RunConfig

RATE, MOMENTUM = 0.01, 0.9
NEVER = 2**31 - 1
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """Clients on coloured blobs of 3 x 32 x 32 pixels, drawn with replacement, not augmented."""

    model: str
    clients: int
    batch: int
    local_steps: int
    precision: str = "fp32"
    momentum: float = MOMENTUM

    @property
    def name(self) -> str:
        """As in tables: resnet20_gn 8 x 32, H=2, bf16."""
        return f"{self.model} {self.clients} x {self.batch}, H={self.local_steps}, {self.precision}"

    def config(self, directory: Path, **more: Any) -> RunConfig:
        """The run of this case; it goes on for as long as it is let, without an evaluation."""
        far = {f"{name}{phase}": NEVER for name in ("eval_freq", "save_freq") for phase in (1, 2, 3)}
        values: dict[str, Any] = {
            "dataset": "synthetic",
            "model": self.model,
            "batch_size": self.batch,
            "total_batch_size": self.clients * self.batch,
            "replacement": True,
            "aug": False,
            "start_lr": None,
            "client_lr": RATE,
            "momentum": self.momentum,
            "precision": self.precision,
            "rounds": NEVER // self.local_steps,
            **{f"step{phase}": self.local_steps for phase in (1, 2, 3)},
            **{f"decay{phase}": NEVER for phase in (1, 2, 3)},
            **far,
            "save_every": 0,
            "log_pth": str(directory),
        }
        return default().with_values(**(values | more))


def device_name() -> str:
    """Folder of bench/results for this machine: cpu, or the GPU's name."""
    if not torch.cuda.is_available():
        return "cpu"
    return re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())


def machine() -> dict[str, str]:
    """Columns that say where and with what a row was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "commit": commit if not commit or same_sources(commit) else f"{commit}+",
        "torch": torch.__version__,
        "triton": triton_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": str(cores()),
    }


@functools.cache
def same_sources(commit: str) -> bool:
    """Whether what is measured is as in that commit; rows of another one are of other code ("+": changed since)."""
    folders = ["fastlocal", "kernels", "bench", ":!bench/results"]
    command = ["git", "diff", "--quiet", commit, "--", *folders]
    return subprocess.run(command, cwd=RESULTS.parent.parent, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Steal:
    """How much of the cores' time the hypervisor gave to others, since it was made."""

    ticks: tuple[int, ...] = field(default_factory=lambda: _ticks())

    def percent(self) -> str:
        """As a column; empty where the system does not say."""
        passed = [after - before for before, after in zip(self.ticks, _ticks(), strict=True)]
        return f"{100 * passed[7] / sum(passed):.1f}" if sum(passed) else ""


def _ticks() -> tuple[int, ...]:
    """Of all cores: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        return tuple(int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9])
    except OSError:
        return ()


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
