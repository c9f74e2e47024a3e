"""Training throughput: client-steps and samples per second of every executor, beside loops over modules and plain vmap.

    python -m bench.throughput --cases targets --turns 30
    python -m bench.throughput --cases mlp:1x8x2 mlp:8x8x2 --variants "loop, sync per step" vmap "fastlocal auto"

A case is MODEL:CLIENTSxBATCH[xSTEPS], on shared samples, or MODEL:CLIENTSofPOPULATIONxBATCH[xSTEPS], in which CLIENTS
of POPULATION clients, who own the samples in equal shares, take part in each round. A variant is a baseline of
bench.loops, or fastlocal with an executor and further settings ("fastlocal threaded workers=1"); it may have another
precision than the case ("loop, sync per step, fp32").

Each variant runs in a process of its own with a thread for each core. First it trains a round from the same weights on
the same samples; one whose parameters differ from the reference's is not timed. Then the variants take turns. A row
holds the median round with its 20th and 80th percentiles, the median of its ratios to the reference's rounds (`ratio`;
`ratio_fp32` and `ratio_tf32` are relative to the reference in that precision), the seconds of the start, and the share
of the cores' time that the hypervisor gave to other guests.

Rows replace older ones of the same case in throughput.csv, after each turn. The exit status is 1 where a first round
differs or a variant of fastlocal fails.
"""

from __future__ import annotations

import argparse
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, read_rows, spread
from bench.interleaved import LATE, Measurement, measure_case, split_precision
from bench.loops import BASELINES, CPU_ONLY, OWN_PREFIX, REFERENCE
from bench.training_case import PRECISIONS, TrainingCase, parse_cases
from fastlocal.config.schema import Executor

CASE_KEYS = ("model", "clients", "population", "batch", "local_steps", "precision")
KEYS = (*CASE_KEYS, "variant")
UNTIMED = "no round was timed"


def default_variants(cases: Sequence[TrainingCase]) -> list[str]:
    """Return all variants of this machine, the reference first; beside bf16 cases also the reference in 32 bits."""
    gpu = torch.cuda.is_available()
    baselines = [name for name in BASELINES if not (gpu and name in CPU_ONLY)]
    if any(case.precision == "bf16" for case in cases):
        baselines.insert(1, f"{REFERENCE}, {'tf32' if gpu else 'fp32'}")
    return baselines + [f"{OWN_PREFIX}{executor}" for executor in typing.get_args(Executor)]


def make_rows(case: TrainingCase, measurements: Sequence[Measurement], columns: Row) -> list[Row]:
    """Return the table rows of a case; `columns` holds those of the machine."""
    seconds = {one.variant: one.seconds for one in measurements}
    references = {"ratio": seconds.get(REFERENCE, [])}
    for precision in ("fp32", "tf32"):
        name = REFERENCE if case.precision == precision else f"{REFERENCE}, {precision}"
        references[f"ratio_{precision}"] = seconds.get(name, [])
    client_steps = case.clients * case.local_steps
    rows = []
    for one in measurements:
        row = {name: str(getattr(case, name) or "") for name in CASE_KEYS}
        row |= {"variant": one.variant, "backend": one.backend, "rounds": str(len(one.seconds))}
        row["start_s"] = "" if one.start_seconds is None else f"{one.start_seconds:.1f}"
        row |= dict.fromkeys(("median_s", "p20_s", "p80_s", "client_steps_per_s", "samples_per_s", *references), "")
        if one.seconds:
            median, low, high = spread(one.seconds)
            row |= {"median_s": f"{median:.5f}", "p20_s": f"{low:.5f}", "p80_s": f"{high:.5f}"}
            row["client_steps_per_s"] = f"{client_steps / median:.1f}"
            row["samples_per_s"] = f"{client_steps * case.batch / median:.0f}"
            row |= {
                name: f"{median_ratio(reference, one.seconds):.2f}"
                for name, reference in references.items()
                if reference
            }
        rows.append(row | {"note": one.fault or ("" if one.seconds else UNTIMED)} | columns)
    return rows


def record(path: Path, rows: Sequence[Row]) -> None:
    """Merge rows into the table; one without times because time ran out replaces no row that says more."""

    def ran_out(row: Row) -> bool:
        return not row["median_s"] and row["note"] in (LATE, UNTIMED)

    complete = {tuple(row.get(key, "") for key in KEYS) for row in read_rows(path) if not ran_out(row)}
    new = [row for row in rows if not ran_out(row) or tuple(row[key] for key in KEYS) not in complete]
    if new:
        merge_rows(path, new, KEYS)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows of a case as a table, with the ratios to the reference in another precision if it took part."""
    others = [name for name in ("fp32", "tf32") if any(row[f"ratio_{name}"] for row in rows)]
    others = [name for name in others if name != rows[0]["precision"]]
    heads = ["variant", "ran as", "started in s", "ms per client-step", "samples/s", "ratio"]
    heads += [f"to {name}" for name in others]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 2)}"]
    for row in rows:
        if row["median_s"]:
            cost_ms = float(row["median_s"]) * 1e3 / int(row["clients"]) / int(row["local_steps"])
            ratios = [row["ratio"], *(row[f"ratio_{name}"] for name in others)]
            numbers = " | ".join([f"{cost_ms:.3f}", f"{int(row['samples_per_s']):,}", *ratios])
        else:
            numbers = f"{row['note']} |{' |' * (len(heads) - 5)}"
        backend = row["backend"] if row["backend"] != split_precision(row["variant"])[0] else ""
        lines.append(f"| {row['variant']} | {backend[:60]} | {row['start_s']} | {numbers} |")
    return "\n".join(lines)


def is_failure(one: Measurement) -> bool:
    """Return True if a first round differs from the reference's, or a variant of fastlocal failed."""
    own = one.variant.startswith(OWN_PREFIX) and one.fault not in ("", LATE)
    return own or "away from the reference" in one.fault


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__.splitlines()[0])
    flags.add_argument(
        "--cases", nargs="+", default=["targets"], help="targets, or MODEL:CLIENTS[ofPOPULATION]xBATCH[xSTEPS]"
    )
    flags.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the cases; targets have their own")
    flags.add_argument("--variants", nargs="+", help="all of this machine by default")
    flags.add_argument("--tune-seconds", type=float, default=5.0, help="for `fastlocal auto` to choose, for each case")
    flags.add_argument("--turns", type=float, default=30.0, help="seconds for the turns of a case, without the start")
    flags.add_argument("--case-seconds", type=float, default=float("inf"), help="for a case, with the start")
    flags.add_argument("--out", type=Path, default=device_folder(), help="folder for throughput.csv")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        cases = parse_cases(options.cases, options.precision)
    except ValueError as error:
        parser().error(f"--cases {error}")
    variants = options.variants or default_variants(cases)
    machine, failed = machine_columns(), False
    for case in cases:
        steal, start_time = StealMeter(), time.monotonic()

        def report(measurements: Sequence[Measurement], case: TrainingCase = case, steal: StealMeter = steal) -> None:
            columns = machine | {"steal_percent": steal.percent()}
            record(options.out / "throughput.csv", make_rows(case, measurements, columns))

        measurements = measure_case(
            case,
            variants,
            REFERENCE if REFERENCE in variants else None,
            options.turns,
            case_seconds=options.case_seconds,
            settings={"tune_seconds": options.tune_seconds},
            report=report,
        )
        failed = failed or any(is_failure(one) for one in measurements)
        print(f"{case.name}: {time.monotonic() - start_time:.0f} s\n")
        print(f"{markdown(make_rows(case, measurements, machine))}\n")
        for one in measurements:
            if one.output:
                print(f"{one.variant}: {one.fault}; its last lines:\n{one.output}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
