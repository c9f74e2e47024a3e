"""One page about a run of bench.gpu_suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.tables import Row
from bench.targets import LEAST_BYTES, TARGETS, judge


def summary(
    states: Sequence[Row], *, gate: Sequence[Row], tests: Sequence[Row], kernels: Sequence[Row], dram: Sequence[Row]
) -> str:
    """The machine, the targets, what did not run, the checks, and for each case Triton beside the best of the others.

    states, gate, tests, kernels, dram: rows of suite.csv and of the files with these names
    """
    lines = ["# Kernels on a GPU", "", *_machine(kernels), *_targets(kernels)]
    missing = [line for line in states if line["state"] != "done"]
    lines += ["", f"Parts: {len(states) - len(missing)} of {len(states)} ran to their end.", ""]
    lines += [f"- {line['part']}: {line['state']}, {line['why']}" for line in missing]
    lines += _untimed(kernels)
    faults = [line for line in gate if line["fault"]]
    lines += ["", f"Gate: {len(gate) - len(faults)} of {len(gate)} checks passed.", ""]
    lines += [f"- {line['op']} ({line['case']}): {line['fault']}" for line in faults]
    if tests:
        passed, failed, skipped = (sum(int(line[name]) for line in tests) for name in ("passed", "failed", "skipped"))
        lines += ["", f"Kernel tests: {passed} passed, {failed} failed, {skipped} skipped.", ""]
        lines += [f"- {line['file']}: {line['first']}" for line in tests if line["first"]]
    lines += ["", "| op | case | ms | of a copy | best other | times as fast |", "|---|---|--:|--:|---|--:|"]
    lines += [_compared(line, kernels) for line in kernels if line["variant"] == "triton"]
    lines += _determinism(kernels)
    if dram:
        lines += ["", "| op | case | bytes counted | bytes in DRAM (ncu) |", "|---|---|--:|--:|"]
        lines += [
            f"| {one['op']} | {one['case']} | {one['bytes_moved']} | {one['dram_bytes'] or one['note']} |"
            for one in dram
        ]
    else:
        lines += ["", "No bytes in DRAM were counted: there is no ncu, or no time was left."]
    return "\n".join(lines) + "\n"


def _untimed(rows: Sequence[Row]) -> list[str]:
    """How many rows of each op were not timed, by reason."""
    reasons = Counter((line["op"], line["note"]) for line in rows if line["note"])
    return [f"- {op}: {count} rows are empty: {note}" for (op, note), count in reasons.items()]


def _machine(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Nothing was timed.", ""]
    about = rows[0]
    return [
        f"{about['gpu']} (capability {about['capability']}, {about['multiprocessors']} multiprocessors, "
        f"L2 {int(about['l2_bytes']) // 2**20} MiB, up to {about['sm_mhz'] or '?'} MHz, "
        f"memory {about['memory_mhz'] or '?'} MHz, power limit {about['power_limit_w'] or '?'} W), "
        f"torch {about['torch']}, triton {about['triton']}, commit {about['commit'] or '?'}.",
        f"A copy of 1 GiB moves {about['copy_gb_per_s']} GB/s; fractions are of that, and judged where a case moves "
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
