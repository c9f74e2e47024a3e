"""The cost of one client-step as the clients grow, and as H grows: flat or falling is what is aimed at.

    python -m bench.scaling --model mlp

Every size trains with `--executor auto` in a process of its own, and all of them take turns, a round each, so that what
else the machine does falls on all alike. What the cost is compared with is that of 128 clients and the same H; ratios
are medians of those within a turn. Rows go to bench/results/DEVICE/scaling.csv after each turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.case import RESULTS, Case, Steal, device_name, machine
from bench.grid import SIZES
from bench.tables import Row, merge
from bench.turns import START_SHARE, begin, spread, take_turns
from bench.variant import LATE, PRECISIONS, Variant, Worker

CLIENTS, STEPS = (8, 32, 128, 512, 2048, 4096), (1, 4, 16, 64)
AT = 128
"""Clients where H grows, and what the cost of others is compared with."""
KEYS = ("model", "clients", "batch", "local_steps", "precision", "executor")


def sizes(base: Case, clients: Sequence[int], steps: Sequence[int]) -> list[Case]:
    """The cases, each once."""
    found = [dataclasses.replace(base, clients=number) for number in clients]
    found += [dataclasses.replace(base, clients=AT, local_steps=number) for number in steps]
    return list(dict.fromkeys(found))


def each(case: Case, seconds: float) -> float:
    """Milliseconds per client and local step."""
    return 1e3 * seconds / case.clients / case.local_steps


def compared(case: Case, own: Sequence[float], base: Case, others: Sequence[float]) -> str:
    """How many times what a client-step of `base` costs one of this case does; empty where there are no times of it."""
    if not own or not others:
        return ""
    return f"{statistics.median(each(case, a) / each(base, b) for a, b in zip(own, others, strict=False)):.3f}"


def row_of(case: Case, executor: str, found: Mapping[Case, Variant]) -> Row:
    """A line of the table; without times where there are none, and then its note says why."""
    one, base = found[case], dataclasses.replace(case, clients=AT)
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
    row |= dict.fromkeys(("ms_per_client_step", "p20_ms", "p80_ms", f"ratio_to_{AT}"), "")
    if one.seconds:
        cost, low, high = (f"{each(case, value):.5f}" for value in spread(one.seconds))
        row |= {"ms_per_client_step": cost, "p20_ms": low, "p80_ms": high}
        row[f"ratio_to_{AT}"] = compared(case, one.seconds, base, found[base].seconds if base in found else [])
    return row | {"note": one.fault}


def table(rows: Sequence[Row]) -> str:
    lines = [f"| clients | H | ms per client-step | p20 to p80 | times that of {AT} | ran as |"]
    lines.append("|--:|--:|--:|--:|--:|---|")
    for row in rows:
        if row["ms_per_client_step"]:
            cost, low, high = (f"{float(row[name]):.4f}" for name in ("ms_per_client_step", "p20_ms", "p80_ms"))
            numbers = f"{cost} | {low} to {high} | {row[f'ratio_to_{AT}']} | {row['backend']}"
        else:
            numbers = f"skipped: {row['note']} | | |"
        lines.append(f"| {row['clients']} | {row['local_steps']} | {numbers} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    made.add_argument("--model", default="mlp", choices=SIZES)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--local-steps", type=int, default=4, help="H where the clients grow")
    made.add_argument("--clients", type=numbers, default=CLIENTS)
    made.add_argument("--steps", type=numbers, default=STEPS, help=f"H to compare at {AT} clients")
    made.add_argument("--precision", default="fp32", choices=PRECISIONS)
    made.add_argument("--executor", default="auto")
    made.add_argument("--tune-seconds", type=float, default=5.0, help="of `auto`, for each size")
    made.add_argument("--turns", type=float, default=60.0, help="seconds for the turns, the start apart")
    made.add_argument("--least", type=int, default=3, help="turns, unless --seconds are over")
    made.add_argument(
        "--seconds", type=float, default=float("inf"), help=f"for everything, {START_SHARE:.0%}% of them to start"
    )
    made.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for scaling.csv")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    began, steal, about = time.monotonic(), Steal(), machine()
    base = Case(asked.model, AT, asked.batch, asked.local_steps, asked.precision, momentum=0.0)
    cases = sizes(base, asked.clients, asked.steps)
    settings = {"tune_seconds": asked.tune_seconds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {
            case: stack.enter_context(Worker(f"fastlocal {asked.executor}", [case], folder / str(place), settings))
            for place, case in enumerate(cases)
        }

        def rows() -> list[Row]:
            found = {case: worker.variant for case, worker in workers.items()}
            return [row_of(case, asked.executor, found) for case in cases]

        def report() -> None:
            known = [row | about | {"steal_percent": steal.percent()} for row in rows() if row["ms_per_client_step"]]
            if known:
                merge(asked.out / "scaling.csv", known, KEYS)

        begin(0, list(workers.values()), began + START_SHARE * asked.seconds)
        started, end = time.monotonic() - began, began + asked.seconds
        limit = min(asked.turns, asked.seconds - started)
        take_turns(list(workers.values()), limit, asked.least, most=15, end=end, report=report)
        print(f"started in {started:.0f} s, took turns for {time.monotonic() - began - started:.0f} s", flush=True)
        print(table(rows()), flush=True)
        faults = [worker.variant for worker in workers.values() if worker.variant.said]
        for one in faults:
            print(f"{one.fault}; it said\n{one.said}", flush=True)
    return 1 if any(one.fault != LATE for one in faults) else 0


if __name__ == "__main__":
    sys.exit(main())
