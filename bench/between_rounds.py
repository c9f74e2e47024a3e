"""Time between two rounds: what the host does while a GPU trains, and what a GPU that is done waits for.

    python -m bench.between_rounds

512 clients take H=2 steps of batch 8 in captured steps, which a stub takes in no time: neither a GPU nor its kernels
are there, so that what is left is the host's. The model has 63 layers and 71 parameters, so that operations on a CPU
cost about what a launch does. `host_ms` goes from the last step of a round to the first of the next, and `after_ms` is
the part of it after the results of the round have come, in which a GPU is idle or ends its mean. Times are those of the
processor.

Rows go to between_rounds.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.common import Row, StealMeter, device_folder, machine_columns, merge_rows, spread
from bench.training_case import NEVER
from fastlocal.aggregation.sums import FloatSums
from fastlocal.common.readback import Readback
from fastlocal.config.schema import RunConfig
from fastlocal.config.validation import check
from fastlocal.data.from_python import make_split
from fastlocal.data.types import DataSet
from fastlocal.executors.cuda_graphs import GraphedExecutor, StepProgram
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.console import ConsoleLogger

CLIENTS, LOCAL_STEPS, BATCH = 512, 2, 8
SAMPLES, POPULATION, LAYERS = 65_536, 4096, 31
WARM_UP = 20
"""Rounds that do not count."""
CASES: dict[str, dict[str, Any]] = {
    "all clients": {},
    "cohorts": {"partition": "iid"},
    "cohorts by examples": {"partition": "quantity", "server_optimizer": "adam"},
}
KEYS = ("case",)


@dataclass
class Clock:
    """Times of the host between rounds.

    Attributes:
        host: Seconds from the last step of a round to the first of the next.
        after: Seconds of these after the results have come.
    """

    host: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    _stepped: float = 0.0
    _waited: float | None = None

    def capture(self, program: StepProgram) -> Callable[[], None]:
        """Return what stands for the replay of a step."""

        def step() -> None:
            if self._waited is not None:
                now = time.thread_time()
                self.host.append(now - self._stepped)
                self.after.append(now - self._waited)
                self._waited = None
            self._stepped = time.thread_time()

        return step

    def wait_for(self) -> Callable[[Readback], list[Tensor]]:
        """Return Readback.wait with a look at the clock after it."""
        wait = Readback.wait

        def waited(readback: Readback) -> list[Tensor]:
            values = wait(readback)
            self._waited = time.thread_time()
            return values

        return waited


def make_module() -> nn.Module:
    """Return a model of many layers and few parameters."""
    hidden = [layer for _ in range(LAYERS) for layer in (nn.Linear(1, 1), nn.Tanh())]
    return nn.Sequential(nn.Linear(4, 1), *hidden, nn.Linear(1, 3))


def settings(case: str, rounds: int, directory: Path) -> RunConfig:
    """Return the settings of a case."""
    population = {"population": POPULATION} if "partition" in CASES[case] else {}
    config = RunConfig().with_values(
        dataset="python",
        batch_size=BATCH,
        total_batch_size=CLIENTS * BATCH,
        step1=LOCAL_STEPS,
        rounds=rounds,
        eval_freq1=NEVER,
        save_freq1=NEVER,
        save_every=0,
        start_lr=None,
        client_lr=0.05,
        momentum=0.9,
        executor="stacked",
        tune_seconds=0.0,
        log_pth=str(directory),
        **CASES[case],
        **population,
    )
    check(config)
    return config


def _add_one(sums: FloatSums, params: Tensor, into: Tensor, weights: Tensor | None) -> None:
    """One launch, in the place of a loop over clients."""
    torch.add(into[0], params[0], out=into[0])


def measure(case: str, rounds: int) -> Clock:
    """Return the times of the rounds of a case."""
    clock, generator = Clock(), torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 4, generator=generator)
    targets = torch.randint(0, 3, (SAMPLES,), generator=generator)
    test = inputs[:100].clone(), targets[:100].clone()
    splits = (make_split(name, pair, cross_entropy) for name, pair in (("train", (inputs, targets)), ("test", test)))
    data = DataSet("python", *splits, classes=None, mean=None, std=None)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(case, WARM_UP + 1 + rounds, Path(folder) / "run")
        prepared = build_run(config, data, make_module, cross_entropy, model_flag="model")
        assert isinstance(prepared.executor, StackedExecutor), "as the settings say"
        executor = GraphedExecutor(prepared.executor, clock.capture)
        prepared = dataclasses.replace(prepared, executor=executor)
        with patch.object(Readback, "wait", clock.wait_for()), patch.object(FloatSums, "accumulate", _add_one):
            train(prepared, overwrite=False, make_loggers=lambda path: [ConsoleLogger(io.StringIO())])
    return Clock(clock.host[WARM_UP:], clock.after[WARM_UP:])


def row_of(case: str, clock: Clock) -> Row:
    """Return the table row of a case."""
    row = {"case": case, "clients": str(CLIENTS), "local_steps": str(LOCAL_STEPS), "batch": str(BATCH)}
    for name, seconds in (("host", clock.host), ("after", clock.after)):
        median, low, high = (f"{1e3 * value:.3f}" for value in spread(seconds))
        row |= {f"{name}_ms": median, f"{name}_p20_ms": low, f"{name}_p80_ms": high}
    return row | {"rounds": str(len(clock.host))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases, print a line for each, and write the rows."""
    flags = argparse.ArgumentParser(prog="python -m bench.between_rounds", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--rounds", type=int, default=400, help="counted rounds of each case")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for between_rounds.csv")
    options = flags.parse_args(arguments)
    torch.set_num_threads(1)
    machine, steal, rows = machine_columns(), StealMeter(), []
    for case in CASES:
        rows.append(row_of(case, measure(case, options.rounds)))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    rows = [row | machine | {"steal_percent": steal.percent()} for row in rows]
    merge_rows(options.out / "between_rounds.csv", rows, KEYS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
