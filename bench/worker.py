"""One way to train cases, one after the other, in a process of its own that takes turns with the others.

    python -m bench.worker VARIANT CASES FOLDER SETTINGS

An empty answer, one line of JSON on standard output, says that everything is imported. On its standard input, "next"
begins the next case; the answer describes the variant or says why there is none, after its traceback on standard error.
Each line "go" is one communication round, and the answer is its seconds. FOLDER/NUMBER.pt gets the parameters of a case
after a first round, which no timing includes. The end of the input ends the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, cores
from bench.loops import LOOPS, Task
from fastlocal.common.machine import keep_freed_memory
from fastlocal.config.validation import check
from fastlocal.data.sample_streams import Streams, StreamSpec
from fastlocal.runs.build import PreparedRun
from fastlocal.runs.from_config import run_from_config
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger, RoundReport, RunSummary


def answer(pipe: Any, **values: Any) -> None:
    print(json.dumps(values), file=pipe, flush=True)


def turn() -> bool:
    """Wait for the word to go; False where the next case is to begin. Raises EOFError at the end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip() == "go"


class Turns(Logger):
    """Lets a run train one round at a time."""

    def __init__(self, pipe: Any, about: dict[str, Any]) -> None:
        self._pipe, self._about = pipe, about
        self._began = 0.0

    def _wait(self) -> None:
        if not turn():
            raise KeyboardInterrupt
        self._began = time.perf_counter()

    def start(self, summary: RunSummary) -> None:
        answer(self._pipe, **self._about)
        self._wait()

    def round(self, report: RoundReport) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        answer(self._pipe, seconds=time.perf_counter() - self._began)
        self._wait()


def prepared_run(case: Case, folder: Path, **more: Any) -> PreparedRun:
    config = case.config(folder, **more)
    check(config)
    return run_from_config(config, lambda text: None)


def settings_of(variant: str) -> dict[str, Any]:
    """Of "fastlocal threaded workers=1": {"executor": "threaded", "workers": 1}."""
    _, executor, *more = variant.split()
    pairs = (word.partition("=") for word in more)
    return {"executor": executor} | {name: json.loads(value) for name, _, value in pairs}


def run_fastlocal(case: Case, folder: Path, file: Path, pipe: Any, settings: dict[str, Any]) -> None:
    """The trainer itself, as `fastlocal train` runs it.

    settings: fields of its RunConfig
    """
    prepared = prepared_run(case, folder / "run", **settings)
    machine = prepared.config.machine
    chosen = {name: getattr(machine, name) for name in vars(machine) if name not in ("seed", "memory_limit")}
    once = prepared_run(case, folder / "gate", **{**chosen, "rounds": 1, "eval_freq1": 1})
    loop = train(once, overwrite=False, sinks=lambda directory: [])
    torch.save(loop.averaged.flat_params.cpu(), file)
    backend = f"{machine.executor}, chunk {machine.chunk}"
    if machine.executor == "stacked" and machine.conv_strategy != "auto":
        backend += f", {machine.conv_strategy}"
    with contextlib.suppress(KeyboardInterrupt):
        train(prepared, overwrite=False, sinks=lambda directory: [Turns(pipe, {"backend": backend})])


def task_of(case: Case, folder: Path) -> tuple[Task, Callable[[int], Tensor]]:
    """What the trainer trains, for other ways to train it: the task, and the sample ids of each round by its number."""
    prepared = prepared_run(case, folder, executor="looped", chunk=1)
    problem = prepared.problem
    whole = problem.source.read_range(0, len(problem.source))
    task = Task(problem.module, whole.inputs, whole.targets, case.clients, problem.numerics, case.momentum)
    spec = StreamSpec(len(problem.source), case.clients, case.batch, prepared.progress.steps_per_epoch, True, 0)
    streams = Streams(spec)

    def sample_ids(number: int) -> Tensor:
        ids = streams.sample_ids(number * case.local_steps, case.local_steps, range(case.clients))
        return ids.to(whole.inputs.device)

    return task, sample_ids


def run_loop(name: str, case: Case, folder: Path, file: Path, pipe: Any) -> None:
    """One of the other ways, on the same samples."""
    torch.set_num_threads(1)  # until it is its turn: others start at the same time
    task, sample_ids = task_of(case, folder)
    way = LOOPS[name](task)
    way.round(sample_ids(0))
    torch.save(way.row().detach().cpu(), file)
    answer(pipe, backend=name)
    number = 1
    while turn():
        torch.set_num_threads(cores())
        began = time.perf_counter()
        way.round(sample_ids(number))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        answer(pipe, seconds=time.perf_counter() - began)
        number += 1


def warm_up() -> None:
    """Do the slow start-up work that every case shares: CUDA, Triton and the memory allocator."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # see Worker.answer
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.init()
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def main(variant: str, cases_text: str, results: str, settings_text: str) -> int:
    pipe = os.fdopen(os.dup(1), "w")  # what anything prints besides must not be taken for an answer
    os.dup2(2, 1)
    warm_up()
    answer(pipe)
    with contextlib.suppress(EOFError):
        turn()
        for number, values in enumerate(json.loads(cases_text)):
            case, file = Case(**values), Path(results) / f"{number}.pt"
            torch.manual_seed(0)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    if variant.startswith("fastlocal "):
                        settings = json.loads(settings_text) | settings_of(variant)
                        run_fastlocal(case, Path(folder), file, pipe, settings)
                    else:
                        run_loop(variant, case, Path(folder), file, pipe)
            except EOFError:
                raise
            except Exception as error:  # Triton's and CUDA's have no base class of their own
                traceback.print_exc()
                answer(pipe, fault=f"{type(error).__name__}: {error}".splitlines()[0])
                turn()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
