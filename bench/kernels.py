"""Time every op's large cases on a GPU: Triton, plain torch, and for the client ops torch.compile and torch._foreach.

    python -m bench.kernels --out DIR [--ops OP ...] [--seconds N]

First the gate: a kernel passes the checks of tests/kernels on the device, or is not timed. Then the variants of each
case run on equal inputs; a row holds the median, the bytes that the case has to move, and the fraction of the bandwidth
that a large copy reaches in the same process.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import NO_GPU, Timing, copy_bandwidth, describe, time_runs
from fastlocal import kernels
from fastlocal.kernels.case import Case, Inputs, cases
from fastlocal.kernels.conv2d_clients import loop
from tests.kernels.checker import check

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

Row = dict[str, str]
Run = Callable[[], object]


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


def gate(op: str) -> list[Row]:
    """The checks of a kernel's small cases on the device: op, case and what is wrong, or nothing."""
    rows = []
    for case in cases(op):
        if not case.large:
            fault = ""
            try:
                check(case, kernels.get(op, "triton", "cuda"), kernels.get(op, "reference", "cuda"), "cuda")
            except Exception as error:  # a launch that fails is a fault as well
                fault = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append({"op": op, "case": case.name, "fault": fault})
    return rows


def variants(op: str, case: Case) -> Iterator[tuple[str, Run]]:
    """Ways to run a case, each on inputs of its own."""
    reference = kernels.get(op, "reference", "cuda")
    yield "triton", runner(case, kernels.get(op, "triton", "cuda"))
    yield "torch", runner(case, reference)
    if op in COMPILED:
        torch.compiler.reset()
        yield "torch.compile", runner(case, torch.compile(reference, fullgraph=True, dynamic=False))
    if op.startswith("conv2d_clients"):
        yield "loop of torch", runner(case, partial(looped_convolution, op))
    if op == "client_sgd" and not case.make_inputs(torch.device("meta")).keys() & {"grad_scale", "active", "shadow"}:
        yield "torch._foreach", runner(case, foreach_sgd)


def runner(case: Case, op: Callable[..., Any]) -> Run:
    """One run of an op, with its backward pass where the case has gradients."""
    inputs: Inputs = case.make_inputs(torch.device("cuda"))
    leaves = [inputs[name].requires_grad_() for name in case.differentiated]

    def run() -> object:
        out = op(**inputs)
        if leaves:
            parts = out if isinstance(out, tuple | list) else (out,)
            known = [part for part in parts if part is not None and part.requires_grad]
            return torch.autograd.grad(known, leaves, [torch.ones_like(part) for part in known])
        return out

    return run


def looped_convolution(op: str, **inputs: Any) -> object:
    """A convolution of torch for each client; of the gradients, the one that the op computes. Without sums."""
    inputs.pop("sums", None)
    if op == "conv2d_clients":
        return loop.conv2d_clients(**inputs)
    return loop.conv2d_clients_backward(
        **inputs, need_x=op.endswith("input_grad"), need_weight=op.endswith("weight_grad")
    )


@torch.no_grad()
def foreach_sgd(
    params: Tensor,
    momentum: Tensor | None,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    *,
    mu: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """client_sgd as torch's foreach optimizers would do it, a tensor for each client."""
    rows, updates = list(params.unbind()), list(grads.unbind())
    if weight_decay:
        decayed = torch._foreach_mul(rows, [decay_mask] * len(rows))
        torch._foreach_add_(updates, decayed, alpha=weight_decay)
    if momentum is not None:
        velocities = list(momentum.unbind())
        torch._foreach_mul_(velocities, mu)
        torch._foreach_add_(velocities, updates)
        updates = list(torch._foreach_add(updates, velocities, alpha=mu)) if nesterov else velocities
    torch._foreach_add_(rows, torch._foreach_mul(updates, list((-learning_rate).to(params.dtype).unbind())))


def measure(op: str, copy: float, deadline: float) -> Iterator[Row]:
    """Rows of an op's large cases, until time.monotonic() reaches the deadline."""
    for case in cases(op):
        if not case.large:
            continue
        if time.monotonic() > deadline:
            yield row(op, case, "triton", None, copy, "not timed: no time was left")
            continue
        for variant, run in variants(op, case):
            try:
                yield row(op, case, variant, time_runs(run), copy)
            except Exception as error:  # torch.compile may not take an op; the others go on
                yield row(op, case, variant, None, copy, f"{type(error).__name__}: {error}".splitlines()[0])
            torch.cuda.empty_cache()


def write(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file of rows with the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["op"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gate.csv and kernels.csv")
    parser.add_argument("--ops", nargs="+", default=kernels.TRITON_OPS, choices=kernels.TRITON_OPS, metavar="OP")
    parser.add_argument("--seconds", type=float, default=400.0, help="after which no further case is timed")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + asked.seconds
    copy = copy_bandwidth()
    about = describe() | {"copy_gb_per_s": f"{copy / 1e9:.1f}"}
    checks: list[Row] = []
    rows: list[Row] = []
    for index, op in enumerate(asked.ops):
        checks += gate(op)
        write(asked.out / "gate.csv", checks)
        if any(line["fault"] for line in checks if line["op"] == op):
            print(f"{op} fails its checks and is not timed: see gate.csv")
            continue
        # what is left of the time is shared by the ops that are left
        share = (end - time.monotonic()) / (len(asked.ops) - index)
        for line in measure(op, copy, time.monotonic() + share):
            rows.append(line | about)
            write(asked.out / "kernels.csv", rows)
            print(
                f"{op:<26} {line['case']:<44} {line['variant']:<14} {line['median_ms']:>10} ms "
                f"{line['copy_fraction']:>6} of a copy  {line['note']}"
            )
    return 1 if any(line["fault"] for line in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
