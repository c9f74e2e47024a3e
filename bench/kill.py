"""Runs that are killed at random moments and continued, against the same runs undisturbed.

    python -m bench.kill [--kills 100] [--ranks 1] [--seed 0]        prints and adds to bench/results/cpu/kill.csv

A process, of several ranks one at random or all, is killed by SIGKILL when the run has come a random part of the way
that is left, often as it begins to write a file. The run is started again with --continue, six times; the next start
ends it. Everything in the run directory must then be as in the undisturbed run of as many ranks, to the bit: models,
momenta, counters, metrics and the loss of every step.
"""

from __future__ import annotations

import argparse
import csv
import platform
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.forks import Fork, Forks, wait_until
from fastlocal.checkpoint.resharding import read_saved
from fastlocal.checkpoint.run_directory import LAUNCH_NAME
from fastlocal.checkpoint.state_file import State, read_numbers
from fastlocal.common.atomic_file import TEMPORARY_SUFFIX

TABLE = Path(__file__).parent / "results" / "cpu" / "kill.csv"
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
}
LONGEST_S = 120.0
MISSING = 1
"""The exit status of a rank that misses another."""


@dataclass
class Outcome:
    """Of one run: times it was killed, and how often a file was half-written then; what went wrong, or nothing."""

    kills: int
    while_writing: int
    failure: str


def write_data(path: Path) -> None:
    """64 and 16 grey images of 8 x 8 with 4 classes."""
    draw = np.random.default_rng(0)
    halves = {"train": 64, "test": 16}
    images = {f"x_{half}": draw.integers(0, 256, (n, 8, 8), dtype=np.uint8) for half, n in halves.items()}
    np.savez(path, **images, **{f"y_{half}": np.arange(n) % 4 for half, n in halves.items()})


def left_behind(directory: Path) -> dict[str, Any]:
    """Everything in a run directory that must not depend on interruptions, tensors bit for bit.

    config.json says where the directory is, another file who launched the run, and which earlier states are kept, and
    what their parts are called, depends on when they were saved.
    """
    found: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        if path.name == "resume.pt":
            ranks = len(read_numbers(path).get("parts", [0]))
            found[path.name] = [_state_bits(read_saved(path, rank, ranks)) for rank in range(ranks)]
        elif path.suffix == ".part":
            continue
        elif path.suffix == ".pt":
            if not path.name.startswith("resume."):
                found[path.name] = _bits(torch.load(path, weights_only=True))
        elif path.name not in ("config.json", LAUNCH_NAME):
            found[path.name] = path.read_bytes()
    return found


def _state_bits(state: State) -> tuple[str, dict[str, Any]]:
    return repr({name: value for name, value in state.metadata.items() if name != "config"}), _bits(state.tensors)


def _bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}


def words_of(case: str, data: Path, directory: Path, timeout: int = 10) -> list[str]:
    """The command line of a case; the same starts it and goes on with it.

    timeout: seconds that a rank waits for one that may be gone
    """
    where = ["train", "--dataset", "npz", "--data-pth", str(data), "--log-pth", str(directory), "--continue"]
    return [*where, *COMMON.split(), *CASES[case].split(), "--timeout", str(timeout)]


def undisturbed(forks: Forks, case: str, data: Path, directory: Path, ranks: int) -> dict[str, Any]:
    """Return the files of an undisturbed run; its timeout leaves time for a first compilation."""
    statuses = forks.start(words_of(case, data, directory, 120), directory.with_suffix(".log"), ranks).statuses()
    if any(statuses):
        raise RuntimeError(f"{case}: status {statuses}\n{directory.with_suffix('.log').read_text()}")
    return left_behind(directory)


def killed(
    forks: Forks, case: str, data: Path, directory: Path, ranks: int, kills: int, whole: int, draw: random.Random
) -> Outcome:
    """A run that is killed so often, or as often as it lasts, and then ends.

    whole: bytes of steps.jsonl when it has ended        failure: a status that cannot be, or nothing
    """
    outcome, log = Outcome(0, 0, ""), directory.with_suffix(".log")
    while True:
        process = forks.start(words_of(case, data, directory), log, ranks)
        if outcome.kills < kills:
            _wait_for_a_moment(process, directory, whole, draw)
            process.send(signal.SIGKILL, draw.choice([None, [draw.randrange(ranks)]]))
        statuses = process.statuses()
        if not any(statuses):
            return outcome
        if -signal.SIGKILL not in statuses or not _as_they_should(statuses, log.read_text()):
            outcome.failure = f"status {statuses}: {log.read_text()[-300:]!r}"
            return outcome
        outcome.kills += 1
        outcome.while_writing += bool(list(directory.glob(f".*{TEMPORARY_SUFFIX}")))


def _as_they_should(statuses: Sequence[int], log: str) -> bool:
    """Whether ranks that were not killed have ended well before, or by saying who is missing."""
    return all(status in (-signal.SIGKILL, 0, MISSING) for status in statuses) and "Traceback" not in log


def _wait_for_a_moment(process: Fork, directory: Path, whole: int, draw: random.Random) -> None:
    log, name = directory / "steps.jsonl", draw.choice(["", ".resume*", ".latest.pt.*"])
    there = log.stat().st_size if log.exists() else 0
    wanted = there + draw.uniform(0, 0.4) * (whole - there)

    def come() -> bool:
        return not process.running() or (log.exists() and log.stat().st_size >= wanted)

    if draw.random() < 0.1:  # as it starts
        time.sleep(draw.uniform(0, 0.1))
        return
    wait_until(come, LONGEST_S)
    wait_until(lambda: not process.running() or not name or any(directory.glob(name)), LONGEST_S)
    time.sleep(draw.choice([0, draw.uniform(0, 0.01)]))


def kill_cases(
    forks: Forks, folder: Path, kills: int, runs_of: int, seed: int, ranks: int = 1
) -> Iterator[tuple[str, Outcome]]:
    """The outcome of run after run, at most `runs_of` kills each, until so many kills are done.

    Case after case from one that `seed` tells.
    """
    draw, done = random.Random(seed), 0
    write_data(folder / "data.npz")
    wanted: dict[str, dict[str, Any]] = {}
    for number in range(10 * kills):
        if done >= kills:
            return
        case = list(CASES)[(seed + number) % len(CASES)]
        if case not in wanted:
            wanted[case] = undisturbed(forks, case, folder / "data.npz", folder / f"undisturbed{number}", ranks)
        directory = folder / f"killed{number}"
        most = min(runs_of, kills - done)
        whole = len(wanted[case]["steps.jsonl"])
        outcome = killed(forks, case, folder / "data.npz", directory, ranks, most, whole, draw)
        if not outcome.failure:
            outcome.failure = difference(left_behind(directory), wanted[case])
        done += outcome.kills
        yield case, outcome


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Which files differ, or an empty string."""
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    return f"differ: {', '.join(names)}" if names else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows: dict[str, list[Outcome]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder, Forks() as forks:
        for case, outcome in kill_cases(forks, Path(folder), given.kills, 6, given.seed, given.ranks):
            rows[case].append(outcome)
            print(f"{case}: {outcome.kills} kills, {outcome.while_writing} while writing {outcome.failure}", flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if new:
            names = ["commit", "torch", "python", "ranks", "seed", "case", "runs", "kills", "while_writing", "failures"]
            table.writerow(names)
        about = [commit, torch.__version__, platform.python_version(), given.ranks, given.seed]
        for case, outcomes in rows.items():
            if not outcomes:
                continue
            counts = [sum(one.kills for one in outcomes), sum(one.while_writing for one in outcomes)]
            table.writerow([*about, case, len(outcomes), *counts, sum(bool(one.failure) for one in outcomes)])
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
