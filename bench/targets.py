"""Targets of the kernels on an H100, and the comparison of measured rows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.common import Row

MIN_BYTES = 2**26
"""Bytes below which the launch takes a large part of the time, so that a fraction of the bandwidth says little."""

CONVOLUTIONS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")
STAGE_1 = ("3->16 3x3 on 32x32", "16->16 3x3 on 32x32")


@dataclass(frozen=True)
class Target:
    """A target for each case of an op whose name contains one of `cases`.

    Attributes:
        op: Name of the op.
        text: The target in words.
        cases: Parts of the names of the cases.
        copy_fraction: Fraction of the measured copy bandwidth, on cases that move at least MIN_BYTES.
        faster_than: Variants that must take longer.
        milliseconds: Time at most.
    """

    op: str
    text: str
    cases: tuple[str, ...] = ("",)
    copy_fraction: float | None = None
    faster_than: tuple[str, ...] = ()
    milliseconds: float | None = None


TARGETS = (
    *(
        target
        for op in ("client_sgd", "client_adamw", "client_mean", "client_sgd_mean")
        for target in (
            Target(op, "at least 85 % of copy bandwidth", copy_fraction=0.85),
            Target(op, "faster than torch._foreach", faster_than=("torch._foreach",)),
            Target(op, "faster than torch.compile", faster_than=("torch.compile",)),
        )
    ),
    Target("gather_augment", "at least 60 % of copy bandwidth", copy_fraction=0.60),
    Target("gather_augment", "50,000 images of 32x32 in under 1 ms", ("all of CIFAR-10",), milliseconds=1.0),
    Target("norm_act", "at least 75 % of copy bandwidth", copy_fraction=0.75),
    Target("norm_act_backward", "at least 75 % of copy bandwidth", copy_fraction=0.75),
    *(
        target
        for op in CONVOLUTIONS
        for target in (
            Target(op, "faster than cuDNN's grouped convolution", faster_than=("grouped",)),
            Target(op, "faster than a loop of cuDNN convolutions", faster_than=("loop",)),
            Target(op, "at least 50 % of the memory floor in stage 1", STAGE_1, copy_fraction=0.50),
        )
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a target.

    Attributes:
        target: The target.
        cases: Number of cases that were compared.
        passes: Number of cases that meet the target.
        worst: Name of the case that is furthest from it.
        margin: Its value over the target's, above 1 where the target is met.
    """

    target: Target
    cases: int
    passes: int
    worst: str = ""
    margin: float = 0.0


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Compare the rows of kernels.csv with a target; rows without times do not count."""
    margins = [
        (margin, row["case"])
        for row in rows
        if row["op"] == target.op and row["variant"] == "triton" and row["median_ms"]
        if any(part in row["case"] for part in target.cases)
        for margin in _margins(target, row, rows)
    ]
    if not margins:
        return Verdict(target, 0, 0)
    smallest, worst = min(margins)
    return Verdict(target, len(margins), sum(margin >= 1 for margin, _ in margins), worst, smallest)


def _margins(target: Target, row: Row, rows: Sequence[Row]) -> list[float]:
    median_ms = float(row["median_ms"])
    if target.copy_fraction is not None:
        large = int(row["bytes_moved"]) >= MIN_BYTES
        return [float(row["copy_fraction"]) / target.copy_fraction] if large else []
    if target.milliseconds is not None:
        return [target.milliseconds / median_ms]
    return [
        float(other["median_ms"]) / median_ms
        for other in rows
        if (other["op"], other["case"]) == (row["op"], row["case"])
        if other["variant"] in target.faster_than and other["median_ms"]
    ]
