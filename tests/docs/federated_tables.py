"""Tables of docs/benchmarks.md about populations of clients, from files of bench/results."""

from __future__ import annotations

from collections.abc import Callable

from tests.docs.bench_tables import measured, read
from tests.docs.markdown_tables import table


def population() -> str:
    """Rounds, starts and memory over the population."""
    rows = [
        (
            f"{int(row['population']):,}",
            row["round_ms"],
            row["ratio_ms"],
            row["round_cpu_ms"],
            row["ratio_cpu_ms"],
            row["start_seconds"],
            row["start_cpu_seconds"],
            row["peak_mib"],
            row["arrays_mib"],
        )
        for row in read("population.csv")
    ]
    columns = (">clients", ">ms per round", ">ratio", ">of the processor", ">ratio", ">start, s", ">of the processor")
    return table((*columns, ">peak, MiB", ">arrays, MiB"), rows) + measured("population.csv")


def unequal() -> str:
    """Client-steps of clients of lognormal sizes and of one size."""
    rows = [
        (
            row["executor"],
            row["last_batch"],
            row["equal_step_cpu_ms"],
            row["lognormal_step_cpu_ms"],
            row["ratio_cpu"],
        )
        for row in read("unequal.csv")
    ]
    columns = ("executor", "last batch", ">ms of the processor, one size", ">lognormal", ">ratio")
    return table(columns, rows) + measured("unequal.csv")


def client_store() -> str:
    """Rounds with the clients' state on disk and in memory."""
    rows = []
    for row in read("client_store.csv"):
        both = (f"{1e3 * float(row[f'{store}_seconds']):.0f}" for store in ("memory", "disk"))
        saves = "after each round" if int(row["saves"]) else "none"
        rows.append((row["local_steps"], saves, *both, row["ratio_seconds"], row["ratio_cpu_seconds"]))
    times = (">ms per round, in memory", ">on disk", ">ratio", ">ratio of the processor's time")
    return table((">local steps", "saves", *times), rows) + measured("client_store.csv")


TABLES: dict[str, Callable[[], str]] = {
    "population": population,
    "unequal": unequal,
    "client-store": client_store,
}
