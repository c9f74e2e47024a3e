"""Everything that a GPU can show, in one command of under ten minutes.

    python -m bench.gpu_suite --out DIR [--deterministic] [--seconds N]

Each part runs in a process of its own, so that one that fails takes no other with it; checks first and side by side,
then the timings one after the other, the most important first. What no time was left for is listed in the summary.
Leaves gate.csv and tests.csv (checks of the kernels on the device), kernels.csv (timings beside a measured copy),
dram.csv (bytes that ncu counts, where it is present), suite.csv (what ran) and summary.md, and what other parts write:
at most eight files. Needs torch, triton, numpy, pytest and the repository.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.device import NO_GPU
from bench.summary import summary
from bench.tables import Row, read, write
from fastlocal import kernels

SECONDS = 570.0
"""Of the whole suite."""

GRACE = 20.0
"""Seconds that a part may take to start and to stop, beyond those that it is told to use."""

FILES = 8
"""That are left, at most."""

LEAST = 10.0
"""Seconds below which no part is started."""


@dataclass(frozen=True)
class Part:
    """A bench that runs as `python COMMAND --out DIR --seconds N` and leaves CSV files in DIR, whatever becomes of it.

    Files of one name from several parts become one table; so they have the same columns.
    seconds: that it may use at most; it takes less where less is left
    needs: an op whose checks have to pass first
    together: runs beside other such parts, before those that measure time
    deterministic: knows the flag --deterministic
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: str | None = None
    together: bool = False
    deterministic: bool = False


def _timing(op: str, seconds: float) -> Part:
    command = ("-m", "bench.kernels", "--only", "times", "--ops", op)
    return Part(f"time {op}", command, seconds, needs=op, deterministic=True)


PARTS = (
    *(
        Part(f"check {op}", ("-m", "bench.kernels", "--only", "gate", "--ops", op), 120, together=True)
        for op in kernels.TRITON_OPS
    ),
    Part("kernel tests", ("-m", "bench.device_tests"), 120, together=True),
    _timing("client_sgd", 40),
    _timing("client_mean", 25),
    _timing("client_sgd_mean", 35),
    _timing("gather_augment", 15),
    _timing("norm_act", 35),
    _timing("conv2d_clients", 70),
    _timing("conv2d_clients_input_grad", 60),
    _timing("conv2d_clients_weight_grad", 60),
    Part("time linear", ("-m", "bench.linear"), 20, needs="conv2d_clients"),
    _timing("norm_act_backward", 35),
    Part("count bytes", ("-m", "bench.dram"), 90),
    _timing("label_noise_loss", 15),
    Part("training", ("-m", "bench.throughput", "--cases", "targets", "--turns", "8"), 200),
    Part("training over clients", ("-m", "bench.scaling", "--model", "resnet20_gn", "--turns", "4"), 120),
    _timing("client_norm", 10),
)
"""The most important first. Another bench joins by a line here."""


def run_parts(parts: Sequence[Part], out: Path, seconds: float, *, deterministic: bool = False) -> list[Row]:
    """Run parts within about so many seconds and gather their tables in `out`; returns a row for each part.

    A row holds the part, its state ("done", "failed", "stopped" or "skipped"), the seconds it took, and why.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    states: list[Row] = []
    flags = {part.name: ["--deterministic"] if deterministic and part.deterministic else [] for part in parts}
    with tempfile.TemporaryDirectory() as place:
        folders = {part.name: Path(place) / str(index) for index, part in enumerate(parts)}
        together = [part for part in parts if part.together]
        if together:
            with ThreadPoolExecutor(min(len(together), os.cpu_count() or 1)) as pool:
                states += pool.map(lambda part: run_part(part, folders[part.name], end, flags[part.name]), together)
            gather([folders[part.name] for part in together], out)
        failing = {line["op"] for line in read(out / "gate.csv") if line["fault"]}
        checked = {line["op"] for line in read(out / "gate.csv")} - failing
        for part in parts:
            if part.together:
                continue
            if part.needs and part.needs not in checked:
                why = "fails" if part.needs in failing else "did not get through"
                states.append(_state(part, "skipped", 0.0, f"{part.needs} {why} its checks"))
            else:
                states.append(run_part(part, folders[part.name], end, flags[part.name]))
            gather(list(folders.values()), out)
    return states


def run_part(part: Part, folder: Path, end: float, flags: Sequence[str] = ()) -> Row:
    """Run one part until it ends, or to its limit of seconds; `end` is that of the suite in time.monotonic()."""
    left = end - time.monotonic() - GRACE
    if left < LEAST:
        return _state(part, "skipped", 0.0, "no time was left")
    seconds = min(part.seconds, left)
    command = [sys.executable, *part.command, "--out", str(folder), "--seconds", f"{seconds:.0f}", *flags]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a pipe would stay open in what a part leaves behind
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            state = "done" if process.wait(seconds + GRACE) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
            process.wait()
            state = "stopped"
        log.seek(0)
        words = [line.strip() for line in log if line.strip()]
    took = time.monotonic() - began
    why = {
        "done": "",
        "failed": f"exit status {process.returncode}: {words[-1] if words else 'nothing printed'}",
        "stopped": f"still running after {took:.0f} s",
    }[state]
    print(f"{part.name}: {state} in {took:.0f} s {why}", flush=True)
    return _state(part, state, took, why)


def _state(part: Part, state: str, took: float, why: str) -> Row:
    return {"part": part.name, "state": state, "seconds": f"{took:.1f}", "why": why}


def gather(folders: Sequence[Path], out: Path) -> None:
    """Join the CSV files of the same name that lie in these folders, in their order."""
    tables: dict[str, list[Row]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.csv")):
            tables.setdefault(path.name, []).extend(read(path))
    for name, rows in tables.items():
        write(out / name, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the summary")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument(
        "--deterministic", action="store_true", help="time the kernels under deterministic algorithms too, and compare"
    )
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    states = run_parts(PARTS, asked.out, asked.seconds, deterministic=asked.deterministic)
    write(asked.out / "suite.csv", states)
    tables = {name: read(asked.out / f"{name}.csv") for name in ("gate", "tests", "kernels", "dram")}
    text = summary(states, **tables)
    (asked.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    files = [path.name for path in asked.out.iterdir()]
    assert len(files) <= FILES, f"{len(files)} files: {files}"
    return 1 if any(line["state"] in ("failed", "stopped") for line in states) else 0


if __name__ == "__main__":
    sys.exit(main())
