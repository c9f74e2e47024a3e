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
from ..executors.base import LocalProblem
from ..executors.interface import Values
from ..executors.looped import LoopedExecutor
from ..executors.registry import EXECUTORS, KINDS
from ..executors.stacked import StackedExecutor
from ..executors.threaded import ThreadedExecutor
from ..executors.tuning.executor_timing import Timing, TuningBudget, tune, worthwhile
from ..models.functional import has_convolution
from ..schedule.owned_rounds import make_progress
from .resolve import default_chunk

MIN_THREADED_S = 4.0
"""Shortest run for which threaded steps save the second or two that they take to start."""
THREADED_PARAMS = 2**15
"""Parameters of a model without convolutions from which threaded steps are the faster ones. Time of a client-step on
one core of an AMD EPYC, in ms:

    model                               parameters    stacked    threaded
    logistic, 10 clients x 10                7,850      0.055       0.058
    mlp on digits, 32 clients x 8            9,610      0.042       0.099
    mlp on 16 x 16, 32 clients x 8          34,186      0.12        0.13
    2nn on digits, 10 clients x 10          55,410      0.21        0.15
    mlp on 28 x 28, 64 clients x 16        101,770      0.29        0.21
    2nn, 10 clients x 10                   199,210      0.50        0.27
    mlp on 3 x 32 x 32, 64 clients x 16    394,634      1.72        0.58
"""


def choose_executor(
    config: RunConfig,
    requested: MachineConfig,
    problem: LocalProblem,
    replicas: int = 1,
    local_steps: int | None = None,
    share: float = 1.0,
) -> tuple[RunConfig, list[str]]:
    """Choose the fastest executor and its options by timing, or the likely fastest if the run is short.

    Nothing is timed with --compile 1 or --cuda-graph 1, which belong to one executor; with --tune-seconds 0; and under
    deterministic algorithms, because executors round differently.

    Args:
        config: Resolved settings with the default executor.
        requested: Settings of the user, which stay.
        problem: The local step.
        replicas: Number of runs like this one that train together.
        local_steps: Steps of a client in a round, their mean if they differ; None: --step1.
        share: Share of the resident clients that step at once, in the mean.

    Returns:
        `config` with the chosen executor, and log lines.
    """
    machine = config.machine
    fixed = requested.executor != "auto" or requested.compile or requested.cuda_graph
    if fixed or torch.are_deterministic_algorithms_enabled():
        return config, []
    assert machine.chunk is not None, "resolved before"
    clients = config.clients * replicas
    local_steps = local_steps or config.schedule.step1
    total = make_progress(config, local_steps).total_steps * clients
    workers = machine.workers if problem.numerics.device.type == "cpu" else None
    at_once = max(1, round(machine.chunk * share))
    budget = TuningBudget(at_once, config.client.batch_size, local_steps, total, workers or 1)
    options = candidates(config, requested, problem)
    if replicas > 1:  # with all clients of a run at once, several runs are
        options = [values for values in options if "chunk" not in values]
    if len(options) == 1:
        return config, []
    if not machine.tune_seconds:
        return _choose_untimed(config, requested, problem, options, budget, clients), []
    path, key = cache_file("tuning.json"), _key(config, requested, problem, options, local_steps)
    cached = disk_cache.get(path, key)
    if isinstance(cached, dict) and cached.get("fastest") in options and isinstance(cached.get("default_s"), float):
        if not worthwhile(budget, cached["default_s"], machine.tune_seconds):
            return _choose_untimed(config, requested, problem, options, budget, clients, cached["default_s"]), []
        fastest = cached["fastest"]
        note = f"{_flags(fastest)}: the fastest when it was timed, says {path}"
        return _with_executor(config, requested, problem, fastest), [note]
    timings, seconds = tune(
        problem,
        budget,
        options,
        lambda local, values: EXECUTORS[values["executor"]].from_config(config.with_values(**values).machine, local),
        machine.tune_seconds,
        lambda: [EXECUTORS[name].prepare(problem) for name in {option["executor"] for option in options}],
    )
    if not timings:
        return _choose_untimed(config, requested, problem, options, budget, clients, seconds), []
    default = next(timing.seconds for timing in timings if timing.values == options[0])
    stored = disk_cache.put(path, key, {"fastest": dict(timings[0].values), "default_s": default})
    return _with_executor(config, requested, problem, timings[0].values), _table(timings, path if stored else None)


def _choose_untimed(
    config: RunConfig,
    requested: MachineConfig,
    problem: LocalProblem,
    options: list[Values],
    budget: TuningBudget,
    clients: int,
    seconds: float | None = math.inf,
) -> RunConfig:
    """Choose the likely fastest executor without timing: threads for convolutions and large models on a CPU.

    On two cores threaded steps of `cnn` and ResNet-20 with GroupNorm were 1.2 to 2.6 times as fast as looped ones with
    8 clients or more, and as fast with one client (bench/results/cpu/throughput.csv).

    Args:
        clients: Number of clients of all runs that train together.
        seconds: Measured time per client and local step; None if the default fails; inf if nothing was measured.
    """
    threaded = next((option for option in options if option["executor"] == ThreadedExecutor.name), None)
    several = min(budget.workers, clients) > 1
    suits = has_convolution(problem.module) or problem.layout.n_params >= THREADED_PARAMS
    if threaded is None or not several or not suits or seconds is None:
        return config
    return _with_executor(config, requested, problem, threaded) if seconds * budget.total >= MIN_THREADED_S else config


def _with_executor(config: RunConfig, requested: MachineConfig, problem: LocalProblem, values: Values) -> RunConfig:
    """Return `config` with `values`, and with that executor's default chunk if the user set none."""
    if requested.chunk is None and "chunk" not in values:
        values = {**values, "chunk": default_chunk(config, problem.layout.n_params, values["executor"])}
    return config.with_values(**values)


def default_executor(config: RunConfig, problem: LocalProblem) -> tuple[str, list[str]]:
    """Return the executor of --executor auto before timing, and log lines.

    It is looped for convolutions on a CPU and for models that vmap cannot take, else stacked.
    """
    stacked_only = config.machine.compile or config.machine.conv_strategy != "auto"
    one_by_one = problem.numerics.device.type == "cpu" and has_convolution(problem.module)
    if one_by_one and not stacked_only:
        return LoopedExecutor.name, []
    if problem.no_vmap is not None:
        note = f"vmap cannot take this model ({problem.no_vmap}); training with --executor looped"
        return LoopedExecutor.name, [note]
    return StackedExecutor.name, []


def candidates(config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
    """Return the executors and options to time, the default first."""
    options: list[Values] = [{"executor": config.machine.executor}]
    for kind in KINDS:
        has_flag = requested.conv_strategy == "auto" or "conv_strategy" in kind.flags
        if has_flag and kind.refusal(problem) is None:
            options += kind.options(config, requested, problem)
    return [values for place, values in enumerate(options) if values not in options[:place]]


def _key(
    config: RunConfig, requested: MachineConfig, problem: LocalProblem, options: list[Values], local_steps: int
) -> str:
    """Return the cache key, from everything that affects the times."""
    device = problem.numerics.device
    sample = problem.source.read_range(0, 1)
    factors = {
        "machine": [*machine_name(device), config.machine.workers, torch.get_num_threads()],
        "model": [repr(problem.module), [list(shape) for shape in problem.layout.shapes]],
        "inputs": [list(sample.inputs.shape), str(sample.inputs.dtype), type(problem.source).__name__],
        "run": [config.clients, config.client.batch_size, local_steps, config.machine.precision],
        "update": [problem.moments, bool(problem.weight_decay), problem.nesterov, problem.clip_norm is not None],
        "options": options,
        "kept": [requested.chunk, requested.conv_strategy, requested.channels_last],
    }
    return key_of(factors)


def _flags(values: Mapping[str, Any]) -> str:
    """Write values as flags, without those that are off."""
    names = [(name, value) for name, value in values.items() if value is not False]
    return " ".join(f"--{name.replace('_', '-')} {1 if value is True else value}" for name, value in names)


def _table(timings: list[Timing], cache: Path | None) -> list[str]:
    """Return log lines with the times and the cache file that stores the choice."""
    lines = [f"{_flags(timing.values):<48} {1e3 * timing.seconds:>10.3f} ms" for timing in timings]
    where = "" if cache is None else f"; remembered in {cache}"
    return ["timed, per client and local step:", *lines, f"taking the first{where}"]
