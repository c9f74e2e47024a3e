"""Batches per second of every source, beside a plain DataLoader and FFCV's own loader, on the same images.

    python -m bench.loading --out bench/results/cpu/loading.csv

Two sets of smooth random images: 32x32 raw with crops after padding, and JPEGs of 256x256 with random-resized crops
to 128. Each reader is a process (bench.readers) that reads when its turn comes; one that does not answer in time is
ended and said. Rows: source, set, batches/s (median, p20, p80 of the turns), the median of the turns' ratios to the
DataLoader with as many workers, and for FFCV to its bare loader, and the share of the processors' time that other
machines on the same host took during the turns. Correctness is tests/data/test_source_equality.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RAW, JPEG = "32x32 raw", "256x256 JPEG"
BARE, OWN_DECODER = "bare FFCV", "bare FFCV, its own decoder"
BATCH = {RAW: 128, JPEG: 64}
READERS = {
    RAW: ("DataLoader", "resident", "torch", "dali", "ffcv", BARE, OWN_DECODER),
    JPEG: ("DataLoader", "torch", "dali", "ffcv", BARE, OWN_DECODER),
}
SPEEDS = ("batches_per_s", "p20", "p80", "turns", "ratio", "of")
FIELDS = ("commit", "torch", "device", "set", "source", "batch", "workers", "threads", *SPEEDS, "steal", "note")
SETTLE_S = 0.4
"""So that a reader has read ahead as far as it goes when its turn comes, and does not while another is measured."""


class Reader:
    """A process that reads. It leads its own process group, so that its workers end with it."""

    def __init__(self, folder: Path, title: str, name: str, workers: int, threads: int) -> None:
        self.name, self.note = name, ""
        self.speeds: dict[int, float] = {}
        words = (str(folder), title, name, str(workers), str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.readers", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("= "):
                self._answers.put(line[2:].strip())
        self._answers.put(None)

    def answer(self, seconds: float, doing: str) -> str | None:
        """What it says next; None once it is ended, for `note` says why."""
        try:
            said = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self.end(f"no answer within {seconds:.0f} s while {doing}")
            return None
        if said is None:
            self.end(f"ended while {doing}")
        return said

    def turn(self, number: int, seconds: float, limit_s: float) -> None:
        """Read for so long."""
        assert self._process.stdin is not None
        try:
            print(seconds, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self.end("ended between two turns")
            return
        said = self.answer(limit_s, f"reading for {seconds:g} s")
        if said is not None:
            self.speeds[number] = float(said)

    def end(self, why: str = "") -> None:
        self.note = self.note or why
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def measure(
    folder: Path, title: str, given: argparse.Namespace, out: Path, before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of one set, interleaved over the turns; the file is written anew after each turn."""
    began = time.perf_counter()
    readers = [Reader(folder, title, name, given.workers, given.threads) for name in READERS[title]]
    rows: list[dict[str, Any]] = []
    try:
        for reader in readers:
            reader.answer(began + given.open_limit - time.perf_counter(), "opening")
        before_turns = processor_times()
        for turn in range(given.turns):
            for reader in readers if turn % 2 == 0 else reversed(readers):
                if not reader.note:
                    time.sleep(SETTLE_S)
                    reader.turn(turn, given.seconds, given.turn_limit)
            rows = [
                row | {"set": title, "batch": BATCH[title], "workers": given.workers, "threads": given.threads}
                for row in summary(readers)
            ]
            steal = stolen(before_turns, processor_times())
            rows = [row | {"steal": steal} for row in rows]
            save(out, [*before, *rows])
    finally:
        for reader in readers:
            reader.end()
    return rows


def processor_times() -> list[int]:
    """Of all processors since the start, by what they did: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as file:
        return [int(word) for word in file.readline().split()[1:9]]


def stolen(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of the time in between, 0 to 1."""
    spent = [end - start for start, end in zip(before, after, strict=True)]
    return round(spent[-1] / max(1, sum(spent)), 3)


def summary(readers: Sequence[Reader]) -> list[dict[str, Any]]:
    """One row a reader, beside the DataLoader, and FFCV's beside its bare loader with the same decoder."""
    speeds = {reader.name: reader.speeds for reader in readers}
    rows = []
    for reader in readers:
        other = BARE if reader.name == "ffcv" else "DataLoader"
        row: dict[str, Any] = {"source": reader.name, "of": other, "note": reader.note, "turns": len(reader.speeds)}
        ratios = [speed / speeds[other][turn] for turn, speed in reader.speeds.items() if turn in speeds[other]]
        if reader.speeds:
            values = list(reader.speeds.values())
            p20, p80 = np.quantile(values, (0.2, 0.8))
            row |= {"batches_per_s": round(statistics.median(values), 1)}
            row |= {"p20": round(float(p20), 1), "p80": round(float(p80), 1)}
        if ratios:
            row["ratio"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def save(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow({"commit": commit, "torch": version("torch"), "device": platform.machine()} | row)


def known(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each reader")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a reader reads for in its turn")
    parser.add_argument("--open-limit", type=float, default=120.0, help="seconds for all readers of a set to open")
    parser.add_argument("--turn-limit", type=float, default=20.0, help="seconds for one reader's turn")
    parser.add_argument("--set", choices=list(READERS), help="only this one; the file's rows of the other are kept")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sets = [given.set] if given.set else list(READERS)
    rows = [row for row in known(given.out) if row["set"] not in sets]
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-m", "bench.readers", name, "write"], check=True)
        for title in sets:
            measured = measure(Path(name), title, given, given.out, rows)
            rows += measured
            for row in measured:
                values = (row.get(key, "") for key in ("set", "source", "batches_per_s", "ratio", "of", "note"))
                print(" | ".join(str(value) for value in values), flush=True)


if __name__ == "__main__":
    main()
