"""Time every op's large cases on a GPU: Triton, and the same by torch in several ways.

    python -m bench.kernels --out DIR [--ops OP ...] [--seconds N] [--deterministic] [--only gate | times]

First the gate: a kernel passes the checks of kernels/checking.py on the device, or is not timed. Then the variants of
each case run on equal inputs; a row holds the median, the bytes that the case has to move, and the fraction of the
bandwidth that a large copy reaches in the same process. Where time runs out, rows say so: the first cases of an op
matter most.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import baselines
from bench.device import NO_GPU, Timing, copy_bandwidth, describe, time_runs
from bench.tables import Row, write
from fastlocal import kernels
from fastlocal.kernels.case import Case, Inputs, cases
from fastlocal.kernels.checking import check

MEASURED = (
    "op",
    "case",
    "variant",
    "median_ms",
    "p20_ms",
    "p80_ms",
    "bytes_moved",
    "gb_per_s",
    "copy_fraction",
    "tflop_per_s",
    "graph",
    "note",
)
COMPILED = ("client_sgd", "client_mean", "client_sgd_mean")
"""Ops whose reference torch.compile is given too, which takes seconds for each case."""

NEEDS = {"conv2d_clients": "y", "conv2d_clients_input_grad": "x", "conv2d_clients_weight_grad": "weight"}
FOREACH: dict[str, Callable[..., baselines.Run]] = {
    "client_sgd": baselines.foreach_sgd,
    "client_mean": baselines.foreach_mean,
    "client_sgd_mean": baselines.foreach_sgd_mean,
}
FOREACH_LACKS = {"grad_scale", "active", "shadow"}

Variants = dict[str, Callable[[], baselines.Run]]
"""Names of ways to run a case, and what prepares each on inputs of its own."""


def row(op: str, case: Case, variant: str, timing: Timing | None, copy: float, note: str = "") -> Row:
    """A line of the table. copy: measured bytes per second        note: why there is no timing"""
    values: dict[str, object] = dict.fromkeys(MEASURED, "")
    values |= {"op": op, "case": case.name, "variant": variant, "bytes_moved": case.bytes_moved, "note": note}
    if timing is not None:
        rate = case.bytes_moved / (timing.median_ms / 1e3)
        values |= {
            "median_ms": f"{timing.median_ms:.5f}",
            "p20_ms": f"{timing.p20_ms:.5f}",
            "p80_ms": f"{timing.p80_ms:.5f}",
            "gb_per_s": f"{rate / 1e9:.1f}",
            "copy_fraction": f"{rate / copy:.3f}",
            "tflop_per_s": f"{case.flops / (timing.median_ms / 1e3) / 1e12:.2f}",
            "graph": str(int(timing.graph)),
        }
    return {name: str(value) for name, value in values.items()}


def gate(op: str) -> Iterator[Row]:
    """The checks of a kernel's small cases on the device: op, case and what is wrong, or nothing."""
    for case in cases(op):
        if not case.large:
            fault = ""
            try:
                check(case, kernels.get(op, "triton", "cuda"), kernels.get(op, "reference", "cuda"), "cuda")
            except Exception as error:  # a launch that fails is a fault as well
                traceback.print_exc()
                fault = first_line(error)
            yield {"op": op, "case": case.name, "fault": fault}


def variants(op: str, case: Case, device: str = "cuda") -> Variants:
    """Ways to run a case that are quick to prepare."""
    ways: Variants = {"triton": lambda: runner(case, kernels.get(op, "triton", device), device)}
    if op in NEEDS:
        ways["grouped"] = lambda: baselines.grouped_convolution(NEEDS[op], **inputs_of(case, device))
        ways["loop"] = lambda: baselines.looped_convolution(NEEDS[op], **inputs_of(case, device))
    else:
        ways["torch"] = lambda: runner(case, kernels.get(op, "reference", device), device)
    if op in FOREACH and not case.make_inputs(torch.device("meta")).keys() & FOREACH_LACKS:
        ways["torch._foreach"] = lambda: FOREACH[op](**inputs_of(case, device))
    return ways


def compiled(op: str, case: Case, device: str = "cuda") -> baselines.Run:
    """The reference as torch.compile makes it."""
    torch.compiler.reset()
    return runner(case, torch.compile(kernels.get(op, "reference", device), fullgraph=True, dynamic=False), device)


def inputs_of(case: Case, device: str) -> Inputs:
    return case.make_inputs(torch.device(device))


def runner(case: Case, op: Callable[..., Any], device: str = "cuda") -> baselines.Run:
    """One run of an op, with its backward pass where the case has gradients."""
    inputs = inputs_of(case, device)
    leaves = [inputs[name].requires_grad_() for name in case.differentiated]

    def run() -> object:
        out = op(**inputs)
        if leaves:
            parts = out if isinstance(out, tuple | list) else (out,)
            known = [part for part in parts if part is not None and part.requires_grad]
            return torch.autograd.grad(known, leaves, [torch.ones_like(part) for part in known])
        return out

    return run


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """What torch calls so, within."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def measure(op: str, copy: float, deadline: float, *, deterministic: bool = False) -> Iterator[Row]:
    """Rows of an op's large cases, until time.monotonic() reaches the deadline; torch.compile comes after all others.

    deterministic: also time Triton under torch.use_deterministic_algorithms
    """
    large = [case for case in cases(op) if case.large]
    for case in large:
        ways = variants(op, case)
        if time.monotonic() > deadline:
            yield row(op, case, "triton", None, copy, "not timed: no time was left")
            continue
        for variant, prepare in ways.items():
            yield timed(op, case, variant, prepare, copy)
        if deterministic:
            with deterministic_algorithms():
                yield timed(op, case, "triton deterministic", ways["triton"], copy)
    for case in large if op in COMPILED else ():
        if time.monotonic() < deadline:
            yield timed(op, case, "torch.compile", lambda case=case: compiled(op, case), copy)  # type: ignore[misc]
        else:
            yield row(op, case, "torch.compile", None, copy, "not timed: no time was left")


def timed(op: str, case: Case, variant: str, prepare: Callable[[], baselines.Run], copy: float) -> Row:
    """A row of one variant; where it fails, as torch.compile may not take an op, the row says so."""
    try:
        return row(op, case, variant, time_runs(prepare()), copy)
    except Exception as error:
        traceback.print_exc()
        return row(op, case, variant, None, copy, first_line(error))
    finally:
        with contextlib.suppress(RuntimeError):  # again what the run itself ended with
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def say(line: Row) -> None:
    """A row on the console."""
    print(
        f"{line['op']:<26} {line['case']:<44} {line['variant']:<20} {line['median_ms']:>10} ms "
        f"{line['copy_fraction']:>6} of a copy  {line['note']}",
        flush=True,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder for gate.csv and kernels.csv")
    made.add_argument("--ops", nargs="+", default=kernels.TRITON_OPS, choices=kernels.TRITON_OPS, metavar="OP")
    made.add_argument("--seconds", type=float, default=400.0, help="after which no further case is timed")
    made.add_argument("--deterministic", action="store_true", help="time deterministic algorithms too")
    made.add_argument("--only", choices=("gate", "times"), help="the checks or the timings alone")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + asked.seconds
    checks: list[Row] = []
    if asked.only != "times":
        for op in asked.ops:
            for line in gate(op):
                checks.append(line)
                write(asked.out / "gate.csv", checks)
    failed = {line["op"] for line in checks if line["fault"]}
    for op in sorted(failed):
        print(f"{op} fails its checks and is not timed: see gate.csv")
    if asked.only != "gate":
        time_ops([op for op in asked.ops if op not in failed], asked.out, end, deterministic=asked.deterministic)
    return 1 if failed else 0


def time_ops(ops: Sequence[str], out: Path, end: float, *, deterministic: bool) -> None:
    """Fill kernels.csv until time.monotonic() reaches `end`; what is left of the time is shared by the ops left."""
    torch.backends.cudnn.benchmark = True  # the convolutions of torch as fast as they can be
    copy = copy_bandwidth()
    about = describe() | {"copy_gb_per_s": f"{copy / 1e9:.1f}"}
    rows: list[Row] = []
    for index, op in enumerate(ops):
        share = (end - time.monotonic()) / (len(ops) - index)
        for line in measure(op, copy, time.monotonic() + share, deterministic=deterministic):
            rows.append(line | about)
            write(out / "kernels.csv", rows)
            say(line)


if __name__ == "__main__":
    sys.exit(main())
