"""The page about a run of bench.gpu_suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.common import Row
from bench.targets import MIN_BYTES, TARGETS, judge


def summary(states: Sequence[Row], machine: Row, tables: Mapping[str, Sequence[Row]]) -> str:
    """Return the page: machine, training, parts that did not end well, checks, targets, and every kernel.

    Args:
        states: Rows of suite.csv.
        machine: Columns of bench.device.describe.
        tables: Rows of the other tables, by name; one may be missing.
    """
    kernels, gate, tests = (tables.get(name, ()) for name in ("kernels", "gate", "tests"))
    lines = ["# Training and kernels on a GPU", "", *_machine(machine), *_training(tables.get("throughput", ()))]
    incomplete = [state for state in states if state["state"] != "done"]
    lines += ["## What ran", "", f"Parts: {len(states) - len(incomplete)} of {len(states)} ran to their end.", ""]
    lines += [f"- {state['part']}: {state['state']}, {state['why']}" for state in incomplete]
    lines += _rows_without_times(kernels)
    faults = [row for row in gate if row["fault"]]
    lines += ["", f"Gate: {len(gate) - len(faults)} of {len(gate)} checks passed.", ""]
    lines += [f"- {row['op']} ({row['case']}): {row['fault']}" for row in faults]
    if tests:
        passed, failed, skipped = (sum(int(row[name]) for row in tests) for name in ("passed", "failed", "skipped"))
        lines += ["", f"Kernel tests: {passed} passed, {failed} failed, {skipped} skipped.", ""]
        lines += [f"- {row['file']}: {row['first']}" for row in tests if row["first"]]
    lines += ["", "## Kernels", "", *_copy(kernels), *_targets(kernels)]
    lines += ["", "| op | case | ms | of a copy | best other | times as fast |", "|---|---|--:|--:|---|--:|"]
    lines += [_kernel_line(row, kernels) for row in kernels if row["variant"] == "triton"]
    lines += _determinism(kernels)
    for state in incomplete:
        if state["output"]:
            lines += ["", f"## {state['part']}: {state['state']}", "", "```", state["output"], "```"]
    return "\n".join(lines) + "\n"


def _training(rows: Sequence[Row]) -> list[str]:
    """Return the table of throughput.csv."""
    lines = ["## Training", "", "| case | variant | times as fast | ms per round | samples/s | started in s | ran as |"]
    lines.append("|---|---|--:|--:|--:|--:|---|")
    for row in rows:
        clients = f"{row['clients']} of {row['population']}" if row.get("population") else row["clients"]
        case = f"{row['model']} {clients} x {row['batch']}, H={row['local_steps']}, {row['precision']}"
        if row["median_s"]:
            numbers = f"{row['ratio']} | {float(row['median_s']) * 1e3:.2f} | {int(row['samples_per_s']):,}"
        else:
            numbers = f"{row['note']} | |"
        lines.append(f"| {case} | {row['variant']} | {numbers} | {row['start_s']} | {row['backend']} |")
    return [*lines, ""] if rows else ["Nothing was trained beside the loop.", ""]


def _rows_without_times(rows: Sequence[Row]) -> list[str]:
    """Return the number of rows without times, by op and reason."""
    reasons = Counter((row["op"], row["note"]) for row in rows if row["note"])
    return [f"- {op}: {count} rows are empty: {note}" for (op, note), count in reasons.items()]


def _machine(machine: Row) -> list[str]:
    if not machine:
        return []
    return [
        f"{machine['gpu']} (capability {machine['capability']}, {machine['multiprocessors']} multiprocessors, "
        f"L2 {int(machine['l2_bytes']) // 2**20} MiB, up to {machine['sm_mhz'] or '?'} MHz, "
        f"memory {machine['memory_mhz'] or '?'} MHz, power limit {machine['power_limit_w'] or '?'} W), "
        f"torch {machine['torch']}, triton {machine['triton'] or 'none'}, commit {machine['commit'] or '?'}.",
        "",
    ]


def _copy(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Nothing was timed.", ""]
    return [
        f"A copy of 1 GiB moves {rows[0]['copy_gb_per_s']} GB/s; the fractions below are of it, and judged for cases "
        f"that move at least {MIN_BYTES // 2**20} MiB.",
        "",
    ]


def _targets(rows: Sequence[Row]) -> list[str]:
    lines = ["| op | target | met | furthest from it | measured / target |", "|---|---|---|---|--:|"]
    for target in TARGETS:
        verdict = judge(target, rows)
        if verdict.cases:
            met = f"{'yes' if verdict.passes == verdict.cases else 'NO'}, {verdict.passes} of {verdict.cases}"
            lines.append(f"| {target.op} | {target.text} | {met} | {verdict.worst} | {verdict.margin:.2f} |")
        else:
            lines.append(f"| {target.op} | {target.text} | not measured | | |")
    return lines


def _kernel_line(row: Row, rows: Sequence[Row]) -> str:
    if not row["median_ms"]:
        return f"| {row['op']} | {row['case']} | {row['note']} | | | |"
    others = [
        one
        for one in rows
        if (one["op"], one["case"]) == (row["op"], row["case"])
        and not one["variant"].startswith("triton")
        and one["median_ms"]
    ]
    best = min(others, key=lambda one: float(one["median_ms"]), default=None)
    faster = f"{float(best['median_ms']) / float(row['median_ms']):.2f}" if best else ""
    return (
        f"| {row['op']} | {row['case']} | {float(row['median_ms']):.4f} | {row['copy_fraction']} "
        f"| {best['variant'] if best else ''} | {faster} |"
    )


def _determinism(rows: Sequence[Row]) -> list[str]:
    """Return the table of deterministic algorithms beside the usual ones, where they were timed."""
    usual = {(row["op"], row["case"]): row["median_ms"] for row in rows if row["variant"] == "triton"}
    lines = []
    for row in rows:
        before = usual.get((row["op"], row["case"]))
        if row["variant"] == "triton deterministic" and row["median_ms"] and before:
            times = float(row["median_ms"]) / float(before)
            lines.append(f"| {row['op']} | {row['case']} | {float(row['median_ms']):.4f} | {times:.2f} |")
    header = ["", "| op | case | deterministic, ms | times as long |", "|---|---|--:|--:|"]
    return header + lines if lines else []
