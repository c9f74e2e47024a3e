"""Client-steps and samples per second of every executor here, beside the loops that other code trains with.

    python -m bench.throughput --cases targets --turns 30           the cases that the project aims at
    python -m bench.throughput --cases mlp,cnn --clients 1,8,32     part of the grid; all of it by default
    python -m bench.throughput --cases "resnet20_gn:8x32" --variants "loop, sync per step" "fastlocal auto"
    python -m bench.throughput --case-seconds 40 --seconds 600 --go-on      what is missing of the grid, for ten minutes

Every variant runs in a process of its own with as many threads as there are cores, one case after the other; one of
fastlocal's may set more flags ("fastlocal threaded workers=1"), and each may train in another precision than the case's
("loop, sync per step, fp32" beside variants in bf16). First each trains a round from the same weights on the same
samples, and one whose parameters are not the reference's is not timed. Then they take turns; a row holds the median
round with its 20th and 80th percentiles, the median of its ratios to the reference's rounds (`ratio`; `ratio_fp32` and
`ratio_tf32` to those of the loop in that precision), the seconds that the variant took to start, and how much of the
cores' time the hypervisor gave to others meanwhile.
Rows go to bench/results/DEVICE/throughput.csv after each turn, where they replace older ones of the same case; one row
says why a case is left out on this machine. A table is printed, and bench.plot draws the figure. The exit status is 1
where a first round is not the reference's, or one of fastlocal's variants fails.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.case import RESULTS, Case, Steal, device_name, machine, same_sources
from bench.grid import BATCHES, CLIENTS, STEPS, cases_of, too_large, variants
from bench.loops import REFERENCE
from bench.tables import Row, merge, read
from bench.turns import measure, spread
from bench.variant import LATE, PRECISIONS, Variant, way_and_precision

CASE_KEYS = ("model", "clients", "batch", "local_steps", "precision")
KEYS = (*CASE_KEYS, "variant")
ALL = "all variants"
"""Of a row that says why a case is left out."""
UNTIMED = "no round was timed"


def rows_of(case: Case, found: Sequence[Variant], about: Row) -> list[Row]:
    """Lines of the table, in the order of the variants."""
    seconds = {one.name: one.seconds for one in found}
    bases = {"ratio": seconds.get(REFERENCE, [])}
    for precision in ("fp32", "tf32"):
        name = REFERENCE if case.precision == precision else f"{REFERENCE}, {precision}"
        bases[f"ratio_{precision}"] = seconds.get(name, [])
    client_steps = case.clients * case.local_steps
    rows = []
    for one in found:
        row = {name: str(getattr(case, name)) for name in CASE_KEYS}
        row |= {"variant": one.name, "backend": one.backend, "rounds": str(len(one.seconds))}
        row["start_s"] = "" if one.start is None else f"{one.start:.1f}"
        row |= dict.fromkeys(("median_s", "p20_s", "p80_s", "client_steps_per_s", "samples_per_s", *bases), "")
        if one.seconds:
            median, low, high = spread(one.seconds)
            row |= {"median_s": f"{median:.5f}", "p20_s": f"{low:.5f}", "p80_s": f"{high:.5f}"}
            row["client_steps_per_s"] = f"{client_steps / median:.1f}"
            row["samples_per_s"] = f"{client_steps * case.batch / median:.0f}"
            for name, base in bases.items():
                if base:
                    row[name] = f"{statistics.median(a / b for a, b in zip(base, one.seconds, strict=False)):.2f}"
        rows.append(row | {"note": one.fault or ("" if one.seconds else UNTIMED)} | about)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line per variant, with the ratios to a loop in another precision where it took part."""
    others = [name for name in ("fp32", "tf32") if any(row[f"ratio_{name}"] for row in rows)]
    others = [name for name in others if name != rows[0]["precision"]]
    heads = ["variant", "ran as", "started in s", "ms per client-step", "samples/s", "ratio"]
    heads += [f"to {name}" for name in others]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 2)}"]
    for row in rows:
        if row["median_s"]:
            cost = float(row["median_s"]) * 1e3 / int(row["clients"]) / int(row["local_steps"])
            ratios = [row["ratio"], *(row[f"ratio_{name}"] for name in others)]
            numbers = " | ".join([f"{cost:.3f}", f"{int(row['samples_per_s']):,}", *ratios])
        else:
            numbers = f"{row['note']} |{' |' * (len(heads) - 5)}"
        backend = row["backend"] if row["backend"] != way_and_precision(row["variant"])[0] else ""
        lines.append(f"| {row['variant']} | {backend[:60]} | {row['start_s']} | {numbers} |")
    return "\n".join(lines)


def is_open(row: Row) -> bool:
    """Return True if a row holds no measurement because time ran out."""
    return not row["median_s"] and row["note"] in (LATE, UNTIMED)


def missing(case: Case, wanted: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether something of a case has no row yet that was measured with the sources as they are."""
    own = [row for row in rows if all(row[name] == str(getattr(case, name)) for name in CASE_KEYS)]
    present = {row["variant"] for row in own if same_sources(row["commit"]) and not is_open(row)}
    return not all(name in present for name in wanted if way_and_precision(name)[1] != case.precision)


def record(path: Path, case: Case, found: Sequence[Variant], about: Row) -> None:
    """Write what is known of a case; a row that says only that there was no time replaces none that says more."""
    closed = {tuple(row[key] for key in KEYS) for row in read(path) if not is_open(row)}
    rows = [
        row for row in rows_of(case, found, about) if not is_open(row) or tuple(row[key] for key in KEYS) not in closed
    ]
    if rows:
        merge(path, rows, KEYS, without=rows_of(case, [Variant(ALL)], {}))


def skip(case: Case, reason: str, path: Path, about: Row) -> None:
    """Say why a case is left out, also in the file unless it holds what was measured once."""
    print(f"{case.name}: skipped, {reason}\n", flush=True)
    (row,) = rows_of(case, [Variant(ALL, fault=reason)], about | {"steal_percent": ""})
    if not any(all(old[key] == row[key] for key in CASE_KEYS) and old["median_s"] for old in read(path)):
        merge(path, [row], KEYS)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    made.add_argument(
        "--cases", default=",".join(STEPS), help="targets, models, or MODEL:CLIENTSxBATCH[xSTEPS], with commas"
    )
    made.add_argument("--clients", type=numbers, default=CLIENTS, help="of the grid")
    made.add_argument("--batches", type=numbers, default=BATCHES, help="of the grid")
    made.add_argument("--precision", default="fp32", choices=PRECISIONS)
    made.add_argument("--local-steps", type=int, help=f"per round, other than the grid's {STEPS}")
    made.add_argument("--tune-seconds", type=float, default=5.0, help="of `fastlocal auto`, for each case")
    made.add_argument("--variants", nargs="+", help="some of those that are printed; all by default")
    made.add_argument("--turns", type=float, default=30.0, help="seconds for the turns of one case, its start apart")
    made.add_argument("--case-seconds", type=float, default=float("inf"), help="of one case, with its start")
    made.add_argument("--seconds", type=float, default=float("inf"), help="after which no case is started")
    made.add_argument("--go-on", action="store_true", help="leave out cases whose rows are of the sources as they are")
    made.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for throughput.csv")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    try:
        cases = cases_of(asked.cases, asked.clients, asked.batches, asked.precision)
    except ValueError as error:
        parser().error(f"--cases {error}")
    if asked.local_steps:
        cases = [dataclasses.replace(case, local_steps=asked.local_steps) for case in cases]
    about, end, failed = machine(), time.monotonic() + asked.seconds, False
    wanted, path = asked.variants or variants(cases), asked.out / "throughput.csv"
    if asked.go_on:
        cases = [case for case in cases if missing(case, wanted, read(path))]
    reasons = {case: too_large(case, wanted, min(20 * asked.turns, asked.case_seconds)) for case in cases}
    left = [case for case in cases if not reasons[case]]
    for case, reason in reasons.items():
        if reason:
            skip(case, reason, path, about)
    steal, began = Steal(), time.monotonic()

    def report(case: Case, found: Sequence[Variant]) -> None:
        record(path, case, found, about | {"steal_percent": steal.percent()})

    measured = measure(
        left,
        wanted,
        REFERENCE if REFERENCE in wanted else None,
        asked.turns,
        case_seconds=asked.case_seconds,
        settings={"tune_seconds": asked.tune_seconds},
        report=report,
    )
    with contextlib.closing(measured) as found:
        for done, (case, times) in enumerate(found, 1):
            failed = failed or any(is_failure(one) for one in times)
            whole, timed = time.monotonic() - began, sum(sum(one.seconds) for one in times)
            print(f"{case.name}: {whole:.0f} s, {timed:.0f} s of counted rounds\n")
            print(f"{table(rows_of(case, times, about))}\n", flush=True)
            for one in times:
                if one.said:
                    print(f"{one.name}: {one.fault}; it said\n{one.said}\n", flush=True)
            steal, began = Steal(), time.monotonic()
            if time.monotonic() > end:
                for case in left[done:]:
                    print(f"{case.name}: skipped, no time was left\n", flush=True)
                break
    return 1 if failed else 0


def is_failure(one: Variant) -> bool:
    """Return True if a variant differs from the reference, or if a fastlocal variant could not be timed."""
    own = one.name.startswith("fastlocal ") and one.fault not in ("", LATE)
    return own or "away from the reference" in one.fault


if __name__ == "__main__":
    sys.exit(main())
