"""A prepared run in its directory: its loop put together, trained to the end, or gone on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from .averaged import AveragedModel
from .checkpoint import save_model
from .data.streams import Streams, StreamSpec
from .directory import check_directory, create_directory, make_directory, reopen_directory
from .evaluation import evaluate
from .interrupts import held_back
from .lock import locked
from .loop import Loop
from .prepared import Prepared
from .profiled import profiler
from .resolve import sample_pages
from .resume import check_state, find_state, is_complete
from .saving import Saver
from .stack import MomentumStore
from .state_file import State
from .telemetry.base import Logger, Loggers, RunSummary
from .telemetry.jsonl import JsonlLogger, StepLog, read_rows


def _build_loop(prepared: Prepared, logger: Logger, steps: StepLog | None) -> Loop:
    config, problem = prepared.config, prepared.problem
    assert config.machine.chunk is not None and config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    averaged = AveragedModel(prepared.module, prepared.layout, problem.numerics)
    n_params = prepared.layout.n_params
    dtype, device = problem.numerics.dtype, problem.numerics.device
    momentum = None
    if config.sgd.momentum:
        momentum = MomentumStore(config.clients, n_params, config.machine.chunk, device, dtype)
    spec = StreamSpec(
        samples=len(problem.source),
        clients=config.clients,
        batch_size=config.client.batch_size,
        steps_per_epoch=prepared.progress.steps_per_epoch,
        replacement=config.client.replacement,
        seed=config.machine.seed,
    )
    return Loop(
        progress=prepared.progress,
        streams=Streams(spec, sample_pages(config, prepared.data)),
        source=problem.source,
        executor=prepared.executor,
        averaged=averaged,
        momentum=momentum,
        evaluate=lambda: evaluate(
            averaged.module, prepared.test, loss=problem.loss, topk=problem.topk, numerics=problem.numerics
        ),
        logger=logger,
        steps=steps,
        directory=directory,
        clients=config.clients,
        chunk=config.machine.chunk,
        bn_batches=config.model.bn_batches,
        topk=problem.topk,
        stop_on_nan=config.machine.on_nan == "stop",
        module_seed=config.machine.seed if prepared.random else None,
        saver=Saver(
            directory,
            every=config.log.save_every,
            minutes=config.log.save_minutes,
            keep=config.log.keep,
            sync=(lambda: None) if steps is None else steps.sync,
        ),
        config=dataclasses.asdict(config),
        grace=config.log.grace,
    )


@held_back()
def train(
    prepared: Prepared,
    *,
    overwrite: bool,
    sinks: Callable[[Path], Sequence[Logger]],
    resume: bool = False,
    eval_every: int | None = None,
) -> Loop:
    """Train to the end, in a new run directory or going on in one.

    sinks: makes the loggers beside metrics.jsonl, given the run directory
    resume: go on from the last state that was saved there; start over where there is none
    eval_every: rounds between evaluations that a profile reckons with, where they are not those of the run
    Returns the finished loop. On KeyboardInterrupt what was reached is saved.
    """
    config = prepared.config
    assert config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    check_directory(directory, overwrite or resume)
    others = Loggers(sinks(directory))
    with ExitStack() as closing:
        closing.callback(others.close)
        make_directory(directory)
        closing.enter_context(locked(directory))
        state = find_state(directory, others.message) if resume else None
        logged: dict[str, Any] = {}
        if state is None:
            create_directory(directory, config)
        else:
            averaged = AveragedModel(prepared.module, prepared.layout, prepared.problem.numerics)
            shapes = {name: value.shape for name, value in averaged.tensors().items()}
            check_state(state, config, prepared.progress, shapes)
            if is_complete(state, prepared.progress):
                loop = _build_loop(prepared, others, None)
                _restore(loop, state)
                others.message(f"the run is complete after {loop.comm_round} rounds; --rounds or --epochs extends it")
                return loop
            logged = state.numbers["logged"]
            reopen_directory(directory, config)
        lines = JsonlLogger(directory, logged.get("metrics.jsonl", 0))
        closing.callback(lines.close)
        logger = Loggers([lines, others])
        if config.log.profile:
            watch = profiler(config, prepared.problem, directory, others.message, eval_every)
            closing.callback(watch.close)
            logger.sinks.append(watch)
        steps = StepLog(directory, logged.get("steps.jsonl", 0)) if config.log.debug else None
        loop = _build_loop(prepared, logger, steps)
        closing.callback(loop.saver.close)
        if state is None:
            _save_start(prepared, directory)
        else:
            logger.restore(logged)
            _restore(loop, state)
            logger.message(f"going on after {loop.comm_round} rounds")
        logger.start(_summary(prepared, directory, loop.at.first_step))
        for note in prepared.notes:
            logger.message(note)
        try:
            loop.run(config.schedule.eval_on_start)
        except KeyboardInterrupt:
            if not (loop.history and loop.saver.enabled):  # a model to look at, where no evaluation has left one
                loop.save_latest()
            raise
        return loop


def _save_start(prepared: Prepared, directory: Path) -> None:
    """Write the start weights, where they were drawn from the seed."""
    if prepared.config.model.resume_pth is None:
        schedule = prepared.config.schedule
        name = f"H={schedule.step1}-{schedule.step2}-{schedule.step3}_init.pt"
        save_model(directory / name, prepared.module.state_dict())


def _restore(loop: Loop, state: State) -> None:
    loop.restore(state)
    loop.history.extend(read_rows(loop.directory / "metrics.jsonl", state.numbers["logged"]["metrics.jsonl"]))
    if not loop.history:
        (loop.directory / "latest.pt").unlink(missing_ok=True)  # written as the run stopped, or later than `state`


def _summary(prepared: Prepared, directory: Path, steps_done: int) -> RunSummary:
    config = prepared.config
    return RunSummary(
        name=config.name,
        directory=directory,
        config=dataclasses.asdict(config),
        clients=config.clients,
        rounds=prepared.progress.count(),
        samples=prepared.progress.total_steps * config.client.total_batch_size,
        samples_done=steps_done * config.client.total_batch_size,
    )


def final_model(loop: Loop) -> nn.Module:
    """The plain module with the averaged weights, in evaluation mode."""
    loop.load_averaged()
    return loop.averaged.module.eval()
