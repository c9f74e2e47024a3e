"""Sweeps: what runs as replicas of one job cost, beside the same runs one by one.

    python -m bench.sweep

The grid of `fastlocal sweep` is trained as one sweep and as a process for each run, in turns. Of each process the
start is the time until its first run directory holds config.json (import, data, probe, choice of the executor), and the
training the rest up to the last file; a sweep's training includes building its other runs. With --alone 0 there are
only sweeps, of the first 1, 4 and 16 runs, say, with --counts 1,4,16: the time per client and local step shows how far
one run leaves the device idle.

Rows go to sweep.csv after each turn.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import Row, StealMeter, device_folder, machine_columns, merge_rows
from fastlocal.config.serialization import read_config
from fastlocal.sweeps.axes import Values, grid, parse_axis
from fastlocal.sweeps.plan import run_name

QUICKSTART = "quickstart --over seed=0..4 client_lr=0.05,0.1,0.2,0.4"
KEYS = ("words", "runs", "executor")


@dataclass(frozen=True)
class Times:
    """Seconds of one or several processes, one after the other.

    Attributes:
        start: Until the first run directory is there.
        training: The rest.
        cpu: Of the processor, both together.
    """

    start: float
    training: float
    cpu: float

    def __add__(self, other: Times) -> Times:
        return Times(self.start + other.start, self.training + other.training, self.cpu + other.cpu)


def timed(words: Sequence[str], directory: Path) -> Times:
    """Run `fastlocal WORDS`, and return its times; raises RuntimeError if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    command = [sys.executable, "-m", "fastlocal", *words, "--log-pth", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    ended, after = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    opened = min(path.stat().st_mtime for path in directory.rglob("config.json"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(opened - began, ended - opened, cpu)


def flags_of(values: Values) -> list[str]:
    """Return the flags of one run of the grid."""
    return [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]


def turn(base: Sequence[str], runs: Sequence[Values], folder: Path, *, alone: bool) -> tuple[list[Times], int]:
    """Train the runs as a sweep and, if `alone`, one by one; return the times of each, and the clients of a run."""
    rows = [{name: str(value) for name, value in values.items()} for values in runs]
    listed = folder / "runs.csv"
    listed.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    found = [timed(["sweep", *base, "--runs", str(listed)], folder / "sweep")]
    if alone:
        each = [timed(["train", *base, *flags_of(values)], folder / run_name(values)) for values in runs]
        found.append(sum(each[1:], each[0]))
    return found, read_config(next((folder / "sweep").rglob("config.json"))).clients


def make_row(words: str, clients: int, runs: int, executor: str, turns: Sequence[Sequence[Times]]) -> Row:
    """Return the table row of a grid: medians over the turns."""

    def median(place: int, name: str) -> float:
        return statistics.median(getattr(times[place], name) for times in turns)

    row = {"words": words, "runs": str(runs), "executor": executor, "clients": str(clients)}
    row |= {"turns": str(len(turns))}
    row |= {f"sweep_{name}_s": f"{median(0, name):.2f}" for name in ("start", "training", "cpu")}
    if len(turns[0]) > 1:
        row |= {f"alone_{name}_s": f"{median(1, name):.2f}" for name in ("start", "training", "cpu")}
        whole = [[times.start + times.training for times in pair] for pair in turns]
        row["ratio_training"] = f"{statistics.median(a.training / b.training for a, b in turns):.3f}"
        row["ratio_whole"] = f"{statistics.median(a / b for a, b in whole):.3f}"
        row["ratio_cpu"] = f"{statistics.median(a.cpu / b.cpu for a, b in turns):.3f}"
    return row


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__.splitlines()[0])
    flags.add_argument("--words", default=QUICKSTART, help="RECIPE, flags, and --over with the grid at the end")
    flags.add_argument("--counts", help="numbers of the grid's first runs, joined by commas; default all")
    flags.add_argument("--executor", default="auto")
    flags.add_argument("--alone", type=int, default=1, help="1: also each run in a process of its own")
    flags.add_argument("--turns", type=int, default=2)
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for sweep.csv")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the sweeps, and write a row for each number of runs."""
    options = parser().parse_args(arguments)
    before, _, over = options.words.partition("--over")
    base = [*before.split(), "--executor", options.executor]
    runs = grid([parse_axis([word], "--over") for word in over.split()])
    machine, steal = machine_columns(), StealMeter()
    counts = [int(word) for word in (options.counts or str(len(runs))).split(",")]
    for count in counts:
        turns = []
        for _ in range(options.turns):
            with tempfile.TemporaryDirectory() as folder:
                times, clients = turn(base, runs[:count], Path(folder), alone=bool(options.alone))
            turns.append(times)
            row = make_row(options.words, clients, count, options.executor, turns)
            merge_rows(options.out / "sweep.csv", [row | machine | {"steal_percent": steal.percent()}], KEYS)
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
