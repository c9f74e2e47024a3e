"""The cost of one client-step as the clients grow, and as H grows: flat or falling is what is aimed at.

    python -m bench.scaling --model mlp

Every size trains with `--executor auto` in a process of its own, and all of them take turns, a round each, so that what
else the machine does falls on all alike. What the cost is compared with is that of 128 clients and the same H; ratios
are medians of those within a turn. Rows go to bench/results/DEVICE/scaling.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.case import RESULTS, Case, Steal, device_name, machine
from bench.grid import SIZES
from bench.throughput import Row, merge
from bench.turns import Worker, spread, take_turns

CLIENTS, STEPS = (8, 32, 128, 512, 2048, 4096), (1, 4, 16, 64)
AT = 128
"""Clients where H grows, and what the cost of others is compared with."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    parser.add_argument("--model", default="mlp", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--local-steps", type=int, default=4, help="H where the clients grow")
    parser.add_argument("--clients", type=numbers, default=CLIENTS)
    parser.add_argument("--steps", type=numbers, default=STEPS, help=f"H to compare at {AT} clients")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--tune-seconds", type=float, default=5.0, help="of `auto`, for each size")
    parser.add_argument("--turns", type=float, default=60.0, help="seconds for the turns, the start apart")
    parser.add_argument("--least", type=int, default=3, help="turns, however long they take")
    parser.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for scaling.csv")
    asked = parser.parse_args(arguments)
    began, steal = time.monotonic(), Steal()
    cases = sizes(Case(asked.model, AT, asked.batch, asked.local_steps, momentum=0.0), asked.clients, asked.steps)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"tune_seconds": asked.tune_seconds}
        workers = {}
        for place, case in enumerate(cases):
            made = Worker(f"fastlocal {asked.executor}", [case], folder / str(place), settings)
            workers[case] = stack.enter_context(made)
            workers[case].begin(0)
            workers[case].begun()
        started = time.monotonic() - began
        take_turns(list(workers.values()), asked.turns, asked.least, most=15)
    found = {case: worker.variant for case, worker in workers.items()}
    print(f"started in {started:.0f} s, took turns for {time.monotonic() - began - started:.0f} s", flush=True)
    about, rows = machine() | {"steal_percent": steal.percent()}, []
    heads = f"| clients | H | ms per client-step | p20 to p80 | times that of {AT} | ran as |"
    print(f"{heads}\n|--:|--:|--:|--:|--:|---|", flush=True)
    for case, one in found.items():
        place = f"| {case.clients} | {case.local_steps} |"
        if not one.seconds:
            print(f"{place} skipped: {one.fault} | | | |")
            continue
        base = dataclasses.replace(case, clients=AT)
        ratio = compared(case, one.seconds, base, found[base].seconds if base in found else [])
        cost, low, high = (each(case, value) for value in spread(one.seconds))
        print(f"{place} {cost:.4f} | {low:.4f} to {high:.4f} | {ratio} | {one.backend} |")
        row: Row = {
            "model": case.model,
            "clients": str(case.clients),
            "batch": str(case.batch),
            "local_steps": str(case.local_steps),
            "precision": case.precision,
            "executor": asked.executor,
            "backend": one.backend,
            "rounds": str(len(one.seconds)),
            "ms_per_client_step": f"{cost:.5f}",
            "p20_ms": f"{low:.5f}",
            "p80_ms": f"{high:.5f}",
            f"ratio_to_{AT}": ratio,
        }
        rows.append(row | about)
    if rows:
        merge(asked.out / "scaling.csv", rows, ("model", "clients", "batch", "local_steps", "precision", "executor"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
