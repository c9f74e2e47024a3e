"""Child process of the training benches: trains one case by one variant, a round whenever it is told to.

    python -m bench.worker VARIANT CASE FOLDER SETTINGS

It answers (see bench.processes) {} once everything is imported. For the line "begin" it trains a first round, writes
the parameters to FOLDER/params.pt, and answers with its "backend". For each line "go" it trains a round and answers
with its "seconds". An answer with a "fault" says why there is none, and its traceback is on standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from bench.common import cores
from bench.loops import BASELINES, OWN_PREFIX, Task
from bench.processes import answer, answer_pipe
from bench.training_case import TrainingCase
from fastlocal.common.machine import keep_freed_memory
from fastlocal.config.validation import check
from fastlocal.runs.build import PreparedRun
from fastlocal.runs.from_config import run_from_config
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger, RoundReport, RunSummary


class RoundByRound(Logger):
    """Lets a run train one round at a time."""

    def __init__(self, pipe: TextIO, backend: str) -> None:
        self._pipe, self._backend = pipe, backend
        self._start = 0.0

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise KeyboardInterrupt
        self._start = time.perf_counter()

    def start(self, summary: RunSummary) -> None:
        """Report that the first round of the case was trained before, and wait."""
        answer(self._pipe, backend=self._backend)
        self._wait()

    def round(self, report: RoundReport) -> None:
        """Report the seconds of a round, and wait."""
        synchronize()
        answer(self._pipe, seconds=time.perf_counter() - self._start)
        self._wait()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prepare_run(case: TrainingCase, directory: Path, **settings: Any) -> PreparedRun:
    """Build the run of a case."""
    config = case.config(directory, **settings)
    check(config)
    return run_from_config(config, lambda text: None)


def parse_settings(variant: str) -> dict[str, Any]:
    """Parse "fastlocal threaded workers=1" to {"executor": "threaded", "workers": 1}."""
    _, executor, *words = variant.split()
    pairs = (word.partition("=") for word in words)
    return {"executor": executor} | {name: json.loads(value) for name, _, value in pairs}


def run_fastlocal(case: TrainingCase, folder: Path, pipe: TextIO, settings: dict[str, Any]) -> None:
    """Train by fastlocal, as `fastlocal train` does.

    Args:
        case: The case.
        folder: Folder for the run directories and params.pt.
        pipe: Pipe for answers.
        settings: Fields of RunConfig.
    """
    prepared = prepare_run(case, folder / "run", **settings)
    machine = prepared.config.machine
    resolved = {name: getattr(machine, name) for name in vars(machine) if name not in ("seed", "memory_limit")}
    first_round = prepare_run(case, folder / "first_round", **(settings | resolved | {"rounds": 1, "eval_freq1": 1}))
    loop = train(first_round, overwrite=False, make_loggers=lambda directory: [])
    torch.save(loop.global_model.flat_params.cpu(), folder / "params.pt")
    backend = f"{machine.executor}, chunk {machine.chunk}"
    if machine.executor == "stacked" and machine.conv_strategy != "auto":
        backend += f", {machine.conv_strategy}"
    with contextlib.suppress(KeyboardInterrupt):
        train(prepared, overwrite=False, make_loggers=lambda directory: [RoundByRound(pipe, backend)])


def make_task(case: TrainingCase, folder: Path) -> tuple[Task, Callable[[int], Tensor]]:
    """Return what fastlocal would train, for the baselines: the task, and the sample ids of a round by its number."""
    prepared = prepare_run(case, folder / "run", executor="looped", chunk=1)
    problem = prepared.problem
    samples = problem.source.read_range(0, len(problem.source))
    task = Task(problem.module, samples.inputs, samples.targets, case.clients, problem.numerics, case.momentum)
    streams = prepared.population.streams(prepared.config, prepared.data, prepared.progress.steps_per_epoch)

    def sample_ids(number: int) -> Tensor:
        ids = streams.sample_ids(number * case.local_steps, case.local_steps, range(case.clients))
        return ids.to(samples.inputs.device)

    return task, sample_ids


def run_baseline(name: str, case: TrainingCase, folder: Path, pipe: TextIO) -> None:
    """Train by a baseline on the samples that fastlocal draws."""
    torch.set_num_threads(1)  # the other baselines start at the same time
    task, sample_ids = make_task(case, folder)
    baseline = BASELINES[name](task)
    baseline.round(sample_ids(0))
    torch.save(baseline.flat_params().detach().cpu(), folder / "params.pt")
    answer(pipe, backend=name)
    torch.set_num_threads(cores())
    number = 1
    while sys.stdin.readline():
        start = time.perf_counter()
        baseline.round(sample_ids(number))
        synchronize()
        answer(pipe, seconds=time.perf_counter() - start)
        number += 1


def main(variant: str, case_text: str, folder: str, settings_text: str) -> int:
    """Train until the end of standard input."""
    pipe = answer_pipe()
    # a process that is aborted for its stack leaves no core file
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.init()
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")
    answer(pipe)
    if not sys.stdin.readline():
        return 0
    case = TrainingCase(**json.loads(case_text))
    torch.manual_seed(0)
    try:
        if variant.startswith(OWN_PREFIX):
            run_fastlocal(case, Path(folder), pipe, json.loads(settings_text) | parse_settings(variant))
        else:
            run_baseline(variant, case, Path(folder), pipe)
    except Exception as error:  # those of Triton and CUDA share no base class
        traceback.print_exc()
        answer(pipe, fault=f"{type(error).__name__}: {error}".splitlines()[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
