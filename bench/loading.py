"""Loading: batches per second of every source, beside a DataLoader and FFCV's own loader, on the same images.

    python -m bench.loading --out bench/results/cpu/loading.csv

There are two sets of smooth random images: raw ones of 32x32 pixels, cropped after padding, and JPEGs of 256x256 with
random-resized crops of 128. Each reader is a process (bench.loading_readers) that reads in its turn; one that does not
answer in time is ended, and its row says so. A row holds the median of the turns' batches per second with its 20th and
80th percentiles, and the median ratio within a turn to the DataLoader with as many workers, or of the ffcv source to
FFCV's loader. Correctness is the subject of tests/data/test_source_equality.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import Row, StealMeter, device_folder, machine_columns, median_ratio, merge_rows, spread
from bench.loading_readers import BATCH, DATA_LOADER, FFCV_LOADER, JPEG, RAW, write_images
from bench.processes import AnsweringProcess

READERS = {
    RAW: (DATA_LOADER, "resident", "torch", "dali", "ffcv", FFCV_LOADER),
    JPEG: (DATA_LOADER, "torch", "dali", "ffcv", FFCV_LOADER),
}
SETTLE_S = 0.4
"""Pause before a turn: the reader prefetches as far as it goes, and not while another one is measured."""


class Reader:
    """A reader's process, its speeds by turn in batches per second, and its fault, if any."""

    def __init__(self, folder: Path, title: str, name: str, options: argparse.Namespace) -> None:
        self.name, self.fault = name, ""
        self.speeds: dict[int, float] = {}
        words = (str(folder), title, name, str(options.workers), str(options.threads))
        log = folder / f"{title}, {name}.log"
        # a group of its own, so that the reader's workers end with it
        self._process = AnsweringProcess([sys.executable, "-m", "bench.loading_readers", *words], log, own_group=True)

    def wait_until_open(self, timeout: float) -> None:
        """Wait until the reader is open."""
        self.fault = self._process.answer(timeout).get("fault", "")

    def take_turn(self, turn: int, seconds: float, timeout: float) -> None:
        """Read for some seconds."""
        self._process.send(str(seconds))
        answer = self._process.answer(timeout)
        self.fault = answer.get("fault", "")
        if not self.fault:
            self.speeds[turn] = float(answer["batches_per_s"])

    def close(self) -> None:
        """End the process."""
        self._process.close()


def measure(folder: Path, title: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of one set; the table is written after each turn."""
    readers: list[Reader] = []
    rows: list[Row] = []
    try:
        readers += [Reader(folder, title, name, options) for name in READERS[title]]
        deadline = time.monotonic() + options.open_limit
        for reader in readers:
            reader.wait_until_open(deadline - time.monotonic())
        machine, steal = machine_columns(), StealMeter()
        for turn in range(options.turns):
            for reader in readers[:: -1 if turn % 2 else 1]:
                if not reader.fault:
                    time.sleep(SETTLE_S)
                    reader.take_turn(turn, options.seconds, options.turn_limit)
            columns = {"workers": str(options.workers), "threads": str(options.threads)}
            columns |= machine | {"steal_percent": steal.percent()}
            rows = [row | columns for row in make_rows(title, readers)]
            merge_rows(options.out, rows, ("set", "source"))
    finally:
        for reader in readers:
            reader.close()
    return rows


def make_rows(title: str, readers: Sequence[Reader]) -> list[Row]:
    """Return a row for each reader of a set."""
    speeds = {reader.name: reader.speeds for reader in readers}
    rows = []
    for reader in readers:
        base = FFCV_LOADER if reader.name == "ffcv" else DATA_LOADER
        row = {"set": title, "source": reader.name, "batch": str(BATCH[title])}
        row |= dict.fromkeys(("batches_per_s", "p20", "p80", "ratio"), "")
        if reader.speeds:
            numbers = zip(("batches_per_s", "p20", "p80"), spread(list(reader.speeds.values())), strict=True)
            row |= {key: f"{value:.1f}" for key, value in numbers}
        both = [turn for turn in reader.speeds if turn in speeds[base]]
        if both:
            own, other = ([values[turn] for turn in both] for values in (reader.speeds, speeds[base]))
            row["ratio"] = f"{median_ratio(own, other):.3f}"
        rows.append(row | {"of": base, "turns": str(len(reader.speeds)), "note": reader.fault})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sets."""
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=device_folder() / "loading.csv", help="the table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each reader")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a reader's turn")
    parser.add_argument("--open-limit", type=float, default=120.0, help="seconds for all readers of a set to open")
    parser.add_argument(
        "--turn-limit", type=float, default=20.0, help="seconds after which a reader in its turn is ended"
    )
    parser.add_argument("--set", choices=list(READERS), help="measure only this one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for title in [options.set] if options.set else list(READERS):
            for row in measure(Path(folder), title, options):
                shown = (row[key] for key in ("set", "source", "batches_per_s", "ratio", "of", "note"))
                print(" | ".join(shown), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
