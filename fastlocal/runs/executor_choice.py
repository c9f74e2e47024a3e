"""The executor of a run: built from its name, and what --executor auto comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common import disk_cache
from ..common.disk_cache import cache_file, key_of, machine_name
from ..config.schema import MachineConfig, RunConfig
from ..data.sources.resident import ResidentSource
from ..executors.base import Executor, LocalProblem
from ..executors.looped import LoopedExecutor
from ..executors.scripted.trace import compile_ahead
from ..executors.stacked import StackedExecutor
from ..executors.threaded import ThreadedExecutor
from ..executors.tuning.conv_strategy import parse_strategies
from ..executors.tuning.executor_timing import Timing, TuningBudget, Values, tune, worthwhile
from ..module_checks.probe import Probe
from ..schedule.rounds import Progress
from .resolve import default_chunk, has_convolution

CACHE_BYTES = 2 * 2**20
"""Of a core's own cache: stacked rows that fit in it are a chunk worth timing."""
STARTING = 4.0
"""Seconds of a run below which the start of threaded steps, a second or two, is not made good."""
COMPILE_SECONDS = 30.0
"""Compiled steps are timed only where --tune-seconds is at least this: compiling them takes about as long."""


def make_executor(machine: MachineConfig, problem: LocalProblem) -> Executor:
    """What --executor and the flags beside it say, apart from "auto"; stacked steps are not replayed by it."""
    if machine.executor == "looped":
        return LoopedExecutor(problem)
    if machine.executor == "threaded":
        assert machine.workers is not None
        return ThreadedExecutor(problem, workers=machine.workers, channels_last=bool(machine.channels_last))
    strategies = parse_strategies(machine.conv_strategy, problem.module, problem.numerics.device)
    return StackedExecutor(problem, conv_strategy=strategies, compile=bool(machine.compile))


def choose_executor(
    config: RunConfig, requested: MachineConfig, problem: LocalProblem, probe: Probe
) -> tuple[RunConfig, list[str]]:
    """Choose the fastest executor and its options by timing, or the likely fastest where the run is short.

    Nothing is timed with --compile 1 and --cuda-graph 1, which are for one executor alone, with --tune-seconds 0, and
    under deterministic algorithms, as executors round differently.

    Args:
        config: Resolved, with the default executor.
        requested: What the user gave, which stays.
        problem: Of the run.
        probe: Of its module.

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
    options = candidates(config, requested, problem, probe)
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
    threaded = any(option["executor"] == "threaded" for option in options)
    timings, seconds = tune(
        problem,
        work,
        options,
        lambda local, values: make_executor(config.with_values(**values).machine, local),
        machine.tune_seconds,
        lambda: compile_ahead(problem.module) if threaded else None,
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
    threaded = next((option for option in options if option["executor"] == "threaded"), None)
    several = min(work.workers, config.clients) > 1
    if threaded is None or not several or not has_convolution(problem.module) or seconds is None:
        return config
    return _taking(config, requested, problem, threaded) if seconds * work.total >= STARTING else config


def _taking(config: RunConfig, requested: MachineConfig, problem: LocalProblem, values: Values) -> RunConfig:
    """`config` with `values`, and a chunk of the size that is usual for that executor where nothing says another."""
    if requested.chunk is None and "chunk" not in values:
        values = {**values, "chunk": default_chunk(config, problem.layout.n_params, values["executor"])}
    return config.with_values(**values)


def candidates(config: RunConfig, requested: MachineConfig, problem: LocalProblem, probe: Probe) -> list[Values]:
    """What is worth timing, first what would be taken without."""
    on_cpu = problem.numerics.device.type == "cpu"
    convolutions = has_convolution(problem.module)
    found: list[Values] = [{"executor": config.machine.executor}]
    if requested.conv_strategy != "auto":
        return found if probe.no_vmap else [{"executor": "stacked"}]
    if on_cpu and not probe.uses_rng and probe.shared is None:
        usual = bool(config.machine.channels_last)  # first, as not all may be timed
        free = convolutions and requested.channels_last is None
        layouts = (usual, not usual) if free else (bool(requested.channels_last),)
        found += [{"executor": "threaded", "channels_last": last} for last in layouts]
    if not probe.no_vmap:
        strategies = ("loop", "im2col") if on_cpu and convolutions and requested.conv_strategy == "auto" else (None,)
        for strategy in strategies:
            chosen = {} if strategy is None else {"conv_strategy": strategy}
            found.append({"executor": "stacked", **chosen})
        if on_cpu and requested.chunk is None and not convolutions:
            rows = 3 if problem.momentum else 2
            cached = max(1, CACHE_BYTES // (rows * problem.layout.n_params * problem.numerics.dtype.itemsize))
            found += [{"executor": "stacked", "chunk": chunk} for chunk in {cached, 8} if chunk < config.clients]
    replayed = not on_cpu and requested.cuda_graph is not False and isinstance(problem.source, ResidentSource)
    if not replayed or probe.no_vmap:  # replayed, they would be timed launched one by one
        found.append({"executor": "looped"})
    if not probe.no_vmap and requested.compile is None and config.machine.tune_seconds >= COMPILE_SECONDS:
        found.append({"executor": "stacked", "compile": True})
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
