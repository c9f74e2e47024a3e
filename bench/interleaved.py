"""Variants that train in processes of their own, timed in turns: one round of each after the other.

Whatever else the machine does meanwhile falls on all variants alike, so that ratios within a turn are comparable.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.common import cores
from bench.loops import OWN_PREFIX
from bench.processes import SILENT, AnsweringProcess, last_lines
from bench.training_case import PRECISIONS, TrainingCase
from fastlocal.models import build

START_SECONDS, ROUND_SECONDS = 150.0, 120.0
"""Timeouts of a start and of a round."""
START_SHARE = 0.8
"""Share of a case's time in which its variants may start."""
LATE = "no time was left to start it"
WARM_UP_TURNS = 1
"""Turns that do not count, besides the first round: they touch buffers for the first time."""
MAX_TURNS = 15
TOLERANCE = {"fp64": 1e-6, "fp32": 2e-3, "tf32": 2e-2, "bf16": 0.3}
"""Greatest difference of a first round's parameter change from the reference's, relative to the change's norm."""


@dataclass
class Measurement:
    """Measurement of one variant.

    Attributes:
        variant: Name of the variant.
        backend: What the process runs.
        fault: Why there are no times, or an empty string.
        seconds: Seconds of each counted round.
        output: Last lines that a process with a fault printed.
        start_seconds: Seconds of the start, with the first round and without waiting for other variants.
    """

    variant: str
    backend: str = ""
    fault: str = ""
    seconds: list[float] = field(default_factory=list)
    output: str = ""
    start_seconds: float | None = None


def split_precision(variant: str) -> tuple[str, str | None]:
    """Split "vmap, fp32" into name and precision; the precision is None where the variant takes that of the case."""
    name, _, last = variant.rpartition(", ")
    return (name, last) if last in PRECISIONS else (variant, None)


class Worker:
    """Context manager for a process that trains one case by one variant; its measurement is `measurement`.

    Args:
        variant: A baseline or a variant of fastlocal, with or without a precision.
        case: The case.
        folder: Folder for the files of the process.
        settings: Fields of fastlocal's RunConfig.
    """

    def __init__(self, variant: str, case: TrainingCase, folder: Path, settings: Mapping[str, Any]) -> None:
        self.measurement = Measurement(variant)
        self._name, precision = split_precision(variant)
        self._case = dataclasses.replace(case, precision=precision or case.precision)
        self._folder, self._settings = folder, settings
        self._process: AnsweringProcess | None = None
        self._start = 0.0

    @property
    def is_own(self) -> bool:
        """True for a variant of fastlocal."""
        return self._name.startswith(OWN_PREFIX)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()

    def launch(self) -> None:
        """Start the process, which imports everything."""
        self._start = time.monotonic()
        self._folder.mkdir()
        case = json.dumps(dataclasses.asdict(self._case))
        command = [sys.executable, "-m", "bench.worker", self._name, case, str(self._folder)]
        variables = {"OMP_NUM_THREADS": str(cores()), "MKL_NUM_THREADS": str(cores()), "TMPDIR": str(self._folder)}
        log = self._folder / "stderr"
        self._process = AnsweringProcess([*command, json.dumps(dict(self._settings))], log, variables)

    def wait_for_imports(self, deadline: float) -> None:
        """Wait until the process has imported everything."""
        self._answer_before(deadline)
        self.measurement.start_seconds = time.monotonic() - self._start

    def begin(self) -> None:
        """Let the process train its first round."""
        assert self._process is not None
        self._start = time.monotonic()
        self._process.send("begin")

    def wait_for_first_round(self, deadline: float) -> None:
        """Wait until the first round is trained."""
        self.measurement.backend = str(self._answer_before(deadline).get("backend", ""))
        self.measurement.start_seconds = (self.measurement.start_seconds or 0.0) + time.monotonic() - self._start

    def params(self) -> torch.Tensor:
        """Return the averaged parameters after the first round, [n_params] fp64."""
        params: torch.Tensor = torch.load(self._folder / "params.pt", weights_only=True)
        return params.double()

    def time_round(self) -> float | None:
        """Train one round; return its seconds, or None where it failed."""
        assert self._process is not None
        self._process.send("go")
        answer = self._answer(ROUND_SECONDS)
        return None if self.measurement.fault else float(answer["seconds"])

    def _answer_before(self, deadline: float) -> dict[str, Any]:
        left = deadline - time.monotonic()
        answer = self._answer(min(left, START_SECONDS))
        if left < START_SECONDS and self.measurement.fault.startswith(SILENT):
            self.measurement.fault = LATE
        return answer

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process is not None
        answer = self._process.answer(timeout)
        self.measurement.fault = str(answer.get("fault", ""))
        if self.measurement.fault:
            self.measurement.output = "\n".join(last_lines(self._process.log_lines()))
        return answer


def measure_case(
    case: TrainingCase,
    variants: Sequence[str],
    reference: str | None,
    turn_seconds: float,
    *,
    min_turns: int = 3,
    max_turns: int = MAX_TURNS,
    case_seconds: float = float("inf"),
    settings: Mapping[str, Any] | None = None,
    report: Callable[[list[Measurement]], None] = lambda measurements: None,
) -> list[Measurement]:
    """Start the variants of a case, compare their first rounds with the reference's, and time them in turns.

    Args:
        case: The case.
        variants: Variants; one whose name holds the precision of the case is left out, as the plain one is the same.
        reference: Variant whose first round is right; None compares none.
        turn_seconds: Approximate seconds of the turns.
        min_turns: Counted turns at least, unless `case_seconds` are over.
        max_turns: Counted turns at most.
        case_seconds: Approximate seconds for everything; START_SHARE of them is for the start, and variants that start
            later get a fault.
        settings: Fields of fastlocal's RunConfig.
        report: Called with the measurements after the start and after each turn.
    """
    start_time = time.monotonic()
    end = start_time + case_seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Worker(variant, case, folder / str(number), settings or {}))
            for number, variant in enumerate(variants)
            if split_precision(variant)[1] != case.precision
        ]
        measurements = [worker.measurement for worker in workers]
        start_workers(workers, start_time + START_SHARE * case_seconds)
        if reference is not None:
            _check_first_round(case, workers, reference)
        report(measurements)
        seconds = min(turn_seconds, end - time.monotonic())
        take_turns(workers, seconds, min_turns, max_turns, end=end, report=lambda: report(measurements))
        return measurements


def start_workers(workers: Sequence[Worker], deadline: float) -> None:
    """Start the workers before the deadline, a value of time.monotonic(); late ones get a fault.

    All import at the same time. Then baselines train their first round together, and variants of fastlocal one after
    the other, as they may time executors.
    """
    for worker in workers:
        if time.monotonic() < deadline:
            worker.launch()
        else:
            worker.measurement.fault = LATE
    present = [worker for worker in workers if not worker.measurement.fault]
    for worker in present:
        worker.wait_for_imports(deadline)
    baselines = [worker for worker in present if not worker.is_own]
    for group in (baselines, *([worker] for worker in present if worker.is_own)):
        healthy = [worker for worker in group if not worker.measurement.fault]
        for worker in healthy:
            worker.begin()
        for worker in healthy:
            worker.wait_for_first_round(deadline)


def take_turns(
    workers: Sequence[Worker],
    seconds: float,
    min_turns: int,
    max_turns: int = MAX_TURNS,
    *,
    end: float = float("inf"),
    report: Callable[[], None] = lambda: None,
) -> None:
    """Time rounds of the workers without a fault, one of each after the other.

    Args:
        workers: Workers that have started.
        seconds: Begin no further turn after this time and `min_turns`.
        min_turns: Counted turns at least.
        max_turns: Counted turns at most.
        end: Value of time.monotonic() after which only the first counted turn may begin.
        report: Called after each turn.
    """
    limit = time.monotonic() + seconds
    for turn in range(WARM_UP_TURNS + max_turns):
        if turn >= WARM_UP_TURNS + min_turns and time.monotonic() > limit:
            break
        if turn > WARM_UP_TURNS and time.monotonic() > end:
            break
        for worker in workers:
            if not worker.measurement.fault:
                round_seconds = worker.time_round()
                if round_seconds is not None and turn >= WARM_UP_TURNS:
                    worker.measurement.seconds.append(round_seconds)
        report()


def _check_first_round(case: TrainingCase, workers: Sequence[Worker], reference: str) -> None:
    """Give a fault to each variant whose first round differs from the reference's."""
    healthy = [worker for worker in workers if not worker.measurement.fault]
    params = {worker.measurement.variant: worker.params() for worker in healthy}
    if reference not in params:
        return
    module = build(case.model, in_channels=3, classes=10, image_size=(32, 32))  # draws the start weights from the seed
    start = torch.cat([value.detach().flatten() for value in module.parameters()]).double()
    change = (params[reference] - start).norm()
    for worker in healthy:
        difference = float((params[worker.measurement.variant] - params[reference]).norm() / change)
        if not difference <= TOLERANCE[case.precision]:
            worker.measurement.fault = f"its first round is {difference:.2g} away from the reference's"
