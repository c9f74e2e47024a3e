"""Tables of docs/peers.md and README.md about peers, from files of bench/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

from bench.peers.systems import OWN, SYSTEMS
from bench.peers.workloads import WORKLOADS
from tests.docs.bench_tables import Row, measured, read
from tests.docs.markdown_tables import table

ROUNDS = "peers_rounds.csv"


def _rows() -> dict[tuple[str, str], Row]:
    """Return the rows of rounds, by workload and system."""
    return {(row["workload"], row["system"]): row for row in read(ROUNDS)}


def _ratio(row: Row | None) -> str:
    """Return the ratio as a table shows it; few pairs are said."""
    if row is None or not row["ratio"]:
        return ""
    return row["ratio"] if int(row["pairs"]) >= 5 else f"{row['ratio']} ({row['pairs']})"


def peer_rounds() -> str:
    """Times as fast as the loop, by workload and system."""
    rows = _rows()
    names = [system.name for system in SYSTEMS]
    lines = [(one.name, *(_ratio(rows.get((one.name, name))) for name in names)) for one in WORKLOADS]
    return table(("workload", *(f">{name}" for name in names)), lines) + measured(ROUNDS)


def peer_starts() -> str:
    """Start and first round of each system: medians over workloads."""
    lines = []
    for system in SYSTEMS:
        rows = [row for row in read(ROUNDS) if row["system"] == system.name and row["ratio"]]
        if not rows:
            continue
        versions = json.loads(rows[0]["versions"])
        shown = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python")
        starts, firsts = ([float(row[name]) for row in rows] for name in ("start_s", "first_s"))
        spans = (f"{statistics.median(starts):.1f}", f"{statistics.median(firsts):.1f}", f"{max(firsts):.1f}")
        lines.append((system.name, shown, *spans))
    return table(("system", "versions", ">start, s", ">first round, s", ">slowest first round, s"), lines)


def peer_best() -> str:
    """Ratios of fastlocal and of the fastest other system, for the README."""
    rows, lines = _rows(), []
    for one in WORKLOADS:
        own = rows.get((one.name, OWN))
        others = [row for (name, system), row in rows.items() if name == one.name and system != OWN and row["ratio"]]
        if own is None or not own["ratio"] or not others:
            continue
        best = max(others, key=lambda row: float(row["ratio"]))
        flower = rows.get((one.name, "Flower"))
        lines.append((one.source, own["ratio"], f"{best['ratio']} ({best['system']})", _ratio(flower)))
    return table(("round", ">fastlocal", ">fastest other", ">Flower"), lines)


def peer_models() -> str:
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


def peer_limits() -> str:
    """Time of the products alone, and fastlocal's."""
    lines = [(row["workload"], row["products_ms"], row["own_ms"], row["share"]) for row in read("peers_limits.csv")]
    columns = ("workload", ">products alone, ms per client-step", ">fastlocal, ms", ">share")
    return table(columns, lines) + measured("peers_limits.csv")


TABLES: dict[str, Callable[[], str]] = {
    "peer_best": peer_best,
    "peer_limits": peer_limits,
    "peer_models": peer_models,
    "peer_rounds": peer_rounds,
    "peer_starts": peer_starts,
}
"""Tables by the name that the page gives them."""
