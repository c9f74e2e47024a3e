"""Runs in this process that signals stop at chosen moments."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastlocal.common.interrupts import interruptible
from fastlocal.config.schema import RunConfig
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger
from fastlocal.training.loop import Loop
from tests.helpers import passes

RUN: dict[str, Any] = {
    "batch_size": 4,
    "total_batch_size": 20,
    "start_lr": None,
    "client_lr": 0.1,
    "wd": 0.02,
    "epochs": 4,
    "steps_per_epoch": 3,
    "step1": 2,
    "step2": 2,
    "decay1": 100,
    "decay2": 100,
    "seed": 3,
    "device": "cpu",
    "executor": "looped",
    "chunk": 2,
    "debug": True,
    "save_freq1": 2,
}


class Ticking(nn.Module):
    """Counts its forward passes, and stops the process at those in `moments`."""

    def __init__(self, inner: nn.Module, moments: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.inner, self.moments = inner, moments

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(passes.forward_pass(x))


def run(folder: Path, module: nn.Module, data: DataSet, *loggers: Logger, resume: bool = False, **values: Any) -> Loop:
    """One process's share of a run; raises KeyboardInterrupt where a signal stopped it."""
    config = RunConfig().with_values(**{**RUN, "log_pth": str(folder), **values})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background may not have
    with interruptible(to_the_end=False):
        passes.begin()
        ready = build_run(config, data, lambda: module, cross_entropy, model_flag="model")
        passes.begin(module.moments if isinstance(module, Ticking) else ())
        return train(ready, overwrite=False, make_loggers=lambda path: list(loggers), resume=resume)


def continued(folder: Path, make: Callable[[], nn.Module], data: DataSet, moments: list[int], **values: Any) -> int:
    """A run in as many processes as it takes, each stopped at the next of `moments`; how many signals stopped one."""
    stops = 0
    for moment in [*moments, 0]:
        try:
            run(folder, Ticking(make(), (moment,)), data, resume=True, **values)
            return stops
        except KeyboardInterrupt:
            stops += 1
    raise AssertionError("stopped once more than it was told to")
