"""Kernels: every op's large cases on a GPU, by Triton and by torch in several ways.

    python -m bench.kernels --out DIR [--ops OP ...] [--seconds N] [--deterministic] [--only gate | times]

First the gate: a kernel that fails the checks of kernels/checking.py on the device is not timed. Then the variants of
each case run on equal inputs. A row holds the median, the bytes that the case has to move, and the fraction of the
bandwidth that a large copy reaches in the same process. Cases for which no time is left get a row that says so; the
first cases of an op matter most.
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
from torch import Tensor

from bench import kernel_baselines as baselines
from bench.common import Row, write_rows
from bench.device import NO_GPU, Timing, copy_bandwidth, describe, time_runs
from fastlocal import kernels
from fastlocal.kernels.case import Case, Inputs, cases
from fastlocal.kernels.checking import check

COLUMNS = (
    *("op", "case", "variant", "median_ms", "p20_ms", "p80_ms"),
    *("bytes_moved", "gb_per_s", "copy_fraction", "tflop_per_s", "graph", "note"),
)
COMPILED_OPS = ("client_sgd", "client_adamw", "client_mean", "client_sgd_mean")
"""Ops whose reference is also timed under torch.compile, which takes seconds for each case."""
CONVOLUTION_RESULTS = {"conv2d_clients": "y", "conv2d_clients_input_grad": "x", "conv2d_clients_weight_grad": "weight"}
"""Result of each convolution op, see `kernel_baselines.grouped_convolution`."""
FOREACH: dict[str, Callable[..., baselines.Run]] = {
    "client_sgd": baselines.foreach_sgd,
    "client_adamw": baselines.foreach_adamw,
    "client_mean": baselines.foreach_mean,
    "client_sgd_mean": baselines.foreach_sgd_mean,
}
FOREACH_UNSUPPORTED = {"grad_scale", "active", "shadow", "prox", "drift"}
"""Arguments of these ops that the foreach baselines do not take."""
NO_TIME = "not timed: no time was left"

Variants = dict[str, Callable[[], baselines.Run]]
"""Functions that prepare a case on inputs of their own, by the name of the variant."""


def takes_foreach(inputs: Inputs) -> bool:
    """Return True if the foreach baselines take these arguments: none unknown, and factors that are numbers."""
    factors = (inputs.get("mu"), inputs.get("weight_decay"))
    return not inputs.keys() & FOREACH_UNSUPPORTED and not any(isinstance(factor, Tensor) for factor in factors)


def make_row(op: str, case: Case, variant: str, timing: Timing | None, copy: float, note: str = "") -> Row:
    """Return a table row.

    Args:
        op: Name of the op.
        case: The case.
        variant: Name of the variant.
        timing: The timing; None where there is none.
        copy: Bandwidth of a copy in bytes per second.
        note: Why there is no timing.
    """
    values: dict[str, object] = dict.fromkeys(COLUMNS, "")
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
    """Check the small cases of a kernel on the device; yield op, case and fault, which is empty if the check passes."""
    for case in cases(op):
        if not case.large:
            fault = ""
            try:
                check(case, kernels.get(op, "triton", "cuda"), kernels.get(op, "reference", "cuda"), "cuda")
            except Exception as error:  # a failing launch is a fault, too
                traceback.print_exc()
                fault = first_line(error)
            yield {"op": op, "case": case.name, "fault": fault}


def variants(op: str, case: Case, device: str = "cuda") -> Variants:
    """Return the variants of a case that are quick to prepare."""

    def inputs() -> Inputs:
        return case.make_inputs(torch.device(device))

    functions: Variants = {"triton": lambda: make_run(case, kernels.get(op, "triton", device), device)}
    if op in CONVOLUTION_RESULTS:
        result = CONVOLUTION_RESULTS[op]
        functions["grouped"] = lambda: baselines.grouped_convolution(result, **inputs())
        functions["loop"] = lambda: baselines.looped_convolution(result, **inputs())
    else:
        functions["torch"] = lambda: make_run(case, kernels.get(op, "reference", device), device)
    if op in FOREACH and takes_foreach(case.make_inputs(torch.device("meta"))):
        functions["torch._foreach"] = lambda: FOREACH[op](**inputs())
    return functions


def compile_reference(op: str, case: Case, device: str = "cuda") -> baselines.Run:
    """Return the reference under torch.compile."""
    torch.compiler.reset()
    return make_run(case, torch.compile(kernels.get(op, "reference", device), fullgraph=True, dynamic=False), device)


def make_run(case: Case, op: Callable[..., Any], device: str = "cuda") -> baselines.Run:
    """Return one run of an op, with its backward pass if the case has gradients."""
    inputs = case.make_inputs(torch.device(device))
    leaves = [inputs[name].requires_grad_() for name in case.differentiated]

    def run() -> object:
        result = op(**inputs)
        if leaves:
            parts = result if isinstance(result, tuple | list) else (result,)
            outputs = [part for part in parts if part is not None and part.requires_grad]
            return torch.autograd.grad(outputs, leaves, [torch.ones_like(part) for part in outputs])
        return result

    return run


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Use torch's deterministic algorithms within the block."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def measure(op: str, copy: float, deadline: float, *, deterministic: bool = False) -> Iterator[Row]:
    """Yield the rows of an op's large cases; torch.compile comes after all other variants.

    Args:
        op: Name of the op.
        copy: Bandwidth of a copy in bytes per second.
        deadline: Value of time.monotonic() after which no case is timed.
        deterministic: Also time Triton under torch.use_deterministic_algorithms.
    """
    large = [case for case in cases(op) if case.large]
    for case in large:
        if time.monotonic() > deadline:
            yield make_row(op, case, "triton", None, copy, NO_TIME)
            continue
        functions = variants(op, case)
        for variant, prepare in functions.items():
            yield time_variant(op, case, variant, prepare, copy)
        if deterministic:
            with deterministic_algorithms():
                yield time_variant(op, case, "triton deterministic", functions["triton"], copy)
    for case in large if op in COMPILED_OPS else ():
        if time.monotonic() < deadline:
            yield time_variant(op, case, "torch.compile", lambda case=case: compile_reference(op, case), copy)  # type: ignore[misc]
        else:
            yield make_row(op, case, "torch.compile", None, copy, NO_TIME)


def time_variant(op: str, case: Case, variant: str, prepare: Callable[[], baselines.Run], copy: float) -> Row:
    """Return the row of one variant; where it fails, as torch.compile may, the note says so."""
    try:
        return make_row(op, case, variant, time_runs(prepare()), copy)
    except Exception as error:
        traceback.print_exc()
        return make_row(op, case, variant, None, copy, first_line(error))
    finally:
        with contextlib.suppress(RuntimeError):  # the error of the run may come again
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    """Return type and first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    flags.add_argument("--out", type=Path, required=True, help="folder for gate.csv and kernels.csv")
    flags.add_argument("--ops", nargs="+", default=kernels.TRITON_OPS, choices=kernels.TRITON_OPS, metavar="OP")
    flags.add_argument("--seconds", type=float, default=400.0, help="after which no further case is timed")
    flags.add_argument("--deterministic", action="store_true", help="time deterministic algorithms too")
    flags.add_argument("--only", choices=("gate", "times"), help="only the checks, or only the timings")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and time the ops; return 1 if a check failed, 2 without a GPU."""
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + options.seconds
    checks: list[Row] = []
    if options.only != "times":
        for op in options.ops:
            for row in gate(op):
                checks.append(row)
                write_rows(options.out / "gate.csv", checks)
    failed = {row["op"] for row in checks if row["fault"]}
    for op in sorted(failed):
        print(f"{op} fails its checks and is not timed: see gate.csv")
    if options.only != "gate":
        time_ops([op for op in options.ops if op not in failed], options.out, end, deterministic=options.deterministic)
    return 1 if failed else 0


def time_ops(ops: Sequence[str], out: Path, end: float, *, deterministic: bool) -> None:
    """Write kernels.csv until time.monotonic() reaches `end`; the ops that are left share the time that is left."""
    torch.backends.cudnn.benchmark = True  # the fastest convolutions of torch
    copy = copy_bandwidth()
    columns = describe() | {"copy_gb_per_s": f"{copy / 1e9:.1f}"}
    rows: list[Row] = []
    for index, op in enumerate(ops):
        share = (end - time.monotonic()) / (len(ops) - index)
        for row in measure(op, copy, time.monotonic() + share, deterministic=deterministic):
            rows.append(row | columns)
            write_rows(out / "kernels.csv", rows)
            print(
                f"{row['op']:<26} {row['case']:<44} {row['variant']:<20} {row['median_ms']:>10} ms "
                f"{row['copy_fraction']:>6} of a copy  {row['note']}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
