"""One page about a run of bench.gpu_suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.tables import Row
from bench.targets import LEAST_BYTES, TARGETS, judge


def summary(states: Sequence[Row], about: Row, tables: Mapping[str, Sequence[Row]]) -> str:
    """The machine, training beside the loop, the targets, what did not run and why, the checks, and every kernel.

    states: rows of suite.csv
    about: the machine, as bench.device.describe says it
    tables: rows of the other files, by their names; one that is missing has none
    """
    kernels, gate, tests = (tables.get(name, ()) for name in ("kernels", "gate", "tests"))
    lines = ["# Training and kernels on a GPU", "", *_machine(about), *_training(tables.get("throughput", ()))]
    missing = [line for line in states if line["state"] != "done"]
    lines += ["## What ran", "", f"Parts: {len(states) - len(missing)} of {len(states)} ran to their end.", ""]
    lines += [f"- {line['part']}: {line['state']}, {line['why']}" for line in missing]
    lines += _untimed(kernels)
    faults = [line for line in gate if line["fault"]]
    lines += ["", f"Gate: {len(gate) - len(faults)} of {len(gate)} checks passed.", ""]
    lines += [f"- {line['op']} ({line['case']}): {line['fault']}" for line in faults]
    if tests:
        passed, failed, skipped = (sum(int(line[name]) for line in tests) for name in ("passed", "failed", "skipped"))
        lines += ["", f"Kernel tests: {passed} passed, {failed} failed, {skipped} skipped.", ""]
        lines += [f"- {line['file']}: {line['first']}" for line in tests if line["first"]]
    lines += ["", "## Kernels", "", *_copy(kernels), *_targets(kernels)]
    lines += ["", "| op | case | ms | of a copy | best other | times as fast |", "|---|---|--:|--:|---|--:|"]
    lines += [_compared(line, kernels) for line in kernels if line["variant"] == "triton"]
    lines += _determinism(kernels) + _bytes(tables.get("dram", ()))
    for line in missing:
        if line.get("said"):
            lines += ["", f"## {line['part']}: {line['state']}", "", "```", line["said"], "```"]
    return "\n".join(lines) + "\n"


def _training(rows: Sequence[Row]) -> list[str]:
    """Ratios to the loop of the same turns, or why there are none."""
    lines = ["## Training", "", "| case | variant | times as fast | ms per round | samples/s | started in s | ran as |"]
    lines.append("|---|---|--:|--:|--:|--:|---|")
    for row in rows:
        case = f"{row['model']} {row['clients']} x {row['batch']}, H={row['local_steps']}, {row['precision']}"
        if row["median_s"]:
            numbers = f"{row['ratio']} | {float(row['median_s']) * 1e3:.2f} | {int(row['samples_per_s']):,}"
        else:
            numbers = f"{row['note']} | |"
        lines.append(f"| {case} | {row['variant']} | {numbers} | {row['start_s']} | {row['backend']} |")
    return [*lines, ""] if rows else ["Nothing was trained in turns with the loop.", ""]


def _bytes(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["", "No bytes in DRAM were counted: there is no ncu, or no time was left."]
    lines = ["", "| op | case | bytes counted | bytes in DRAM (ncu) |", "|---|---|--:|--:|"]
    return lines + [
        f"| {one['op']} | {one['case']} | {one['bytes_moved']} | {one['dram_bytes'] or one['note']} |" for one in rows
    ]


def _untimed(rows: Sequence[Row]) -> list[str]:
    """How many rows of each op were not timed, by reason."""
    reasons = Counter((line["op"], line["note"]) for line in rows if line["note"])
    return [f"- {op}: {count} rows are empty: {note}" for (op, note), count in reasons.items()]


def _machine(about: Row) -> list[str]:
    if not about:
        return []
    return [
        f"{about['gpu']} (capability {about['capability']}, {about['multiprocessors']} multiprocessors, "
        f"L2 {int(about['l2_bytes']) // 2**20} MiB, up to {about['sm_mhz'] or '?'} MHz, "
        f"memory {about['memory_mhz'] or '?'} MHz, power limit {about['power_limit_w'] or '?'} W), "
        f"torch {about['torch']}, triton {about['triton'] or 'none'}, commit {about['commit'] or '?'}.",
        "",
    ]


def _copy(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Nothing was timed.", ""]
    return [
        f"A copy of 1 GiB moves {rows[0]['copy_gb_per_s']} GB/s; fractions are of that, and judged where a case moves "
        f"at least {LEAST_BYTES // 2**20} MiB.",
        "",
    ]


def _targets(rows: Sequence[Row]) -> list[str]:
    lines = ["| op | target | met | furthest from it | reached / wanted |", "|---|---|---|---|--:|"]
    for target in TARGETS:
        verdict = judge(target, rows)
        if verdict.judged:
            met = f"{'yes' if verdict.met == verdict.judged else 'NO'}, {verdict.met} of {verdict.judged}"
            lines.append(f"| {target.op} | {target.said} | {met} | {verdict.worst} | {verdict.margin:.2f} |")
        else:
            lines.append(f"| {target.op} | {target.said} | not measured | | |")
    return lines


def _compared(line: Row, rows: Sequence[Row]) -> str:
    if not line["median_ms"]:
        return f"| {line['op']} | {line['case']} | {line['note']} | | | |"
    others = [
        one
        for one in rows
        if (one["op"], one["case"]) == (line["op"], line["case"])
        and not one["variant"].startswith("triton")
        and one["median_ms"]
    ]
    best = min(others, key=lambda one: float(one["median_ms"]), default=None)
    faster = f"{float(best['median_ms']) / float(line['median_ms']):.2f}" if best else ""
    return (
        f"| {line['op']} | {line['case']} | {float(line['median_ms']):.4f} | {line['copy_fraction']} "
        f"| {best['variant'] if best else ''} | {faster} |"
    )


def _determinism(rows: Sequence[Row]) -> list[str]:
    """What deterministic algorithms cost, where they were timed."""
    usual = {(line["op"], line["case"]): line["median_ms"] for line in rows if line["variant"] == "triton"}
    lines = []
    for line in rows:
        before = usual.get((line["op"], line["case"]))
        if line["variant"] == "triton deterministic" and line["median_ms"] and before:
            times = float(line["median_ms"]) / float(before)
            lines.append(f"| {line['op']} | {line['case']} | {float(line['median_ms']):.4f} | {times:.2f} |")
    header = ["", "| op | case | deterministic, ms | times as long |", "|---|---|--:|--:|"]
    return header + lines if lines else []
