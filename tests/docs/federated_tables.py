"""Tables of docs/benchmarks.md about populations of clients and about peers, from files of bench/results."""

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


def peers() -> str:
    """Global models of fastlocal and of peers after some rounds."""
    rows, beside = [], ""
    for file, package, shown in (
        ("peers_flower.csv", "flwr", "Flower"),
        ("peers_fluke.csv", "fluke", "fluke"),
        ("peers_torchft.csv", "torchft", "torchft"),
    ):
        found = {(row["case"], row["precision"]): row for row in read(file)}
        rows += [
            (shown, name, row["max_abs_difference"], found[name, "fp32"]["max_abs_difference"], row["max_abs_change"])
            for (name, precision), row in found.items()
            if precision == "fp64"
        ]
        versions = next(iter(found.values()))
        beside += measured(file) + f"\nBeside {shown} {versions[package]} with torch {versions['peer_torch']}.\n"
    columns = ("peer", "case", ">difference in fp64", ">in fp32", ">change of the model")
    return table(columns, rows) + beside


TABLES: dict[str, Callable[[], str]] = {
    "peers": peers,
    "population": population,
    "unequal": unequal,
    "client-store": client_store,
}
