"""What of the GPU suite needs no GPU: its order and time, its command lines, and the tables of its parts."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from bench import gpu_suite, processes
from bench import kernels as bench
from bench.common import Row, read_rows, write_rows
from bench.gpu_parts import ESSENTIAL, PARTS, Part, select_parts
from bench.gpu_suite import MIN_SECONDS, SECONDS, Suite, fill
from bench.processes import ProgramResult
from bench.targets import TARGETS
from fastlocal import cli, kernels
from tests.kernels import on_device

TOGETHER = [part for part in PARTS if part.together]
NO_TIME = "no time was left"


class StandIn:
    """A clock, and programs that take as long of it as they are told; those that run together begin together.

    takes: seconds of a program by its words; None for all that it is allowed, as one that hangs
    leaves: tables that a program leaves, by its words
    """

    def __init__(
        self,
        together: int,
        takes: Callable[[str], float | None] = lambda words: None,
        leaves: Callable[[str], Mapping[str, list[Row]]] = lambda words: {},
    ) -> None:
        self.now, self.words = 1000.0, list[str]()
        self._takes, self._leaves = takes, leaves
        self._together, self._begun = together, threading.Barrier(max(together, 1))
        self._lock = threading.Lock()

    def launch(self, command: Sequence[str], end: float, more: Mapping[str, str]) -> ProgramResult:
        words, began = " ".join(command[1:]), self.now
        with self._lock:
            self.words.append(words)
            first = len(self.words) <= self._together
        if first:
            self._begun.wait(60)
        for name, rows in self._leaves(words).items():
            write_rows(Path(command[command.index("--out") + 1]) / name, rows)
        takes = self._takes(words)
        with self._lock:
            self.now = max(self.now, end if takes is None else min(began + takes, end))
        return ProgramResult(None, ("it hangs here",)) if takes is None or began + takes > end else ProgramResult(0)


def run(out: Path, parts: Sequence[Part], machine: StandIn, seconds: float = SECONDS) -> dict[str, Row]:
    suite = Suite(out, seconds, clock=lambda: machine.now, launch=machine.launch, max_parallel=len(parts))
    suite.run(parts)
    assert read_rows(out / "suite.csv") == suite.states
    return {row["part"]: row for row in suite.states}


def part(name: str, seconds: float = 30.0, needs: str | None = None, **more: bool) -> Part:
    return Part(name, (name, "--out", "{out}", "--seconds", "{seconds}"), seconds, needs=needs, **more)


def test_what_is_precious_runs_even_where_every_part_hangs(tmp_path: Path) -> None:
    machine = StandIn(len(TOGETHER))
    rows = run(tmp_path, PARTS, machine)
    assert machine.now - 1000.0 <= SECONDS
    assert list(rows) == [part.name for part in (*TOGETHER, *(part for part in PARTS if not part.together))]
    ran = {name for name, row in rows.items() if row["state"] == "stopped"}
    assert ran >= {part.name for part in ESSENTIAL}
    left = [row for name, row in rows.items() if name not in ran]
    assert left and {row["state"] for row in left} == {"skipped"} and left[-1]["why"] == NO_TIME
    assert rows["training resnet20_gn"]["output"] == "it hangs here"
    page = (tmp_path / "summary.md").read_text()
    assert f"- {left[-1]['part']}: skipped, {NO_TIME}" in page and "it hangs here" in page


def test_every_part_is_run_where_all_are_quick(tmp_path: Path) -> None:
    machine = StandIn(len(TOGETHER), takes=lambda words: 4.0)
    rows = run(tmp_path, PARTS, machine)
    assert {row["state"] for row in rows.values()} == {"done"}
    timed = [words for words in machine.words if words.startswith("-m bench.kernels") and "gate" not in words]
    assert len(timed) == len(kernels.TRITON_OPS) and all(words.endswith("--only times") for words in timed)


def test_a_part_that_hangs_costs_the_others_its_time_alone(tmp_path: Path) -> None:
    machine = StandIn(0, takes=lambda words: None if words.startswith("hangs") else 5.0)
    parts = [part("hangs", 20), part("works"), part("too late")]
    rows = run(tmp_path, parts, machine, seconds=20 + 5 + MIN_SECONDS - 0.1)
    assert [row["state"] for row in rows.values()] == ["stopped", "done", "skipped"]
    assert rows["hangs"]["why"] == "still running after 20 s" and rows["too late"]["why"] == NO_TIME


def test_a_kernel_that_fails_its_checks_is_not_timed(tmp_path: Path) -> None:
    def leaves(words: str) -> dict[str, list[Row]]:
        op = words.split()[1]
        if "check" in words:
            fault = {"bad": "wrong"}.get(op, "")
            return {"gate.csv": [{"op": op, "case": "a case", "fault": fault}], "else.csv": [{"op": op}]}
        return {"tests.csv": [{"file": op, "passed": "1", "failed": "0", "skipped": "0", "first": ""}]}

    def takes(words: str) -> float | None:
        return None if words.startswith("check slow") else 1.0

    checks = [part(f"check {op}", together=True) for op in ("bad", "good", "slow")]
    timings = [
        Part(f"time {op}", ("time", op, "--out", "{out}"), 30.0, needs=op, flags_if_checked=("--only", "times"))
        for op in ("bad", "good", "slow")
    ]
    machine = StandIn(3, takes, leaves)
    rows = run(tmp_path, [*checks, *timings], machine)
    assert rows["time bad"]["why"] == "bad fails its checks"
    assert [row["part"] for row in rows.values() if row["state"] == "skipped"] == ["time bad"]
    assert ["--only times" in words for words in machine.words[3:]] == [True, False], "slow runs its checks itself"
    assert {line["op"] for line in read_rows(tmp_path / "gate.csv")} == {"bad", "good", "slow"}
    assert [line["file"] for line in read_rows(tmp_path / "tests.csv")] == ["good", "slow"], "each line once"
    assert not (tmp_path / "else.csv").exists()


def test_parts_by_name() -> None:
    assert [part.name for part in select_parts(["time client_sgd"])] == ["check client_sgd", "time client_sgd"]
    assert [part.name for part in select_parts(["training r"])] == ["training resnet20_gn", "training resnet56"]
    assert select_parts(None) == list(PARTS) and len({part.name for part in PARTS}) == len(PARTS)
    with pytest.raises(ValueError, match="unknown part 'tme'; known: check client_adamw, .*time client_norm"):
        select_parts(["time", "tme"])


def test_every_kernel_is_checked_and_timed() -> None:
    names = {part.name for part in PARTS}
    assert names >= {f"{what} {op}" for what in ("check", "time") for op in kernels.TRITON_OPS}
    assert all(f"time {target.op}" in names for target in TARGETS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the command lines would be run")
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_command_is_known_to_its_program(part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Benches by their parsers; the command line refuses nothing but the missing GPU."""
    told = {"{out}": str(tmp_path / "out"), "{seconds}": "7"}
    for more in ((), part.flags_if_checked, ("--deterministic",) if part.deterministic else ()):
        flag, program, *words = (*(fill(word, told) for word in part.command), *more)
        assert flag == "-m"
        if program == "fastlocal":
            assert cli.main(words) == 2
            said = capsys.readouterr().err
            assert "cuda" in said.lower() and "unknown" not in said and "unrecognized" not in said.lower(), said
        else:
            importlib.import_module(program).parser().parse_args(words)
    assert not (tmp_path / "out").exists()


def test_a_program_is_stopped_with_what_it_started_and_says_where_it_was(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = f"""
import subprocess, pathlib
print("begun")
process = subprocess.Popen(["sleep", "600"])
pathlib.Path({str(child)!r}).write_text(str(process.pid))
process.wait()
"""
    began = time.monotonic()
    ended = processes.run([sys.executable, "-c", program], began + 3.5)
    assert ended.status is None and ended.lines[0] == "begun" and "line 6 in <module>" in "\n".join(ended.lines)
    assert time.monotonic() - began < 60
    deadline = time.monotonic() + 30
    while is_running(int(child.read_text())):
        assert time.monotonic() < deadline
    failed = processes.run([sys.executable, "-c", "print(1); print(); raise ValueError('so')"], time.monotonic() + 60)
    assert failed.status == 1 and (failed.lines[0], failed.lines[-1]) == ("1", "ValueError: so")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_table_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [{"op": "a"}])
    with pytest.raises(AttributeError):
        write_rows(tmp_path / "a.csv", [{"op": "b"}, None], ["op"])  # type: ignore[list-item]
    assert read_rows(tmp_path / "a.csv") == [{"op": "a"}]
    write_rows(tmp_path / "a.csv", [{"op": "b"}, {"op": "c", "ms": "1"}])
    assert read_rows(tmp_path / "a.csv") == [{"op": "b", "ms": ""}, {"op": "c", "ms": "1"}]


def test_a_file_of_tests_is_counted(tmp_path: Path) -> None:
    tests = tmp_path / "test_few.py"
    tests.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'not so'\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
    )
    row = on_device.run_file(tests, 60.0)
    assert (row["passed"], row["failed"], row["skipped"]) == ("1", "1", "1")
    assert row["first"].startswith("test_b: AssertionError: not so")
    tests.write_text("import no_such_module\n")
    assert on_device.run_file(tests, 60.0)["failed"] == "1"
    assert all((on_device.ROOT / "tests" / name).is_file() for name in on_device.FILES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [bench.main, gpu_suite.main, on_device.main])
def test_without_a_gpu_one_line_says_so(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out == "There is no CUDA device here: nothing was measured.\n"
    assert not (tmp_path / "out").exists()
