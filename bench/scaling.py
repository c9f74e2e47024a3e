"""The cost of one client-step as the clients grow, and as H grows: flat or falling is what is aimed at.

    python -m bench.scaling --model mlp

One process trains two rounds of every size in turn, with `--executor auto`, and all of them several times over. Rows go
to bench/results/DEVICE/scaling.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.case import RESULTS, Case, Steal, device_name, machine
from bench.throughput import SIZES, Row, merge
from bench.turns import measure, spread

CLIENTS, STEPS = (8, 32, 128, 512, 2048, 4096), (1, 4, 16, 64)
AT = 128
"""Clients where H grows, and what the cost of others is compared with."""


def sizes(base: Case, clients: Sequence[int], steps: Sequence[int]) -> list[Case]:
    """The cases, each once."""
    found = [dataclasses.replace(base, clients=number) for number in clients]
    found += [dataclasses.replace(base, clients=AT, local_steps=number) for number in steps]
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    parser.add_argument("--model", default="mlp", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--local-steps", type=int, default=4, help="H where the clients grow")
    parser.add_argument("--clients", type=numbers, default=CLIENTS)
    parser.add_argument("--steps", type=numbers, default=STEPS, help=f"H to compare at {AT} clients")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--passes", type=int, default=3, help="over all sizes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no size is started")
    parser.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for scaling.csv")
    asked = parser.parse_args(arguments)
    end, steal = time.monotonic() + asked.seconds, Steal()
    cases = sizes(Case(asked.model, AT, asked.batch, asked.local_steps, momentum=0.0), asked.clients, asked.steps)
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    said: dict[Case, str] = {}
    measured = measure(cases * asked.passes, [f"fastlocal {asked.executor}"], None, 0.0, at_least=2, most=2)
    with contextlib.closing(measured) as found:
        for case, (one,) in found:
            seconds[case] += one.seconds
            said[case] = one.fault or one.backend
            if time.monotonic() > end:
                break
    about, rows = machine() | {"steal_percent": steal.percent()}, []
    print("| clients | H | ms per client-step | p20 to p80 | ran as |\n|--:|--:|--:|--:|---|", flush=True)
    for case in cases:
        place = f"| {case.clients} | {case.local_steps} |"
        if not seconds[case]:
            print(f"{place} skipped: {said.get(case, 'no time was left')} | | |")
            continue
        cost, low, high = (1e3 * value / case.clients / case.local_steps for value in spread(seconds[case]))
        print(f"{place} {cost:.4f} | {low:.4f} to {high:.4f} | {said[case]} |")
        row: Row = {
            "model": case.model,
            "clients": str(case.clients),
            "batch": str(case.batch),
            "local_steps": str(case.local_steps),
            "precision": case.precision,
            "executor": asked.executor,
            "backend": said[case],
            "rounds": str(len(seconds[case])),
            "ms_per_client_step": f"{cost:.5f}",
            "p20_ms": f"{low:.5f}",
            "p80_ms": f"{high:.5f}",
        }
        rows.append(row | about)
    if rows:
        merge(asked.out / "scaling.csv", rows, ("model", "clients", "batch", "local_steps", "precision", "executor"))
    costs = {
        int(row["clients"]): float(row["ms_per_client_step"])
        for row in rows
        if row["local_steps"] == str(asked.local_steps)
    }
    if AT in costs and 2048 in costs:
        print(f"2048 clients cost {costs[2048] / costs[AT]:.2f} times what {AT} cost, each (aim: at most 1.15)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
