"""The profile of a resolved run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..config.schema import RunConfig
from ..executors.base import LocalProblem
from ..telemetry.profiling import ProfileLogger, Subject, flops_of

SAMPLES = 8


def profiler(
    config: RunConfig, problem: LocalProblem, directory: Path, message: Callable[[str], None], eval_every: int | None
) -> ProfileLogger:
    """Return the logger that profiles a resolved run.

    Args:
        config: The resolved settings.
        problem: The local step, whose floating-point operations are counted here.
        directory: The run directory.
        message: Takes one log line.
        eval_every: Rounds between evaluations; None for those of `config`.
    """
    numbers = problem.numerics
    batch = problem.source.read_range(0, min(SAMPLES, config.client.batch_size))
    module = copy.deepcopy(problem.module)  # a forward pass may change the module's own state

    def step() -> Tensor:
        with numbers.autocast():
            outputs = module(batch.inputs)
        return problem.loss(numbers.to_param_dtype(outputs), batch.targets)

    with torch.random.fork_rng(devices=[numbers.device] if numbers.device.type == "cuda" else []):
        flops = flops_of(step) // len(batch.inputs)
    subject = Subject(
        device=numbers.device,
        dtype=numbers.dtype,
        autocast_dtype=numbers.autocast_dtype,
        row_bytes=problem.layout.n_params * numbers.dtype.itemsize,
        flops=flops,
        moments=problem.moments,
        eval_every=eval_every or config.schedule.eval_freq1,
    )
    return ProfileLogger(directory, subject, config.log.profile_rounds, message)
