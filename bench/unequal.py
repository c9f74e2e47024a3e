"""Unequal clients: what a client-step costs where clients' sizes are lognormal, beside clients of one size.

    python -m bench.unequal

100 clients of an MLP of 784-200-200-10 train one epoch of their own samples in batches of 10, in one thread. Their
sizes are lognormal, or all the mean of these in whole batches. Each kind trains in a process of its own; they take
turns, a round each. Times are seconds of the processor over all client-steps of a round. The ratio is the median of
those within a turn; it should be 1.15 at most.

Rows go to unequal.csv after the turns.
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
from torch import Tensor, nn

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, spread
from bench.processes import AnsweringProcess, answer, answer_pipe
from bench.training_case import NEVER
from fastlocal.config.schema import RunConfig
from fastlocal.config.validation import check
from fastlocal.data.from_python import make_split
from fastlocal.data.partition import Partition
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.schedule.local_work import epoch_steps
from fastlocal.telemetry.base import Logger, RoundReport

CLIENTS, MEAN, BATCH = 100, 100, 10
"""Clients, mean of their samples, and samples of a batch."""
FEATURES, WIDTH, CLASSES = 784, 200, 10
TIMEOUT, WARM_UP = 300.0, 3
"""Seconds for an answer, and turns that do not count."""
KINDS = ("equal", "lognormal")
KEYS = ("executor", "last_batch", "sigma")


class RoundByRound(Logger):
    """Answers with the processor's seconds of each round, and waits for a line before the next."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe, self._start = pipe, time.process_time()

    def round(self, report: RoundReport) -> None:
        """Answer."""
        answer(self._pipe, cpu_seconds=time.process_time() - self._start)
        if not sys.stdin.readline():
            raise KeyboardInterrupt
        self._start = time.process_time()


def sizes_of(kind: str, sigma: float) -> Tensor:
    """Return int64 [CLIENTS], the samples of each client."""
    normal = torch.randn(CLIENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = (sigma * normal).exp()
    sizes = (sizes * MEAN / sizes.mean()).round().clamp(min=1).long()
    if kind == "equal":
        steps = epoch_steps(sizes, BATCH, 1.0, "fill")
        sizes = torch.full_like(sizes, BATCH * round(steps.double().mean().item()))
    return sizes


def steps_of(kind: str, sigma: float, last_batch: str) -> Tensor:
    """Return int64 [CLIENTS], the steps of each client in a round."""
    return epoch_steps(sizes_of(kind, sigma), BATCH, 1.0, last_batch)


def make_module() -> nn.Module:
    """Return the MLP that is trained."""
    hidden = (nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def settings(executor: str, last_batch: str, directory: Path) -> RunConfig:
    """Return the settings of an endless run without evaluations."""
    config = RunConfig().with_values(
        dataset="python",
        partition="python",
        batch_size=BATCH,
        total_batch_size=CLIENTS * BATCH,
        local_epochs=1.0,
        last_batch=last_batch,
        rounds=NEVER // 2**16,
        eval_freq1=NEVER,
        save_freq1=NEVER,
        start_lr=None,
        client_lr=0.05,
        executor=executor,
        workers=1,
        log_pth=str(directory),
    )
    check(config)
    return config


def run_clients(config: RunConfig, sizes: Tensor, pipe: TextIO) -> None:
    """Train in this process; the logger answers."""
    generator, samples = torch.Generator().manual_seed(0), int(sizes.sum())
    inputs = torch.randn(samples, FEATURES, generator=generator)
    targets = torch.randint(0, CLASSES, (samples,), generator=generator)
    test = inputs[:100].clone(), targets[:100].clone()
    splits = (make_split(name, pair, cross_entropy) for name, pair in (("train", (inputs, targets)), ("test", test)))
    data = DataSet("python", *splits, classes=None, mean=None, std=None)
    parts = Partition.from_lists([part.numpy() for part in torch.arange(samples).split(sizes.tolist())])
    prepared = build_run(config, data, make_module, cross_entropy, model_flag="model", partition=parts)
    answer(pipe)
    sys.stdin.readline()
    train(prepared, overwrite=False, make_loggers=lambda directory: [RoundByRound(pipe)])


def make_row(executor: str, last_batch: str, sigma: float, rounds: dict[str, list[float]]) -> Row:
    """Return the table row of an executor from the seconds of the rounds of both kinds."""
    row = {"executor": executor, "last_batch": last_batch, "sigma": f"{sigma:g}", "clients": str(CLIENTS)}
    steps = {kind: steps_of(kind, sigma, last_batch) for kind in KINDS}
    row |= {"most_steps": str(int(steps["lognormal"].max())), "mean_steps": str(int(steps["equal"][0]))}
    own = {kind: [seconds / int(steps[kind].sum()) for seconds in rounds[kind]] for kind in KINDS}
    for kind in KINDS:
        median, low, high = (f"{1e3 * value:.4f}" for value in spread(own[kind]))
        row |= {f"{kind}_step_cpu_ms": median, f"{kind}_p20_cpu_ms": low, f"{kind}_p80_cpu_ms": high}
    return row | {"ratio_cpu": f"{median_ratio(own['lognormal'], own['equal']):.3f}", "rounds": str(len(own["equal"]))}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.unequal", description=__doc__.splitlines()[0])
    flags.add_argument("--executors", type=lambda text: text.split(","), default=["threaded", "looped", "stacked"])
    flags.add_argument("--last-batches", type=lambda text: text.split(","), default=["fill", "partial"])
    flags.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of the sizes")
    flags.add_argument("--turns", type=int, default=30, help="counted turns")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for unequal.csv")
    flags.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return flags


def compare(executor: str, last_batch: str, sigma: float, turns: int) -> Row:
    """Let a process of each kind take turns, and return the row; raise RuntimeError if one failed."""
    rounds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        children = {}
        for kind in KINDS:
            words = ("--executors", executor, "--last-batches", last_batch, "--sigma", str(sigma))
            command = [sys.executable, "-m", "bench.unequal", *words, "--run", kind, str(folder / kind)]
            children[kind] = AnsweringProcess(command, folder / f"{kind}.log")
            stack.callback(children[kind].close)
        for child in children.values():
            child.answer(TIMEOUT)
        for turn in range(WARM_UP + turns):
            for kind, child in children.items():
                child.send("go")
                found = child.answer(TIMEOUT)
                if "fault" in found:
                    raise RuntimeError("\n".join(child.log_lines()[-20:]))
                if turn >= WARM_UP:
                    rounds[kind].append(float(found["cpu_seconds"]))
    return make_row(executor, last_batch, sigma, rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the executors, or, with --run, train one kind of clients."""
    options = parser().parse_args(arguments)
    if options.run:
        kind, directory = options.run
        pipe = answer_pipe()
        config = settings(*options.executors, *options.last_batches, Path(directory))
        run_clients(config, sizes_of(kind, options.sigma), pipe)
        return 0
    machine, steal, rows = machine_columns(), StealMeter(), []
    for executor in options.executors:
        for last_batch in options.last_batches:
            row = compare(executor, last_batch, options.sigma, options.turns)
            rows.append(row | machine | {"steal_percent": steal.percent()})
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    merge_rows(options.out / "unequal.csv", rows, KEYS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
