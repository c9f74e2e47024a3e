"""Several ways to train cases, each in a process of its own, timed in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.case import Case
from bench.variant import LATE, SILENT, START_SECONDS, TURN_SECONDS, Variant, Worker

START_SHARE = 0.8
"""The share of a case's time in which its variants may start."""
WARM_UP = 1
"""Rounds that are not counted, beside the one of the gate: the first touch of buffers."""
TOLERANCE = {"fp64": 1e-6, "fp32": 2e-3, "tf32": 2e-2, "bf16": 0.3}
"""How far a round's change of the parameters may be from the reference's, relative to its norm."""


def measure(
    cases: Sequence[Case],
    variants: Sequence[str],
    reference: str | None,
    seconds: float,
    *,
    at_least: int = 3,
    most: int = 15,
    case_seconds: float = float("inf"),
    settings: Mapping[str, Any] | None = None,
    report: Callable[[Case, list[Variant]], None] = lambda case, found: None,
) -> Iterator[tuple[Case, list[Variant]]]:
    """Of each case, start the variants, check their first round against the reference's, and time them in turns.

    seconds: about how long the turns of a case may take together
    case_seconds: the same with what its variants take to start; START_SHARE of it is for starting, and those that come
        later have a fault
    settings: fields of fastlocal's RunConfig
    report: is told what is known of a case when its variants have started and after each turn
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Worker(name, cases, folder / str(place), settings or {}))
            for place, name in enumerate(variants)
        ]
        for number, case in enumerate(cases):
            began = time.monotonic()
            present = [worker for worker in workers if number in worker.cases]
            begin(number, present, began + START_SHARE * case_seconds)
            if reference is not None:
                _gate(case, number, present, reference)

            def tell(case: Case = case, present: Sequence[Worker] = present) -> None:
                report(case, [worker.variant for worker in present])

            tell()
            end = began + case_seconds
            take_turns(present, min(seconds, end - time.monotonic()), at_least, most, end=end, report=tell)
            yield case, [worker.variant for worker in present]


def begin(number: int, workers: Sequence[Worker], end: float) -> None:
    """Start a case, until time.monotonic() reaches `end`.

    All processes import at the same time; then loops begin together, and the others one by one, as they may time.
    """
    for worker in workers:
        if time.monotonic() < end:
            worker.prepare(number)
        else:
            worker.variant = Variant(worker.name, fault=LATE)
    present = [worker for worker in workers if not worker.variant.fault]
    for worker in present:
        _in_time(worker, worker.prepared, end)
    loops = [worker for worker in present if not worker.name.startswith("fastlocal ")]
    for together in (loops, *([worker] for worker in present if worker not in loops)):
        waiting = [worker for worker in together if not worker.variant.fault]
        for worker in waiting:
            worker.begin()
        for worker in waiting:
            _in_time(worker, worker.begun, end)


def _in_time(worker: Worker, wait: Callable[[float], None], end: float) -> None:
    left = end - time.monotonic()
    wait(min(left, START_SECONDS))
    if left < START_SECONDS and worker.variant.fault.startswith(SILENT):
        worker.variant.fault = LATE


def take_turns(
    workers: Sequence[Worker],
    seconds: float,
    at_least: int,
    most: int,
    *,
    end: float = float("inf"),
    report: Callable[[], None] = lambda: None,
) -> None:
    """Time rounds of those that have begun, one of each after the other.

    seconds: after which no turn begins, beyond the first that are `at_least` taken
    end: of time.monotonic(), after which none begins but the first
    report: called after each turn
    """
    enough = time.monotonic() + seconds
    for turn in range(WARM_UP + most):
        if turn >= WARM_UP + at_least and time.monotonic() > enough:
            break
        if turn > WARM_UP and time.monotonic() > end:
            break
        for worker in workers:
            if not worker.variant.fault:
                took = worker.turn(timeout=TURN_SECONDS)
                if took is not None and turn >= WARM_UP:
                    worker.variant.seconds.append(took)
        report()


def _gate(case: Case, number: int, workers: Sequence[Worker], reference: str) -> None:
    """Give a fault to every variant whose first round is not the reference's."""
    rows = {worker.name: worker.row(number) for worker in workers if not worker.variant.fault}
    if reference not in rows:
        return
    change = rows[reference] - _start_weights(case)
    for worker in workers:
        if worker.name in rows:
            off = float((rows[worker.name] - rows[reference]).norm() / change.norm())
            if not off <= TOLERANCE[case.precision]:
                worker.variant.fault = f"its first round is {off:.2g} away from the reference's"


def _start_weights(case: Case) -> torch.Tensor:
    """The start weights, drawn from the seed."""
    from fastlocal.models import build

    module = build(case.model, in_channels=3, classes=10, image_size=(32, 32))
    return torch.cat([value.detach().flatten() for value in module.parameters()]).double()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]
