"""The state that clients keep: what a round costs with it on disk, beside memory.

    python -m bench.client_store

50 of 1,000 clients of an MLP of 784-200-200-10 take part in a round, ten at a time, with momentum 0.9: a store of
760 MiB. Each kind of store trains in a process of its own. Without saves they take turns, a round each. With a save
that is due after each round, one trains all its rounds before the other, as a save goes on beside later rounds: it
writes the state of all clients from memory, and before-images to the disk. The ratio is the median of those of the
rounds with one number.

Rows go to client_store.csv after the turns. Files are in the system's cache as far as memory is free.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import torch

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, spread
from bench.processes import AnsweringProcess, answer, answer_pipe
from bench.training_case import NEVER
from bench.unequal import BATCH, CLASSES, FEATURES, make_module
from fastlocal.config.schema import RunConfig
from fastlocal.config.validation import check
from fastlocal.data.from_python import make_split
from fastlocal.data.partition import Partition
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger, RoundReport

POPULATION, CLIENTS, CHUNK = 1000, 50, 10
TIMEOUT, WARM_UP = 300.0, 3
"""Seconds for an answer, and turns that do not count."""
STORES = ("memory", "disk")
KEYS = ("executor", "local_steps", "saves")


class RoundByRound(Logger):
    """Answers with the seconds of each round, and waits for a line before the next."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe, self._start = pipe, (time.perf_counter(), time.process_time())

    def round(self, report: RoundReport) -> None:
        """Answer."""
        wall, cpu = self._start
        answer(self._pipe, seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        if not sys.stdin.readline():
            raise KeyboardInterrupt
        self._start = time.perf_counter(), time.process_time()


def settings(store: str, executor: str, local_steps: int, saves: int, directory: Path) -> RunConfig:
    """Return the settings of an endless run without evaluations."""
    config = RunConfig().with_values(
        dataset="python",
        partition="python",
        batch_size=BATCH,
        total_batch_size=CLIENTS * BATCH,
        step1=local_steps,
        rounds=NEVER // 2**16,
        eval_freq1=NEVER,
        save_freq1=NEVER,
        save_every=saves,
        start_lr=None,
        client_lr=0.05,
        momentum=0.9,
        client_state="keep",
        client_store=store,
        chunk=CHUNK,
        executor=executor,
        workers=1,
        log_pth=str(directory),
    )
    check(config)
    return config


def run_clients(config: RunConfig, pipe: TextIO) -> None:
    """Train in this process; the logger answers."""
    samples, generator = POPULATION * BATCH, torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    targets = torch.randint(0, CLASSES, (samples,), generator=generator)
    test = inputs[:100].clone(), targets[:100].clone()
    splits = (make_split(name, pair, cross_entropy) for name, pair in (("train", (inputs, targets)), ("test", test)))
    data = DataSet("python", *splits, classes=None, mean=None, std=None)
    parts = Partition.from_lists([part.numpy() for part in torch.arange(samples).split(BATCH)])
    prepared = build_run(config, data, make_module, cross_entropy, model_flag="model", partition=parts)
    answer(pipe)
    sys.stdin.readline()
    train(prepared, overwrite=False, make_loggers=lambda directory: [RoundByRound(pipe)])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.client_store", description=__doc__.splitlines()[0])
    flags.add_argument("--executor", default="threaded")
    flags.add_argument("--local-steps", type=lambda text: text.split(","), default=["1", "5", "20"])
    flags.add_argument("--saves", type=lambda text: text.split(","), default=["0", "1"], help="rounds between saves")
    flags.add_argument("--turns", type=int, default=20, help="counted turns")
    flags.add_argument("--folder", type=Path, help="folder for the run directories; default: a temporary one")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for client_store.csv")
    flags.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    return flags


def compare(options: argparse.Namespace, local_steps: str, saves: str) -> Row:
    """Let a process of each kind take turns, and return the row; raise RuntimeError if one failed."""
    rounds: dict[str, list[dict[str, float]]] = {store: [] for store in STORES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        children = {}
        for store in STORES:
            words = ("--executor", options.executor, "--run", store, local_steps, saves, str(folder / store))
            command = [sys.executable, "-m", "bench.client_store", *words]
            children[store] = AnsweringProcess(command, folder / f"{store}.log")
            stack.callback(children[store].close)
        for child in children.values():
            child.answer(TIMEOUT)
        turns = [(turn, store) for turn in range(WARM_UP + options.turns) for store in STORES]
        if int(saves):
            turns.sort(key=lambda one: STORES.index(one[1]))
        for turn, store in turns:
            child = children[store]
            child.send("go")
            found = child.answer(TIMEOUT)
            if "fault" in found:
                raise RuntimeError("\n".join(child.log_lines()[-20:]))
            if turn >= WARM_UP:
                rounds[store].append(found)
    row = {"executor": options.executor, "local_steps": local_steps, "saves": saves}
    row |= {"population": str(POPULATION), "clients": str(CLIENTS), "chunk": str(CHUNK), "turns": str(options.turns)}
    for kind in ("seconds", "cpu_seconds"):
        own = {store: [float(times[kind]) for times in rounds[store]] for store in STORES}
        for store in STORES:
            row |= dict(zip([f"{store}_{kind}{end}" for end in ("", "_p20", "_p80")],
                            [f"{value:.4f}" for value in spread(own[store])], strict=True))  # fmt: skip
        row[f"ratio_{kind}"] = f"{median_ratio(own['disk'], own['memory']):.3f}"
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the stores, or, with --run, train with one."""
    options = parser().parse_args(arguments)
    if options.run:
        store, local_steps, saves, directory = options.run
        pipe = answer_pipe()
        run_clients(settings(store, options.executor, int(local_steps), int(saves), Path(directory)), pipe)
        return 0
    machine, steal, rows = machine_columns(), StealMeter(), []
    for local_steps, saves in itertools.product(options.local_steps, options.saves):
        rows.append(compare(options, local_steps, saves) | machine | {"steal_percent": steal.percent()})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    merge_rows(options.out / "client_store.csv", rows, KEYS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
