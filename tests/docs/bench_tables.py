"""The tables of docs/benchmarks.md and README.md, each from a file of bench/results."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.docs.markdown_tables import table

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "cpu"
LOOP, VMAP, PROCESSES, AUTO = "loop, sync per step", "vmap", "loop, a process per core", "fastlocal auto"
STACKED, THREADED = "fastlocal stacked", "fastlocal threaded"
AIMED_AT = (
    ("mlp", "64", "16", "8", "fp32"),
    ("cnn", "32", "16", "4", "fp32"),
    ("resnet20_gn", "8", "32", "2", "fp32"),
    ("resnet20_gn", "8", "32", "2", "bf16"),
)
"""Model, clients, batch, local steps and precision of the cases that the project aims at."""
AIMS = {"mlp": 4.0, "cnn": 2.0, "resnet20_gn": 1.25}
"""Times as fast as the loop in fp32; of resnet20_gn in bf16, 2."""
AIM_BF16 = "2"

Row = Mapping[str, str]
Case = tuple[str, ...]


def read(name: str) -> list[Row]:
    """Return the rows of a file in bench/results/cpu."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measured(name: str, rows: Iterable[Row] | None = None) -> str:
    """Return a line that says from which file rows are, by default all, and on what they were measured."""
    found = read(name) if rows is None else list(rows)
    torch = sorted({row["torch"] for row in found})
    devices = sorted({row["device"] for row in found if row.get("device")})
    commits = sorted({row["commit"] for row in found})
    return f"\n`bench/results/cpu/{name}`: {', '.join([*devices, *(f'torch {one}' for one in torch)])}; " + (
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}.\n"
    )


def case_of(row: Row) -> Case:
    return tuple(row[name] for name in ("model", "clients", "batch", "local_steps", "precision"))


def by_case(rows: Iterable[Row]) -> dict[Case, dict[str, Row]]:
    """Return the rows that were timed, by case and variant."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row["median_s"] and not row.get("population"):
            found.setdefault(case_of(row), {})[row["variant"]] = row
    return found


def shown(case: Case) -> str:
    model, clients, batch, steps, precision = case
    return f"`{model}` {clients} x {batch}, H={steps}, {precision}"


def backend(row: Row) -> str:
    """Return the executor that `--executor auto` took."""
    return row["backend"].partition(",")[0]


def step_ms(row: Row) -> str:
    """Return the milliseconds of one client's local step."""
    return f"{1e3 * float(row['median_s']) / (int(row['clients']) * int(row['local_steps'])):#.3g}".rstrip(".")


def targets() -> str:
    """The cases that the project aims at: times as fast as the loop."""
    found, rows = by_case(read("throughput.csv")), []
    used = [row for case in AIMED_AT for row in found[case].values() if "workers" not in row["variant"]]
    for case in AIMED_AT:
        variants, others = found[case], (PROCESSES, VMAP, STACKED, THREADED)
        compared = [(LOOP, "ratio", "", f"{AIMS[case[0]]:g}")]
        if case[-1] == "bf16":
            in_fp32 = (f"{LOOP}, fp32", "ratio_fp32", ", loop in fp32", AIM_BF16)
            compared = [(LOOP, "ratio", ", loop in bf16", ""), in_fp32]
        for loop, ratio, beside, aim in compared:
            auto, ratios = variants[AUTO], [variants[name][ratio] for name in others]
            taken = f"**{auto[ratio]}** ({backend(auto)})"
            rows.append((shown(case) + beside, step_ms(variants[loop]), *ratios, taken, aim))
    columns = ("case", ">loop, ms per client-step", ">a process per core", ">vmap", ">`stacked`", ">`threaded`")
    return table((*columns, ">`auto`", ">aim"), rows) + measured("throughput.csv", used)


def grid(batches: tuple[str, ...]) -> str:
    """Other cases at these batches: times as fast as the loop of the same turns."""
    rows, used = [], list[Row]()
    for case, variants in by_case(read("throughput.csv")).items():
        if case[2] in batches and case not in AIMED_AT and LOOP in variants and AUTO in variants:
            auto, names = variants[AUTO], (PROCESSES, VMAP, STACKED, THREADED)
            ratios = [variants[name]["ratio"] if name in variants else "" for name in names]
            used += variants.values()
            rows.append((case, (shown(case), step_ms(variants[LOOP]), *ratios, f"{auto['ratio']} ({backend(auto)})")))
    order = {"mlp": 0, "cnn": 1, "resnet20_gn": 2, "resnet56": 3}
    rows.sort(key=lambda row: (order[row[0][0]], int(row[0][2]), int(row[0][1])))
    columns = ("case", ">loop, ms per client-step", ">a process per core", ">vmap", ">`stacked`", ">`threaded`")
    return table((*columns, ">`auto`"), (row for _, row in rows)) + measured("throughput.csv", used)


def workers() -> str:
    """Threads of --executor threaded."""
    rows, used = [], list[Row]()
    for case, variants in by_case(read("throughput.csv")).items():
        if (one := variants.get(f"{THREADED} workers=1")) is not None:
            two = variants[f"{THREADED} workers=2"]
            used += one, two
            seconds = [float(row["median_s"]) for row in (one, two)]
            steal = f"{two['steal_percent']} %"
            rows.append((shown(case), step_ms(one), step_ms(two), f"{seconds[0] / seconds[1]:.2f}", steal))
    columns = ("case", ">1 worker, ms per client-step", ">2 workers", ">times as fast")
    return table((*columns, ">time taken by other guests"), rows) + measured("throughput.csv", used)


def scaling() -> str:
    """The cost of a client-step over clients and over H."""
    rows = [
        (
            f"`{row['model']}`",
            row["clients"],
            row["local_steps"],
            row["backend"],
            f"{float(row['ms_per_client_step']):.2f}",
            f"{float(row['p20_ms']):.2f} to {float(row['p80_ms']):.2f}",
            f"{float(row['ratio_to_128']):.2f}" if row["ratio_to_128"] else "",
        )
        for row in sorted(read("scaling.csv"), key=lambda row: (row["model"] != "mlp", int(row["local_steps"])))
    ]
    columns = ("model", ">clients", ">H", "executor", ">ms per client-step", ">p20 to p80")
    return table((*columns, ">ratio to 128 clients"), rows) + measured("scaling.csv")


def memory() -> str:
    """Predicted and measured peaks of the resident set."""
    rows = []
    for row in read("memory.csv"):
        case = f"{shown(case_of(row))}, chunk {row['chunk']}"
        mib = (f"{float(row[name]):,.0f}" for name in ("predicted_mib", "measured_mib"))
        rows.append((case, row["executor"], *mib, row["ratio"]))
    return table(("case", "executor", ">predicted, MiB", ">measured, MiB", ">predicted / measured"), rows) + measured(
        "memory.csv"
    )


def loading() -> str:
    """Batches per second of each source."""
    rows = []
    for row in read("loading.csv"):
        spread = f"{row['p20']} to {row['p80']}"
        rows.append((row["set"], row["batch"], row["source"], row["batches_per_s"], spread))
    return table(("images", ">batch", "source", ">batches/s", ">p20 to p80"), rows) + measured("loading.csv")


def averaging() -> str:
    """Milliseconds that averaging takes in a round."""
    rows = [
        (f"`{row['model']}`", row["ranks"], row["variant"], row["median_ms"], f"{row['p20_ms']} to {row['p80_ms']}")
        for row in read("averaging.csv")
        if row["median_ms"]
    ]
    return table(("model", ">processes", "way", ">ms", ">p20 to p80"), rows) + measured("averaging.csv")


def averaging_share() -> str:
    """The share of a whole run that averaging takes."""
    rows = [
        (f"`{row['model']}`", row["ranks"], row["variant"], row["note"])
        for row in read("averaging.csv")
        if not row["median_ms"]
    ]
    return table(("model", ">processes", "run", "result"), rows) + measured("averaging.csv")


def precision() -> str:
    """Where runs in fp32 and bf16 end, over seeds."""
    rows = []
    for name in ("fp32", "bf16"):
        runs = [row for row in read("precision.csv") if row["precision"] == name]
        accuracies, losses = ([float(row[column]) for row in runs] for column in ("val_acc1", "val_loss"))
        least, most = min(accuracies), max(accuracies)
        mean = f"{statistics.mean(accuracies):.4f}"
        rows.append((name, len(runs), mean, f"{least:.4f} to {most:.4f}", f"{statistics.mean(losses):.4f}"))
    return table(("precision", ">seeds", ">test accuracy, mean", ">from, to", ">test loss, mean"), rows) + measured(
        "precision.csv"
    )


def deterministic() -> str:
    """What --deterministic 1 costs."""
    rows, mark = [], " deterministic=true"
    for case, variants in by_case(read("deterministic.csv")).items():
        for name, row in variants.items():
            if (other := variants.get(name + mark)) is not None:
                seconds = [float(one["median_s"]) for one in (row, other)]
                times = f"{seconds[1] / seconds[0]:.2f}"
                executor = name.removeprefix("fastlocal ")
                rows.append((shown(case), executor, *(f"{1e3 * value:.0f}" for value in seconds), times))
    return table(("case", "executor", ">ms per round", ">deterministic", ">times as long"), rows) + measured(
        "deterministic.csv"
    )


def kill() -> str:
    """Runs that were killed and continued."""
    rows, columns = [], ("runs", "kills", "while_writing", "failures")
    for store in ("memory", "disk"):
        for ranks in ("1", "2"):
            kind = [row for row in read("kill.csv") if row["case"].endswith("on disk") == (store == "disk")]
            found = [row for row in kind if row["ranks"] == ranks]
            rows.append((store, ranks, *(sum(int(row[name]) for row in found) for name in columns)))
    names = ("clients' state", ">processes", ">runs", ">kills", ">as a file was written", ">runs that ended otherwise")
    return table(names, rows) + measured("kill.csv")


def between_rounds() -> str:
    """Time of the host between two rounds, and the part of it that a GPU waits for."""
    rows = [
        (row["case"], row["host_ms"], row["after_ms"], f"{row['after_p20_ms']} to {row['after_p80_ms']}")
        for row in read("between_rounds.csv")
    ]
    return table(("round", ">host, ms", ">a GPU waits, ms", ">p20 to p80"), rows) + measured("between_rounds.csv")


TABLES: dict[str, Callable[[], str]] = {
    "between-rounds": between_rounds,
    "targets": targets,
    "grid-8": lambda: grid(("8",)),
    "grid-32-128": lambda: grid(("32", "128")),
    "workers": workers,
    "scaling": scaling,
    "memory": memory,
    "loading": loading,
    "averaging": averaging,
    "averaging-share": averaging_share,
    "precision": precision,
    "deterministic": deterministic,
    "kill": kill,
}
