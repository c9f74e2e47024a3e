"""Populations: what a round, the start and the memory cost with a million clients, beside a thousand.

    python -m bench.population

Each population trains in a process of its own: clients of ten samples of 8 features, an MLP of 8-200-200-10, a cohort
of 100, and H=5 steps of batch 10. They take turns, a round each. Times are of the wall clock, and of the processor,
which says more on a busy machine. A round's ratio is the median of those within a turn to the first population; it
should be 1.1 at most. The start goes from the tensors in memory to the end of the first round: drawing and checking the
partition, probing the model, saving what a run begins with. `peak_mib` is the peak of the resident set over that of a
process that has imported everything, and `arrays_mib` the tensors and the partition themselves.

Rows go to population.csv after the turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, spread
from bench.memory import MIB, peak_bytes
from bench.processes import AnsweringProcess, answer, answer_pipe
from bench.training_case import NEVER
from fastlocal.config.schema import RunConfig
from fastlocal.config.validation import check
from fastlocal.data.from_python import make_split
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger, RoundReport

OWNED, FEATURES, CLASSES, WIDTH = 10, 8, 10, 200
"""Samples of each client, and sizes of the model."""
BATCH, LOCAL_STEPS = 10, 5
TIMEOUT, WARM_UP = 300.0, 3
"""Seconds for an answer, and turns that do not count."""
KEYS = ("population", "clients", "executor")


class RoundByRound(Logger):
    """Answers with the times of each round, and waits for a line before the next.

    Args:
        pipe: Pipe for answers.
        before: Peak bytes before the data were drawn.
        arrays: Bytes of the data set and the partition.
    """

    def __init__(self, pipe: TextIO, before: int, arrays: int) -> None:
        self._pipe, self._before, self._arrays = pipe, before, arrays
        self._start = time.perf_counter(), time.process_time()

    def round(self, report: RoundReport) -> None:
        """Answer; the first answer is about the start and the first round."""
        seconds, cpu_seconds = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        peak = (peak_bytes() - self._before) / MIB
        answer(self._pipe, seconds=seconds, cpu_seconds=cpu_seconds, peak_mib=peak, arrays_mib=self._arrays / MIB)
        if not sys.stdin.readline():
            raise KeyboardInterrupt
        self._start = time.perf_counter(), time.process_time()


def make_module() -> nn.Module:
    """Return the MLP that is trained."""
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def settings(population: int, clients: int, executor: str, directory: Path) -> RunConfig:
    """Return the settings of an endless run without evaluations."""
    config = RunConfig().with_values(
        dataset="python",
        partition="iid",
        population=population,
        batch_size=BATCH,
        total_batch_size=clients * BATCH,
        step1=LOCAL_STEPS,
        rounds=NEVER // LOCAL_STEPS,
        eval_freq1=NEVER,
        save_freq1=NEVER,
        start_lr=None,
        client_lr=0.05,
        executor=executor,
        log_pth=str(directory),
    )
    check(config)
    return config


def run_population(config: RunConfig, pipe: TextIO) -> None:
    """Train in this process; the logger answers."""
    before, generator = peak_bytes(), torch.Generator().manual_seed(0)
    samples = config.client.population * OWNED if config.client.population else 0
    inputs = torch.randn(samples, FEATURES, generator=generator)
    targets = torch.randint(0, CLASSES, (samples,), generator=generator)
    test = inputs[:100].clone(), targets[:100].clone()
    arrays = inputs.nbytes + targets.nbytes + 8 * (samples + samples // OWNED + 1)
    answer(pipe)
    sys.stdin.readline()
    logger = RoundByRound(pipe, before, arrays)
    splits = (make_split(name, pair, cross_entropy) for name, pair in (("train", (inputs, targets)), ("test", test)))
    data = DataSet("python", *splits, classes=None, mean=None, std=None)
    prepared = build_run(config, data, make_module, cross_entropy, model_flag="model")
    train(prepared, overwrite=False, make_loggers=lambda directory: [logger])


def make_row(
    population: int, executor: str, clients: int, start: Row, rounds: Sequence[Row], base: Sequence[Row]
) -> Row:
    """Return the table row of a population from the answers of its process and of the first population's."""
    row = {"population": str(population), "samples": str(population * OWNED), "clients": str(clients)}
    row |= {"executor": executor, "rounds": str(len(rounds))}
    for name in ("seconds", "cpu_seconds"):
        own, other = ([float(one[name]) for one in answers] for answers in (rounds, base))
        median, low, high = (f"{1e3 * value:.2f}" for value in spread(own))
        kind = name.replace("seconds", "ms")
        row |= {f"round_{kind}": median, f"p20_{kind}": low, f"p80_{kind}": high}
        row[f"ratio_{kind}"] = f"{median_ratio(own, other):.3f}"
        row[f"start_{name}"] = f"{float(start[name]):.2f}"
    peak = max(float(one["peak_mib"]) for one in rounds)
    return row | {"peak_mib": f"{peak:.0f}", "arrays_mib": f"{float(start['arrays_mib']):.3g}"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.population", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    flags.add_argument("--populations", type=numbers, default=[1000, 1_000_000], help="joined by commas")
    flags.add_argument("--clients", type=int, default=100, help="of each round")
    flags.add_argument("--executor", default="stacked")
    flags.add_argument("--turns", type=int, default=60, help="counted turns")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for population.csv")
    flags.add_argument("--run", help=argparse.SUPPRESS)
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the populations, or, with --run, train one of them; return 1 if a process failed."""
    options = parser().parse_args(arguments)
    if options.run:
        pipe = answer_pipe()
        run_population(settings(*options.populations, options.clients, options.executor, Path(options.run)), pipe)
        return 0
    machine, steal = machine_columns(), StealMeter()
    answers: list[list[Row]] = [[] for _ in options.populations]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        children = []
        for population in options.populations:
            words = ("--populations", str(population), "--clients", str(options.clients), "--executor")
            command = [sys.executable, "-m", "bench.population", *words, options.executor]
            child = AnsweringProcess([*command, "--run", str(folder / str(population))], folder / f"{population}.log")
            stack.callback(child.close)
            children.append(child)
        for child in children:
            child.answer(TIMEOUT)
        for _ in range(1 + WARM_UP + options.turns):
            for child, own in zip(children, answers, strict=True):
                child.send("go")
                own.append(child.answer(TIMEOUT))
                if "fault" in own[-1]:
                    print("\n".join(child.log_lines()[-20:]))
                    return 1
    rows = [
        make_row(population, options.executor, options.clients, own[0], own[1 + WARM_UP :], answers[0][1 + WARM_UP :])
        for population, own in zip(options.populations, answers, strict=True)
    ]
    rows = [row | machine | {"steal_percent": steal.percent()} for row in rows]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    merge_rows(options.out / "population.csv", rows, KEYS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
