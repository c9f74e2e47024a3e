"""Crash test: kill runs at random moments, continue them, and compare them with uninterrupted runs.

    python -m tests.crash [--kills 100] [--ranks 1] [--seed 0] [--case TEXT]

It prints and adds to bench/results/cpu/kill.csv.

A run is killed by SIGKILL (of several ranks one at random, or all) after a random part of what is left of it, often at
the beginning of a file. It is started again with --continue, six times; the next start runs to the end. Everything in
the run directory must then equal that of an uninterrupted run with as many ranks, bit for bit: models, momenta,
counters, metrics and the loss of every step.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch

from bench.common import RESULTS, commit, read_rows, write_rows
from tests.crash.crashes import CASES, Outcome, crash_runs
from tests.helpers.fork_server import ForkServer

TABLE = RESULTS / "cpu" / "kill.csv"


def main() -> int:
    """Crash runs, add a row for each case to the table, and return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", default="", help="only cases with this text in their names")
    options = parser.parse_args()
    cases = [case for case in CASES if options.case in case]
    outcomes: dict[str, list[Outcome]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder, ForkServer() as fork_server:
        crashes = crash_runs(fork_server, Path(folder), options.kills, 6, options.seed, options.ranks, cases)
        for case, outcome in crashes:
            outcomes[case].append(outcome)
            print(f"{case}: {outcome.kills} kills, {outcome.while_writing} while writing {outcome.failure}", flush=True)
    columns = {
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ranks": str(options.ranks),
        "seed": str(options.seed),
    }
    rows = [
        columns
        | {
            "case": case,
            "runs": str(len(runs)),
            "kills": str(sum(run.kills for run in runs)),
            "while_writing": str(sum(run.while_writing for run in runs)),
            "failures": str(sum(bool(run.failure) for run in runs)),
        }
        for case, runs in outcomes.items()
        if runs
    ]
    write_rows(TABLE, [*read_rows(TABLE), *rows])
    print(TABLE.read_text(encoding="utf-8"))
    return 1 if any(run.failure for runs in outcomes.values() for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
