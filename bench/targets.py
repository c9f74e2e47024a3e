"""What the kernels are meant to reach on an H100, and whether rows of a bench reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.tables import Row

LEAST_BYTES = 2**26
"""Below so many bytes a launch itself takes a large part of the time, and a fraction of bandwidth says little."""

CONVOLUTIONS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")
STAGE_1 = ("3->16 3x3 on 32x32", "16->16 3x3 on 32x32")


@dataclass(frozen=True)
class Target:
    """An aim for every case of an op whose name contains one of `cases`.

    copy_fraction: of the measured copy bandwidth, on cases that move at least LEAST_BYTES
    faster_than: variants that take longer
    milliseconds: at most
    """

    op: str
    said: str
    cases: tuple[str, ...] = ("",)
    copy_fraction: float | None = None
    faster_than: tuple[str, ...] = ()
    milliseconds: float | None = None


TARGETS = (
    *(
        target
        for op in ("client_sgd", "client_mean", "client_sgd_mean")
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
    """How many cases were judged and how many of them met the target; and the one that is furthest from it.

    worst: its name        margin: what was reached over what was wanted, above 1 where it is met
    """

    target: Target
    judged: int
    met: int
    worst: str = ""
    margin: float = 0.0


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Compare the rows of a bench with a target; those that were not timed do not count."""
    margins = [
        (margin, line["case"])
        for line in rows
        if line["op"] == target.op and line["variant"] == "triton" and line["median_ms"]
        if any(part in line["case"] for part in target.cases)
        for margin in _margins(target, line, rows)
    ]
    if not margins:
        return Verdict(target, 0, 0)
    margin, worst = min(margins)
    return Verdict(target, len(margins), sum(reached >= 1 for reached, _ in margins), worst, margin)


def _margins(target: Target, line: Row, rows: Sequence[Row]) -> list[float]:
    taken = float(line["median_ms"])
    if target.copy_fraction is not None:
        large = int(line["bytes_moved"]) >= LEAST_BYTES
        return [float(line["copy_fraction"]) / target.copy_fraction] if large else []
    if target.milliseconds is not None:
        return [target.milliseconds / taken]
    return [
        float(other["median_ms"]) / taken
        for other in rows
        if (other["op"], other["case"]) == (line["op"], line["case"])
        if other["variant"] in target.faster_than and other["median_ms"]
    ]
