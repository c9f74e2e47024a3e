"""GPU suite: everything that a GPU can show, in one command of five minutes.

    python -m bench.gpu_suite --out DIR [--seconds N] [--parts NAME ...] [--deterministic]

Each part (bench/gpu_parts.py) runs in a process of its own, so that a failing part takes no other with it: the checks
of the kernels side by side, then training, runs of the command line and `fastlocal verify`, then the timings of
kernels. The summary lists the parts for which no time was left. --parts takes names of parts or their beginnings, and
adds the checks that they need.

Writes gate.csv and tests.csv (checks of the kernels on the device), throughput.csv and scaling.csv (training),
kernels.csv (timings beside a measured copy), suite.csv (the parts, with the last lines of their output) and summary.md,
all anew after each part: at most eight files. Needs torch, triton, numpy, pytest and the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import processes
from bench.common import Row, cores, read_rows, write_rows
from bench.device import NO_GPU, describe
from bench.gpu_parts import Part, select_parts
from bench.processes import ProgramResult
from bench.summary import summary

SECONDS = 300.0
"""Seconds of the whole suite."""
MARGIN_SECONDS = 8.0
"""Seconds of a part beyond those that it is told to use: for its imports and its last case."""
MIN_SECONDS = 12.0
"""Seconds below which no part is started."""
FILES = ("gate", "tests", "throughput", "scaling", "kernels")
"""Tables of the parts that are kept."""

Launch = Callable[[Sequence[str], float, Mapping[str, str]], ProgramResult]
"""Runs a command until a deadline, with additional environment variables."""


class Suite:
    """A run of parts, whose tables are joined in one folder after each of them.

    Args:
        out: The folder.
        seconds: Seconds for all parts.
        deterministic: Also time the kernels under deterministic algorithms.
        machine: Columns of bench.device.describe, for the summary.
        clock: time.monotonic, or a stand-in.
        launch: bench.processes.run, or a stand-in.
        max_parallel: Number of parts that run together; by default the number of cores.

    Attributes:
        states: For each part its state ("done", "failed", "stopped" or "skipped"), seconds, reason and last lines.
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        *,
        deterministic: bool = False,
        machine: Row | None = None,
        clock: Callable[[], float] = time.monotonic,
        launch: Launch = processes.run,
        max_parallel: int | None = None,
    ) -> None:
        self.out, self.deterministic, self.machine = out, deterministic, machine or {}
        self._clock, self._launch = clock, launch
        self._max_parallel = max_parallel or cores()
        self._end = clock() + seconds
        self.states: list[Row] = []
        self._passed: set[str] = set()
        self._folders: list[Path] = []

    def run(self, parts: Sequence[Part]) -> None:
        """Run the parts, those that run together before the others."""
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            folders = {part.name: Path(place) / str(index) for index, part in enumerate(parts)}
            self._folders = list(folders.values())
            together = [part for part in parts if part.together]
            if together:
                start_time = time.time()
                end = min(self._end, self._clock() + max(part.seconds for part in together))
                with ThreadPoolExecutor(min(len(together), self._max_parallel)) as pool:
                    states = list(pool.map(lambda part: self._run_part(part, folders[part.name], end), together))
                forget_tiles(start_time)
                self._passed = {state["part"].removeprefix("check ") for state in states if state["state"] == "done"}
                self._record(*states)
            for part in parts:
                if not part.together:
                    self._record(self._run_if_checked(part, folders[part.name]))

    def _run_if_checked(self, part: Part, folder: Path) -> Row:
        """Run a part unless the checks of its op fail; if they did not end, the part runs them itself."""
        if any(row["op"] == part.needs and row["fault"] for row in read_rows(self.out / "gate.csv")):
            return _state(part, "skipped", f"{part.needs} fails its checks")
        return self._run_part(part, folder, self._end, part.flags_if_checked if part.needs in self._passed else ())

    def _run_part(self, part: Part, folder: Path, end: float, flags: Sequence[str] = ()) -> Row:
        """Run one part until it ends, or until the clock reaches `end`; return its state."""
        start_time = self._clock()
        end = min(end, start_time + part.seconds)
        if end - start_time < MIN_SECONDS:
            return _state(part, "skipped", "no time was left")
        values = {"{out}": str(folder), "{seconds}": f"{end - start_time - MARGIN_SECONDS:.0f}"}
        command = [sys.executable, *(fill(word, values) for word in part.command), *flags]
        if self.deterministic and part.deterministic:
            command.append("--deterministic")
        (folder / "tmp").mkdir(parents=True)
        variables = {"TMPDIR": str(folder / "tmp")}  # holds what a stopped part leaves behind
        if part.own_cache:
            variables["XDG_CACHE_HOME"] = str(folder / "cache")
        result = self._launch(command, end, variables)
        seconds = self._clock() - start_time
        if result.status is None:
            state, why = "stopped", f"still running after {seconds:.0f} s"
        else:
            last = result.lines[-1].strip() if result.lines else "nothing printed"
            state, why = ("failed", f"exit status {result.status}: {last}") if result.status else ("done", "")
        print(f"{part.name}: {state} in {seconds:.0f} s {why}\n", end="", flush=True)  # one write, as threads print too
        return _state(part, state, why, seconds, result.lines)

    def _record(self, *states: Row) -> None:
        """Write everything that is known so far."""
        self.states += states
        join_tables(self._folders, self.out)
        write_rows(self.out / "suite.csv", self.states)
        (self.out / "summary.md").write_text(self.summary(), encoding="utf-8")

    def summary(self) -> str:
        """Return the text of summary.md; a traceback where a table is broken, which must not end the run."""
        tables = {name: read_rows(self.out / f"{name}.csv") for name in FILES}
        try:
            return summary(self.states, self.machine, tables)
        except Exception:
            return traceback.format_exc()


def fill(word: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders of a command's word."""
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _state(part: Part, state: str, why: str, seconds: float = 0.0, lines: Sequence[str] = ()) -> Row:
    return {"part": part.name, "state": state, "seconds": f"{seconds:.1f}", "why": why, "output": "\n".join(lines)}


def forget_tiles(since: float) -> None:
    """Remove the tiles that Triton's autotuner has cached since then: they were timed beside other parts."""
    with contextlib.suppress(ImportError):
        from triton import knobs

        for path in Path(knobs.cache.dir).glob("*/*.autotune.json"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime >= since:
                    path.unlink()


def join_tables(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of the same name in these folders, each row once."""
    for name in FILES:
        rows = [row for folder in folders for row in read_rows(folder / f"{name}.csv")]
        if rows:
            unique = dict.fromkeys(tuple(row.items()) for row in rows)
            write_rows(out / f"{name}.csv", [dict(items) for items in unique])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=__doc__.splitlines()[0])
    flags.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the summary")
    flags.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    flags.add_argument("--parts", nargs="+", metavar="NAME", help="names of parts or their beginnings; all by default")
    flags.add_argument(
        "--deterministic", action="store_true", help="time the kernels under deterministic algorithms too, and compare"
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 1 if a part failed or was stopped, 2 without a GPU."""
    start_time = time.monotonic()
    options = parser().parse_args(arguments)
    try:
        parts = select_parts(options.parts)
    except ValueError as error:
        parser().error(f"--parts: {error}")
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    machine = describe()
    seconds = options.seconds - (time.monotonic() - start_time)
    suite = Suite(options.out, seconds, deterministic=options.deterministic, machine=machine)
    suite.run(parts)
    print(suite.summary())
    return 1 if any(state["state"] in ("failed", "stopped") for state in suite.states) else 0


if __name__ == "__main__":
    sys.exit(main())
