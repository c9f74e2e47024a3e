"""Client-steps and samples per second of every executor here, beside the loops that other code trains with.

    python -m bench.throughput --cases targets --turns 30           the cases that the project aims at
    python -m bench.throughput --cases mlp,cnn --clients 1,8,32     part of the grid; all of it by default
    python -m bench.throughput --cases "resnet20_gn:8x32" --variants "loop, sync per step" "fastlocal auto"

Every variant runs in a process of its own with as many threads as there are cores, one case after the other; one of
fastlocal's may set more flags ("fastlocal threaded workers=1"). First each trains a round from the same weights on the
same samples, and one whose parameters are not the reference's is not timed. Then they take turns; a row holds the
median round with its 20th and 80th percentiles, the median of its ratios to the reference's rounds, and how much of the
cores' time the hypervisor gave to others meanwhile.
Rows go to bench/results/DEVICE/throughput.csv, where they replace older ones of the same case; a table is printed, and
bench.plot draws the figure.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import statistics
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.case import RESULTS, Case, Steal, device_name, machine
from bench.loops import LOOPS, ON_CPU_ONLY, ON_GPU_ONLY, REFERENCE
from bench.turns import Variant, measure, spread
from fastlocal.config import Executor
from fastlocal.free_memory import available

Row = dict[str, str]

STEPS = {"mlp": 8, "cnn": 4, "resnet20_gn": 2, "resnet56": 2}
"""Local steps per round of the grid's models."""
CLIENTS, BATCHES = (1, 8, 32, 128, 512, 2048), (8, 32, 128)
CPU_TARGETS = (
    Case("mlp", 64, 16, 8),
    Case("cnn", 32, 16, 4),
    Case("resnet20_gn", 8, 32, 2),
    Case("resnet20_gn", 8, 32, 2, "bf16"),
)
GPU_TARGETS = (
    Case("resnet56", 32, 128, 2, "tf32"),
    Case("resnet56", 32, 128, 2, "bf16"),
    Case("resnet20_gn", 512, 8, 2, "tf32"),
    *(Case("resnet20_gn", clients, 32, 2, "tf32") for clients in (128, 2048)),
)
SIZES = {"mlp": (395_000, 2.4e6), "cnn": (26_000, 1e7), "resnet20_gn": (273_000, 2.5e8), "resnet56": (856_000, 7.6e8)}
"""Parameters, and operations of one sample's forward and backward pass, to foresee what fits."""
RATE = {"cpu": 8e10, "cuda": 2e12}
"""Operations per second of a usual variant, to foresee what takes too long."""
COPIES = 4
"""Rows of parameters that one variant holds per client: parameters, momenta, gradients, and one on the way."""


def grid(models: Sequence[str], clients: Sequence[int], batches: Sequence[int], precision: str) -> list[Case]:
    return [Case(model, n, batch, STEPS[model], precision) for model in models for n in clients for batch in batches]


def variants(case: Case) -> list[str]:
    """Every way to train it on this machine, the reference first."""
    gpu = torch.cuda.is_available()
    loops = [name for name in LOOPS if name not in (ON_CPU_ONLY if gpu else ON_GPU_ONLY)]
    executors = [f"fastlocal {name}" for name in typing.get_args(Executor)]
    return loops + executors


def too_large(case: Case, wanted: Sequence[str], seconds: float) -> str:
    """Why a case is left out on this machine, or nothing."""
    gpu = torch.cuda.is_available()
    n_params, flops = SIZES[case.model]
    needed = len(wanted) * (case.clients * n_params * 4 * COPIES + 7e8)
    there = available(torch.device("cuda" if gpu else "cpu"))
    if needed > there:
        return f"its {len(wanted)} variants need {needed / 2**30:.0f} GiB together, {there / 2**30:.0f} are free"
    samples = case.clients * case.batch * case.local_steps
    least = 5 * len(wanted) * samples * flops / RATE["cuda" if gpu else "cpu"]
    if least > 20 * seconds:
        return f"five rounds of all variants may take {least:.0f} s"
    return ""


def rows_of(case: Case, found: Sequence[Variant], about: Row) -> list[Row]:
    """Lines of the table, the reference's first."""
    base = next((one.seconds for one in found if one.name == REFERENCE), [])
    client_steps = case.clients * case.local_steps
    rows = []
    for one in found:
        row = {
            "model": case.model,
            "clients": str(case.clients),
            "batch": str(case.batch),
            "local_steps": str(case.local_steps),
            "precision": case.precision,
            "variant": one.name,
            "backend": one.backend,
            "rounds": str(len(one.seconds)),
        }
        row |= dict.fromkeys(("median_s", "p20_s", "p80_s", "client_steps_per_s", "samples_per_s", "ratio"), "")
        if one.seconds:
            median, low, high = spread(one.seconds)
            row |= {"median_s": f"{median:.5f}", "p20_s": f"{low:.5f}", "p80_s": f"{high:.5f}"}
            row["client_steps_per_s"] = f"{client_steps / median:.1f}"
            row["samples_per_s"] = f"{client_steps * case.batch / median:.0f}"
            if base:
                row["ratio"] = f"{statistics.median(a / b for a, b in zip(base, one.seconds, strict=False)):.2f}"
        rows.append(row | {"note": one.fault} | about)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line per variant."""
    lines = ["| variant | ran as | ms per client-step | samples/s | ratio |", "|---|---|--:|--:|--:|"]
    for row in rows:
        if row["median_s"]:
            cost = float(row["median_s"]) * 1e3 / int(row["clients"]) / int(row["local_steps"])
            numbers = f"{cost:.3f} | {int(row['samples_per_s']):,} | {row['ratio']}"
        else:
            numbers = f"{row['note'] or 'not timed'} | |"
        backend = row["backend"] if row["backend"] != row["variant"] else ""
        lines.append(f"| {row['variant']} | {backend[:60]} | {numbers} |")
    return "\n".join(lines)


def merge(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Write a CSV file in which these rows replace those with the same values of `keys`."""
    old: list[Row] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            old = list(csv.DictReader(file))
    new = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in old if tuple(row.get(key, "") for key in keys) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def cases_of(words: str, clients: Sequence[int], batches: Sequence[int], precision: str) -> list[Case]:
    """`targets`, models of the grid, or MODEL:CLIENTSxBATCH, with commas between.

    Raises ValueError for another word.
    """
    if words == "targets":
        return list(GPU_TARGETS if torch.cuda.is_available() else CPU_TARGETS)
    found: list[Case] = []
    for word in words.split(","):
        model, colon, sizes = word.partition(":")
        if model not in STEPS:
            raise ValueError(f"{word!r}: give targets, {', '.join(STEPS)}, or MODEL:CLIENTSxBATCH")
        if colon:
            number, _, batch = sizes.partition("x")
            found.append(Case(model, int(number), int(batch), STEPS[model], precision))
        else:
            found += grid([model], clients, batches, precision)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser.add_argument("--cases", default=",".join(STEPS), help="targets, models, or MODEL:CLIENTSxBATCH, with commas")
    parser.add_argument("--clients", type=numbers, default=CLIENTS, help="of the grid")
    parser.add_argument("--batches", type=numbers, default=BATCHES, help="of the grid")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--local-steps", type=int, help=f"per round, other than the grid's {STEPS}")
    parser.add_argument("--tune-seconds", type=float, default=5.0, help="of `fastlocal auto`, for each case")
    parser.add_argument("--variants", nargs="+", help="some of those that are printed; all by default")
    parser.add_argument("--turns", type=float, default=30.0, help="seconds for the turns of one case, its start apart")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no case is started")
    parser.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for throughput.csv")
    asked = parser.parse_args(arguments)
    try:
        cases = cases_of(asked.cases, asked.clients, asked.batches, asked.precision)
    except ValueError as error:
        parser.error(f"--cases {error}")
    if asked.local_steps:
        cases = [dataclasses.replace(case, local_steps=asked.local_steps) for case in cases]
    about, end, failed = machine(), time.monotonic() + asked.seconds, False
    wanted = asked.variants or variants(cases[0])
    reasons = {case: too_large(case, wanted, asked.turns) for case in cases}
    left = [case for case in cases if not reasons[case]]
    for case, reason in reasons.items():
        if reason:
            print(f"{case.name}: skipped, {reason}\n", flush=True)
    settings = {"tune_seconds": asked.tune_seconds}
    reference = REFERENCE if REFERENCE in wanted else None
    steal = Steal()
    with contextlib.closing(measure(left, wanted, reference, asked.turns, settings=settings)) as found:
        for done, (case, times) in enumerate(found, 1):
            failed = failed or any("away from the reference" in one.fault for one in times)
            rows = rows_of(case, times, about | {"steal_percent": steal.percent()})
            keys = ("model", "clients", "batch", "local_steps", "precision", "variant")
            merge(asked.out / "throughput.csv", rows, keys)
            print(f"{case.name}\n\n{table(rows)}\n", flush=True)
            steal = Steal()
            if time.monotonic() > end:
                for case in left[done:]:
                    print(f"{case.name}: skipped, no time was left\n", flush=True)
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
