"""The executor of --executor auto: the default, the likely fastest, or the fastest by timing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common import disk_cache
from ..common.disk_cache import cache_file, key_of, machine_name
from ..config.schema import MachineConfig, RunConfig
from ..executors.base import LocalProblem, Values
from ..executors.looped import LoopedExecutor
from ..executors.registry import EXECUTORS, KINDS
from ..executors.stacked import StackedExecutor
from ..executors.threaded import ThreadedExecutor
from ..executors.tuning.executor_timing import Timing, TuningBudget, tune, worthwhile
from ..models.functional import has_convolution
from ..schedule.rounds import Progress
from .resolve import default_chunk

STARTING = 4.0
"""Seconds of a run below which the start of threaded steps, a second or two, is not made good."""


def choose_executor(config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> tuple[RunConfig, list[str]]:
    """Choose the fastest executor and its options by timing, or the likely fastest where the run is short.

    Nothing is timed with --compile 1 and --cuda-graph 1, which are for one executor alone, with --tune-seconds 0, and
    under deterministic algorithms, as executors round differently.

    Args:
        config: Resolved, with the default executor.
        requested: What the user gave, which stays.
        problem: Of the run.

    Returns:
        `config` with the choice, and log lines that say how it was found.
    """
    machine = config.machine
    given = requested.executor != "auto" or requested.compile or requested.cuda_graph
    if given or torch.are_deterministic_algorithms_enabled():
        return config, []
    assert machine.chunk is not None, "resolved before"
    total = Progress(config).total_steps * config.clients
    workers = machine.workers if problem.numerics.device.type == "cpu" else None
    work = TuningBudget(machine.chunk, config.client.batch_size, config.schedule.step1, total, workers or 1)
    options = candidates(config, requested, problem)
    if len(options) == 1:
        return config, []
    if not machine.tune_seconds:
        return _likely(config, requested, problem, options, work), []
    path, key = cache_file("tuning.json"), _key(config, requested, problem, options)
    known = disk_cache.get(path, key)
    if isinstance(known, dict) and known.get("fastest") in options and isinstance(known.get("by_rule"), float):
        if not worthwhile(work, known["by_rule"], machine.tune_seconds):
            return _likely(config, requested, problem, options, work, known["by_rule"]), []
        fastest = known["fastest"]
        note = f"{_words(fastest)}: the fastest when it was timed, says {path}"
        return _taking(config, requested, problem, fastest), [note]
    timings, seconds = tune(
        problem,
        work,
        options,
        lambda local, values: EXECUTORS[values["executor"]].from_config(config.with_values(**values).machine, local),
        machine.tune_seconds,
        lambda: [EXECUTORS[name].prepare(problem) for name in {option["executor"] for option in options}],
    )
    if not timings:
        return _likely(config, requested, problem, options, work, seconds), []
    default = next(timing.seconds for timing in timings if timing.values == options[0])
    kept = disk_cache.put(path, key, {"fastest": dict(timings[0].values), "by_rule": default})
    return _taking(config, requested, problem, timings[0].values), _table(timings, path if kept else None)


def _likely(
    config: RunConfig,
    requested: MachineConfig,
    problem: LocalProblem,
    options: list[Values],
    work: TuningBudget,
    seconds: float | None = math.inf,
) -> RunConfig:
    """Take the likely fastest without timing: threads for convolutions on a CPU, else the default.

    On two cores threaded steps of `cnn` and ResNet-20 with GroupNorm were 1.2 to 2.6 times as fast as looped ones with
    8 clients or more, and as fast with one client (bench/results/cpu/throughput.csv).

    Args:
        seconds: Per client and local step, as measured; None if the default fails; inf if nothing was measured.
    """
    threaded = next((option for option in options if option["executor"] == ThreadedExecutor.name), None)
    several = min(work.workers, config.clients) > 1
    if threaded is None or not several or not has_convolution(problem.module) or seconds is None:
        return config
    return _taking(config, requested, problem, threaded) if seconds * work.total >= STARTING else config


def _taking(config: RunConfig, requested: MachineConfig, problem: LocalProblem, values: Values) -> RunConfig:
    """`config` with `values`, and a chunk of the size that is usual for that executor where nothing says another."""
    if requested.chunk is None and "chunk" not in values:
        values = {**values, "chunk": default_chunk(config, problem.layout.n_params, values["executor"])}
    return config.with_values(**values)


def default_executor(config: RunConfig, problem: LocalProblem) -> tuple[str, list[str]]:
    """Return the executor of --executor auto that starts at once, and log lines: looped for convolutions on a CPU."""
    wanted = config.machine.compile or config.machine.conv_strategy != "auto"  # which others do not have
    on_gpu = problem.numerics.device.type != "cpu"
    if not (wanted or on_gpu or not has_convolution(problem.module)):
        return LoopedExecutor.name, []
    if problem.no_vmap is not None:
        note = f"vmap cannot take this model ({problem.no_vmap}); training with --executor looped"
        return LoopedExecutor.name, [note]
    return StackedExecutor.name, []


def candidates(config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
    """Return what is worth timing, the default first."""
    found: list[Values] = [{"executor": config.machine.executor}]
    for kind in KINDS:
        meant = requested.conv_strategy == "auto" or "conv_strategy" in kind.flags
        if meant and kind.refusal(problem) is None:
            found += kind.options(config, requested, problem)
    return [values for place, values in enumerate(found) if values not in found[:place]]


def _key(config: RunConfig, requested: MachineConfig, problem: LocalProblem, options: list[Values]) -> str:
    """Of all that the times depend on."""
    device = problem.numerics.device
    sample = problem.source.read_range(0, 1)
    about = {
        "machine": [*machine_name(device), config.machine.workers, torch.get_num_threads()],
        "model": [repr(problem.module), [list(shape) for shape in problem.layout.shapes]],
        "inputs": [list(sample.inputs.shape), str(sample.inputs.dtype), type(problem.source).__name__],
        "run": [config.clients, config.client.batch_size, config.schedule.step1, config.machine.precision],
        "update": [bool(problem.momentum), bool(problem.weight_decay), problem.nesterov, problem.clip_norm is not None],
        "options": options,
        "kept": [requested.chunk, requested.conv_strategy, requested.channels_last],
    }
    return key_of(about)


def _words(values: Mapping[str, Any]) -> str:
    """As flags, without those that are off."""
    names = [(name, value) for name, value in values.items() if value is not False]
    return " ".join(f"--{name.replace('_', '-')} {1 if value is True else value}" for name, value in names)


def _table(timings: list[Timing], kept: Path | None) -> list[str]:
    """For a person. kept: where the fastest is remembered, if it is"""
    lines = [f"{_words(timing.values):<48} {1e3 * timing.seconds:>10.3f} ms" for timing in timings]
    where = "" if kept is None else f"; remembered in {kept}"
    return ["timed, per client and local step:", *lines, f"taking the first{where}"]
