"""Scaling: the cost of one client-step as the number of clients, or of local steps H, grows.

    python -m bench.scaling --model mlp

Every size trains in a process of its own, and all sizes take turns, a round each. The cost of a size is compared with
that of 128 clients and the same H, by the median of the ratios within a turn; the target is flat or falling. Rows go to
scaling.csv after each turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, spread
from bench.interleaved import LATE, START_SHARE, Measurement, Worker, start_workers, take_turns
from bench.loops import OWN_PREFIX
from bench.training_case import LOCAL_STEPS, PRECISIONS, TrainingCase

CLIENTS, STEPS = (8, 32, 128, 512, 2048, 4096), (1, 4, 16, 64)
BASE_CLIENTS = 128
"""Clients of the sizes that the others are compared with, and of those where H grows."""
RATIO = f"ratio_to_{BASE_CLIENTS}"
KEYS = ("model", "clients", "batch", "local_steps", "precision", "executor")


def sizes(base: TrainingCase, clients: Sequence[int], steps: Sequence[int]) -> list[TrainingCase]:
    """Return the cases with these clients, and with these local steps at BASE_CLIENTS, each once."""
    cases = [dataclasses.replace(base, clients=number) for number in clients]
    cases += [dataclasses.replace(base, clients=BASE_CLIENTS, local_steps=number) for number in steps]
    return list(dict.fromkeys(cases))


def step_costs(case: TrainingCase, seconds: Sequence[float]) -> list[float]:
    """Return milliseconds per client and local step of each round."""
    return [1e3 * value / case.clients / case.local_steps for value in seconds]


def make_row(case: TrainingCase, executor: str, measurements: Mapping[TrainingCase, Measurement]) -> Row:
    """Return the table row of a size."""
    one, base = measurements[case], dataclasses.replace(case, clients=BASE_CLIENTS)
    row = {
        "model": case.model,
        "clients": str(case.clients),
        "batch": str(case.batch),
        "local_steps": str(case.local_steps),
        "precision": case.precision,
        "executor": executor,
        "backend": one.backend,
        "rounds": str(len(one.seconds)),
    }
    row |= dict.fromkeys(("ms_per_client_step", "p20_ms", "p80_ms", RATIO), "")
    if one.seconds:
        costs = step_costs(case, one.seconds)
        median, low, high = (f"{value:.5f}" for value in spread(costs))
        row |= {"ms_per_client_step": median, "p20_ms": low, "p80_ms": high}
        if base in measurements and measurements[base].seconds:
            row[RATIO] = f"{median_ratio(costs, step_costs(base, measurements[base].seconds)):.3f}"
    return row | {"note": one.fault}


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    lines = [f"| clients | H | ms per client-step | p20 to p80 | times that of {BASE_CLIENTS} | ran as |"]
    lines.append("|--:|--:|--:|--:|--:|---|")
    for row in rows:
        if row["ms_per_client_step"]:
            median, low, high = (f"{float(row[name]):.4f}" for name in ("ms_per_client_step", "p20_ms", "p80_ms"))
            numbers = f"{median} | {low} to {high} | {row[RATIO]} | {row['backend']}"
        else:
            numbers = f"skipped: {row['note']} | | |"
        lines.append(f"| {row['clients']} | {row['local_steps']} | {numbers} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    flags.add_argument("--model", default="mlp", choices=LOCAL_STEPS)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--local-steps", type=int, default=4, help="H where the clients grow")
    flags.add_argument("--clients", type=numbers, default=CLIENTS, help="joined by commas")
    flags.add_argument("--steps", type=numbers, default=STEPS, help=f"H to compare at {BASE_CLIENTS} clients")
    flags.add_argument("--precision", default="fp32", choices=PRECISIONS)
    flags.add_argument("--executor", default="auto")
    flags.add_argument("--tune-seconds", type=float, default=5.0, help="for `auto` to choose, for each size")
    flags.add_argument("--turns", type=float, default=60.0, help="seconds for the turns, without the start")
    flags.add_argument("--least", type=int, default=3, help="turns at least, unless --seconds are over")
    flags.add_argument("--seconds", type=float, default=float("inf"), help="for everything")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for scaling.csv")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all sizes; return 1 if a process failed for another reason than time."""
    options = parser().parse_args(arguments)
    start_time, steal, machine = time.monotonic(), StealMeter(), machine_columns()
    base = TrainingCase(
        options.model, BASE_CLIENTS, options.batch, options.local_steps, options.precision, momentum=0.0
    )
    cases = sizes(base, options.clients, options.steps)
    settings, variant = {"tune_seconds": options.tune_seconds}, f"{OWN_PREFIX}{options.executor}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {
            case: stack.enter_context(Worker(variant, case, folder / str(number), settings))
            for number, case in enumerate(cases)
        }
        measurements = {case: worker.measurement for case, worker in workers.items()}

        def make_rows() -> list[Row]:
            return [make_row(case, options.executor, measurements) for case in cases]

        def report() -> None:
            columns = machine | {"steal_percent": steal.percent()}
            timed = [row | columns for row in make_rows() if row["ms_per_client_step"]]
            if timed:
                merge_rows(options.out / "scaling.csv", timed, KEYS)

        start_workers(list(workers.values()), start_time + START_SHARE * options.seconds)
        started, end = time.monotonic() - start_time, start_time + options.seconds
        seconds = min(options.turns, options.seconds - started)
        take_turns(list(workers.values()), seconds, options.least, end=end, report=report)
        print(f"started in {started:.0f} s, took turns for {time.monotonic() - start_time - started:.0f} s", flush=True)
        print(markdown(make_rows()), flush=True)
    failures = [one for one in measurements.values() if one.output]
    for one in failures:
        print(f"{one.fault}; its last lines:\n{one.output}", flush=True)
    return 1 if any(one.fault != LATE for one in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
