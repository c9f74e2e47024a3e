"""Everything that a GPU can show, in one command of five minutes.

    python -m bench.gpu_suite --out DIR [--seconds N] [--parts NAME ...] [--deterministic]

Each part (bench/gpu_parts.py) runs in a process of its own, so that one that fails takes no other with it: the checks
of the kernels side by side, then training, runs of the command line and `fastlocal verify`, then the timings of
kernels. What no time was left for is listed in the summary. --parts takes names of parts or their beginnings, and adds
the checks that they need.

Leaves gate.csv and tests.csv (checks of the kernels on the device), throughput.csv and scaling.csv (training),
kernels.csv (timings beside a measured copy), dram.csv (bytes that ncu counts, where it is present), suite.csv (what
ran, and the last lines that it printed) and summary.md, all written anew after each part: at most eight files. Needs
torch, triton, numpy, pytest and the repository.
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
from bench.case import cores
from bench.device import NO_GPU, describe
from bench.gpu_parts import Part, chosen
from bench.processes import Ended
from bench.summary import summary
from bench.tables import Row, read, write

SECONDS = 300.0
"""Of the whole suite."""

MARGIN = 8.0
"""Seconds of a part beyond those that it is told to use: for its imports, and for what it is at when they are over."""

LEAST = 12.0
"""Seconds below which no part is started."""

FILES = ("gate", "tests", "throughput", "scaling", "kernels", "dram")
"""Tables that parts leave; others of theirs are not kept."""

Launch = Callable[[Sequence[str], float, Mapping[str, str]], Ended]
"""Runs a command until a time of the clock, with more variables in its environment."""


class Suite:
    """A run of parts, whose tables are joined in `out` after each of them.

    seconds: for all parts
    about: the machine, as in bench.device.describe, for the summary
    clock, launch: time.monotonic and bench.processes.run, or what stands in for both
    at_once: parts that run together
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        *,
        deterministic: bool = False,
        about: Row | None = None,
        clock: Callable[[], float] = time.monotonic,
        launch: Launch = processes.run,
        at_once: int | None = None,
    ) -> None:
        self.out, self.deterministic, self.about = out, deterministic, about or {}
        self._clock, self._launch = clock, launch
        self._at_once = at_once or cores()
        self._end = clock() + seconds
        self.states: list[Row] = []
        """The part, its state ("done", "failed", "stopped" or "skipped"), its seconds, why, and what it said last."""
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
                began = time.time()
                end = min(self._end, self._clock() + max(part.seconds for part in together))
                with ThreadPoolExecutor(min(len(together), self._at_once)) as pool:
                    rows = list(pool.map(lambda part: self._run_part(part, folders[part.name], end), together))
                forget_tiles(began)
                self._passed = {row["part"].removeprefix("check ") for row in rows if row["state"] == "done"}
                self._keep(*rows)
            for part in parts:
                if not part.together:
                    self._keep(self._run_checked(part, folders[part.name]))

    def _run_checked(self, part: Part, folder: Path) -> Row:
        """Run a part whose checks do not fail, with these where they did not get to their end."""
        op = part.needs
        if op is None:
            return self._run_part(part, folder, self._end)
        if any(line["op"] == op and line["fault"] for line in read(self.out / "gate.csv")):
            return _state(part, "skipped", f"{op} fails its checks")
        if op in self._passed:
            return self._run_part(part, folder, self._end, part.checked)
        if not part.checked:
            return _state(part, "skipped", f"{op} did not get through its checks")
        row = self._run_part(part, folder, self._end)
        if row["state"] == "done":
            self._passed.add(op)
        return row

    def _run_part(self, part: Part, folder: Path, end: float, flags: Sequence[str] = ()) -> Row:
        """Run one part until it ends, or until the clock says `end`."""
        began = self._clock()
        end = min(end, began + part.seconds)
        if end - began < LEAST:
            return _state(part, "skipped", "no time was left")
        told = {"{out}": str(folder), "{seconds}": f"{end - began - MARGIN:.0f}"}
        command = [sys.executable, *(fill(word, told) for word in part.command), *flags]
        if self.deterministic and part.deterministic:
            command.append("--deterministic")
        (folder / "tmp").mkdir(parents=True)
        environment = {"TMPDIR": str(folder / "tmp")}  # where a part that is stopped leaves files
        if part.own_choices:
            environment["XDG_CACHE_HOME"] = str(folder / "cache")
        ended = self._launch(command, end, environment)
        took = self._clock() - began
        if ended.status is None:
            state, why = "stopped", f"still running after {took:.0f} s"
        else:
            last = ended.lines[-1].strip() if ended.lines else "nothing printed"
            state, why = ("failed", f"exit status {ended.status}: {last}") if ended.status else ("done", "")
        print(f"{part.name}: {state} in {took:.0f} s {why}\n", end="", flush=True)  # at once, as others print too
        return _state(part, state, why, took, ended.lines)

    def _keep(self, *rows: Row) -> None:
        """Write everything that is known so far."""
        self.states += rows
        gather(self._folders, self.out)
        write(self.out / "suite.csv", self.states)
        (self.out / "summary.md").write_text(self.summary(), encoding="utf-8")

    def summary(self) -> str:
        tables = {name: read(self.out / f"{name}.csv") for name in FILES}
        try:
            return summary(self.states, self.about, tables)
        except Exception:  # a table that is not as it should be ends no run
            return traceback.format_exc()


def fill(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _state(part: Part, state: str, why: str, took: float = 0.0, lines: Sequence[str] = ()) -> Row:
    return {"part": part.name, "state": state, "seconds": f"{took:.1f}", "why": why, "said": "\n".join(lines)}


def forget_tiles(since: float) -> None:
    """Remove the choices of tiles that Triton has kept since then, as they were timed beside other parts."""
    with contextlib.suppress(ImportError):
        from triton import knobs

        for path in Path(knobs.cache.dir).glob("*/*.autotune.json"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime >= since:
                    path.unlink()


def gather(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of the same name that lie in these folders, in their order, each line once."""
    for name in FILES:
        lines = [line for folder in folders for line in read(folder / f"{name}.csv")]
        if lines:
            write(out / f"{name}.csv", [dict(items) for items in dict.fromkeys(tuple(line.items()) for line in lines)])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the summary")
    made.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    made.add_argument("--parts", nargs="+", metavar="NAME", help="of parts, or beginnings of names; all by default")
    made.add_argument(
        "--deterministic", action="store_true", help="time the kernels under deterministic algorithms too, and compare"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    asked = parser().parse_args(arguments)
    try:
        parts = chosen(asked.parts)
    except ValueError as error:
        parser().error(f"--parts: {error}")
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    about = describe()
    left = asked.seconds - (time.monotonic() - began)
    suite = Suite(asked.out, left, deterministic=asked.deterministic, about=about)
    suite.run(parts)
    print(suite.summary())
    return 1 if any(line["state"] in ("failed", "stopped") for line in suite.states) else 0


if __name__ == "__main__":
    sys.exit(main())
