"""Runs that are killed at random moments and continued, against the same runs without interruption."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlocal.common.atomic_file import TEMPORARY_SUFFIX
from tests.helpers.fork_server import ForkedRun, ForkServer, wait_until
from tests.helpers.run_files import difference, run_files

COMMON = """
    --device cpu --batch-size 4 --total-batch-size 12 --chunk 1 --debug --momentum 0.9 --save-freq1 3 --bn-batches 4
"""
CASES = {
    "mlp, Nesterov, label noise, warm-up, a decay": (
        "--model mlp --nesterov --label-noise --warm-up --warmup-epochs 2 --decay1 2 --step1 2 --step2 3 --epochs 5"
    ),
    "mlp, replacement, stacked, seldom evaluated": (
        "--model mlp --replacement --executor stacked --step1 2 --step2 2 --eval-freq1 3 --save-every 1 --epochs 6"
    ),
    "resnet20, BatchNorm, augmented, by epochs": (
        "--model resnet20 --aug 1 --schedule epochs --step1 2 --lr 0.1 --epochs 2"
    ),
    "resnet20_gn, saved by the clock": "--model resnet20_gn --save-minutes 0.002 --step1 2 --step2 2 --epochs 2",
    "mlp, kept state on disk": (
        "--model mlp --client-store disk --partition iid --population 16 --client-state keep --client-epochs continue "
        "--client-lr 0.05 --rounds 24 --step1 3 --eval-freq1 5 --save-minutes 0.0005"
    ),
}
MAX_WAIT_S = 120.0
MISSING_RANK_STATUS = 1
"""Exit status of a rank that misses another one."""


@dataclass
class Outcome:
    """Outcome of one run.

    Attributes:
        kills: Number of times the run was killed.
        while_writing: Number of kills that left a half-written file.
        failure: What went wrong, or an empty string.
    """

    kills: int
    while_writing: int
    failure: str


def crash_runs(
    fork_server: ForkServer,
    folder: Path,
    kills: int,
    kills_per_run: int,
    seed: int,
    ranks: int = 1,
    cases: Sequence[str] = tuple(CASES),
) -> Iterator[tuple[str, Outcome]]:
    """Run one case after the other and kill it, until this many kills are done.

    Args:
        fork_server: Starts the runs.
        folder: Empty folder for the data and the runs.
        kills: Kills in total.
        kills_per_run: Kills of one run at most.
        seed: Seed of the moments, and of the first case.
        ranks: Processes of each run.
        cases: Keys of CASES.

    Yields:
        The case and the outcome of each run.
    """
    draw, done = random.Random(seed), 0
    write_data(folder / "data.npz")
    expected: dict[str, dict[str, Any]] = {}
    for number in range(10 * kills):
        if done >= kills:
            return
        case = cases[(seed + number) % len(cases)]
        if case not in expected:
            directory = folder / f"uninterrupted{number}"
            expected[case] = uninterrupted(fork_server, case, folder / "data.npz", directory, ranks)
        directory = folder / f"crashed{number}"
        limit = min(kills_per_run, kills - done)
        steps_bytes = len(expected[case]["steps.jsonl"])
        outcome = crash_run(fork_server, case, folder / "data.npz", directory, ranks, limit, steps_bytes, draw)
        if not outcome.failure:
            outcome.failure = difference(run_files(directory), expected[case])
        done += outcome.kills
        yield case, outcome


def write_data(path: Path) -> None:
    """Write 64 and 16 grey images of 8 x 8 pixels with 4 classes."""
    draw = np.random.default_rng(0)
    sizes = {"train": 64, "test": 16}
    images = {f"x_{split}": draw.integers(0, 256, (n, 8, 8), dtype=np.uint8) for split, n in sizes.items()}
    np.savez(path, **images, **{f"y_{split}": np.arange(n) % 4 for split, n in sizes.items()})


def command_line(case: str, data: Path, directory: Path, timeout: int = 10) -> list[str]:
    """Return the command line that starts a case and continues it.

    Args:
        case: A key of CASES.
        data: File from `write_data`.
        directory: Run directory.
        timeout: Seconds after which a rank gives up on a missing one.
    """
    head = ["train", "--dataset", "npz", "--data-pth", str(data), "--log-pth", str(directory), "--continue"]
    return [*head, *COMMON.split(), *CASES[case].split(), "--timeout", str(timeout)]


def uninterrupted(fork_server: ForkServer, case: str, data: Path, directory: Path, ranks: int) -> dict[str, Any]:
    """Return the files of an uninterrupted run; its timeout leaves time for a first compilation."""
    log = directory.with_suffix(".log")
    statuses = fork_server.start(command_line(case, data, directory, 120), log, ranks).statuses()
    if any(statuses):
        raise RuntimeError(f"{case}: status {statuses}\n{log.read_text()}")
    return run_files(directory)


def crash_run(
    fork_server: ForkServer,
    case: str,
    data: Path,
    directory: Path,
    ranks: int,
    kills: int,
    steps_bytes: int,
    draw: random.Random,
) -> Outcome:
    """Kill a run this many times, or as often as it lasts, and let it end.

    Args:
        fork_server: Starts the run.
        case: A key of CASES.
        data: File from `write_data`.
        directory: Run directory.
        ranks: Processes of the run.
        kills: Kills at most.
        steps_bytes: Size of steps.jsonl at the end of the run.
        draw: Source of the moments and the ranks.
    """
    outcome, log = Outcome(0, 0, ""), directory.with_suffix(".log")
    while True:
        process = fork_server.start(command_line(case, data, directory), log, ranks)
        if outcome.kills < kills:
            _wait_for_random_moment(process, directory, steps_bytes, draw)
            process.send(signal.SIGKILL, draw.choice([None, [draw.randrange(ranks)]]))
        statuses = process.statuses()
        if not any(statuses):
            return outcome
        if -signal.SIGKILL not in statuses or not _survivors_ended_well(statuses, log.read_text()):
            outcome.failure = f"status {statuses}: {log.read_text()[-300:]!r}"
            return outcome
        outcome.kills += 1
        outcome.while_writing += bool(list(directory.glob(f".*{TEMPORARY_SUFFIX}")))


def _survivors_ended_well(statuses: Sequence[int], log: str) -> bool:
    """Return True if each rank was killed, ended before, or named the missing rank without a traceback."""
    return all(status in (-signal.SIGKILL, 0, MISSING_RANK_STATUS) for status in statuses) and "Traceback" not in log


def _wait_for_random_moment(process: ForkedRun, directory: Path, steps_bytes: int, draw: random.Random) -> None:
    """Wait for a random part of the rest of the run, and often for the beginning of a file."""
    log, pattern = directory / "steps.jsonl", draw.choice(["", ".resume*", ".latest.pt.*"])
    size = log.stat().st_size if log.exists() else 0
    target = size + draw.uniform(0, 0.4) * (steps_bytes - size)

    def reached() -> bool:
        return not process.running() or (log.exists() and log.stat().st_size >= target)

    if draw.random() < 0.1:  # while it starts
        time.sleep(draw.uniform(0, 0.1))
        return
    wait_until(reached, MAX_WAIT_S)
    # a file takes a few ms
    wait_until(lambda: not process.running() or not pattern or any(directory.glob(pattern)), MAX_WAIT_S, every=0.0002)
    time.sleep(draw.choice([0, draw.uniform(0, 0.01)]))
