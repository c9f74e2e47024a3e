"""The cost of one client-step as the clients grow, and as H grows: flat or falling is what is aimed at.

    python -m bench.scaling --model mlp

Each size is a process of its own with `--executor auto`; all take turns. Rows go to bench/results/DEVICE/scaling.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.case import RESULTS, Case, device_name, machine
from bench.throughput import COPIES, SIZES, Row, merge
from bench.turns import measure, spread
from fastlocal.free_memory import available

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
    parser.add_argument("--turns", type=float, default=8.0, help="seconds for the rounds of one size")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no size is started")
    parser.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for scaling.csv")
    asked = parser.parse_args(arguments)
    end = time.monotonic() + asked.seconds
    base, about, rows = Case(asked.model, AT, asked.batch, asked.local_steps, momentum=0.0), machine(), []
    print("| clients | H | ms per client-step | p20 to p80 | ran as |\n|--:|--:|--:|--:|---|", flush=True)
    for case in sizes(base, asked.clients, asked.steps):
        place = f"| {case.clients} | {case.local_steps} |"
        if case.clients * SIZES[case.model][0] * 4 * COPIES > available(torch.device(_kind())):
            print(f"{place} skipped: does not fit | | |", flush=True)
            continue
        if time.monotonic() > end:
            print(f"{place} skipped: no time was left | | |", flush=True)
            continue
        began = time.monotonic()
        one = measure(case, [f"fastlocal {asked.executor}"], None, asked.turns)[0]
        if not one.seconds:
            print(f"{place} {one.fault} | | |", flush=True)
            continue
        cost, low, high = (1e3 * value / case.clients / case.local_steps for value in spread(one.seconds))
        print(f"{place} {cost:.4f} | {low:.4f} to {high:.4f} | {one.backend} |", flush=True)
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
            "took_s": f"{time.monotonic() - began:.0f}",
        }
        rows.append(row | about)
        merge(asked.out / "scaling.csv", rows, ("model", "clients", "batch", "local_steps", "precision", "executor"))
    costs = {
        int(row["clients"]): float(row["ms_per_client_step"])
        for row in rows
        if row["local_steps"] == str(asked.local_steps)
    }
    if AT in costs and 2048 in costs:
        print(f"2048 clients cost {costs[2048] / costs[AT]:.2f} times what {AT} cost, each (aim: at most 1.15)")
    return 0


def _kind() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
